//! A thread of another process that is held, as by a disk that does not answer or by a host without processor time. The test
//! traces it (ptrace(2)).

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::process::TIMEOUT;

/// A held thread, which continues when this is dropped. Only the test's thread that made it may use it.
pub(crate) struct Held(Pid);

impl Held {
    /// Stops the thread wherever it is. Prints that the test is skipped and returns `None` if ptrace is not allowed.
    pub(crate) fn anywhere(thread: Pid) -> Option<Self> {
        match ptrace::seize(thread, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL) {
            Ok(()) => {}
            Err(Errno::EPERM) => {
                vmstate_lab::skip::skip("ptrace(2) is not allowed here");
                return None;
            }
            Err(error) => panic!("{error}"),
        }
        let held = Self(thread);
        ptrace::interrupt(thread).unwrap();
        held.await_stop();
        Some(held)
    }

    /// Stops the thread at the beginning of one of these system calls.
    pub(crate) fn at(thread: Pid, calls: &[libc::c_long]) -> Option<Self> {
        let held = Self::anywhere(thread)?;
        held.go_to(calls);
        Some(held)
    }

    /// Lets the thread continue to the beginning of one of these system calls.
    pub(crate) fn go_to(&self, calls: &[libc::c_long]) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            assert!(Instant::now() < deadline, "none of the calls {calls:?} within {TIMEOUT:?}");
            ptrace::syscall(self.0, None).unwrap();
            if self.await_stop() == Stop::Call && self.begins(calls) {
                return;
            }
        }
    }

    /// Lets the thread continue to the next beginning or end of a system call.
    pub(crate) fn go_on_to_a_call(&self) {
        ptrace::syscall(self.0, None).unwrap();
        self.await_stop();
    }

    fn begins(&self, calls: &[libc::c_long]) -> bool {
        let registers = ptrace::getregs(self.0).unwrap();
        // The return value is ENOSYS until the call is carried out (arch/x86/entry/entry_64.S).
        registers.rax as i64 == -i64::from(libc::ENOSYS) && calls.contains(&(registers.orig_rax as libc::c_long))
    }

    fn await_stop(&self) -> Stop {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match waitpid(self.0, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::StillAlive => sleep(Duration::from_millis(1)),
                WaitStatus::PtraceSyscall(_) => return Stop::Call,
                // Signals are not forwarded; those that arrive here do not matter to the test.
                WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..) => return Stop::Other,
                ended => panic!("the thread ended: {ended:?}"),
            }
            assert!(Instant::now() < deadline, "the thread does not stop within {TIMEOUT:?}");
        }
    }

    /// Waits for the thread's end, before which its process cannot end; returns the exit code, if it ended by itself.
    pub(crate) fn await_end(self) -> Option<i32> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match waitpid(self.0, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::StillAlive => sleep(Duration::from_millis(1)),
                WaitStatus::Exited(_, code) => return Some(code),
                WaitStatus::Signaled(..) => return None,
                other => panic!("{other:?}"),
            }
            assert!(Instant::now() < deadline, "the thread does not end within {TIMEOUT:?}");
        }
    }
}

#[derive(PartialEq)]
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
