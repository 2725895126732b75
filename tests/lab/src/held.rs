//! A thread of another process that is held, as by a disk that does not answer or by a host without processor time. The test
//! traces it (ptrace(2)).

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::skip::skip;
use crate::wait::TIMEOUT;

/// Time between two looks at the thread.
const INTERVAL: Duration = Duration::from_micros(200);

/// A held thread, which continues when this is dropped. Only the test's thread that made it may use it.
///
/// Each function panics when the thread ends unexpectedly, or does not do within [`TIMEOUT`] what the function waits for.
#[derive(Debug)]
pub struct Held(Pid);

impl Held {
    /// Stops the thread wherever it is. Prints that the test is skipped and returns `None` if ptrace is not allowed.
    pub fn anywhere(thread: Pid) -> Option<Self> {
        let held = Self::trace(thread, Options::empty())?;
        ptrace::interrupt(thread).expect("a traced thread can be interrupted");
        held.await_stop();
        Some(held)
    }

    /// Stops the thread at the beginning of one of these system calls.
    pub fn at(thread: Pid, calls: &[c_long]) -> Option<Self> {
        let held = Self::anywhere(thread)?;
        held.go_to(calls);
        Some(held)
    }

    /// Calls `begin`, and stops the next thread that `parent` starts before its first instruction.
    pub fn next_of(parent: Pid, begin: impl FnOnce()) -> Option<Self> {
        let parent = Self::trace(parent, Options::PTRACE_O_TRACECLONE)?;
        begin();
        assert!(parent.await_stop() == Stop::Other, "the parent stops after its clone(2)");
        let thread = ptrace::getevent(parent.0).expect("the clone has a result");
        let held = Self(Pid::from_raw(thread as i32));
        held.await_stop();
        Some(held)
    }

    fn trace(thread: Pid, more: Options) -> Option<Self> {
        match ptrace::seize(thread, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL | more) {
            Ok(()) => Some(Self(thread)),
            Err(Errno::EPERM) => {
                skip("ptrace(2) is not allowed here");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Lets the thread continue to the beginning of one of these system calls.
    pub fn go_to(&self, calls: &[c_long]) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            assert!(Instant::now() < deadline, "none of the calls {calls:?} within {TIMEOUT:?}");
            if self.next_stop() == Stop::Call && self.begins(calls) {
                return;
            }
        }
    }

    /// Lets the thread continue to the next beginning or end of a system call.
    pub fn go_on_to_a_call(&self) {
        self.next_stop();
    }

    fn next_stop(&self) -> Stop {
        ptrace::syscall(self.0, None).expect("a stopped thread continues");
        self.await_stop()
    }

    fn begins(&self, calls: &[c_long]) -> bool {
        let registers = ptrace::getregs(self.0).expect("a stopped thread has registers");
        // The return value is ENOSYS until the call is carried out (arch/x86/entry/entry_64.S).
        registers.rax as i64 == -i64::from(libc::ENOSYS) && calls.contains(&(registers.orig_rax as c_long))
    }

    fn await_stop(&self) -> Stop {
        match self.await_change() {
            WaitStatus::PtraceSyscall(_) => Stop::Call,
            // Signals are not forwarded; those that arrive here do not matter to the test.
            WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..) => Stop::Other,
            ended => panic!("the thread ended: {ended:?}"),
        }
    }

    /// Waits for the thread's end, before which its process cannot end; returns the exit code, if it ended by itself.
    pub fn await_end(self) -> Option<i32> {
        match self.await_change() {
            WaitStatus::Exited(_, code) => Some(code),
            WaitStatus::Signaled(..) => None,
            other => panic!("{other:?}"),
        }
    }

    fn await_change(&self) -> WaitStatus {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match waitpid(self.0, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)).expect("the thread is traced") {
                WaitStatus::StillAlive => sleep(INTERVAL),
                change => return change,
            }
            assert!(Instant::now() < deadline, "the thread neither stops nor ends within {TIMEOUT:?}");
        }
    }
}

#[derive(Debug, PartialEq)]
enum Stop {
    Call,
    Other,
}

impl Drop for Held {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = ptrace::detach(self.0, None);
    }
}
