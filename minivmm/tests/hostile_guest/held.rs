//! A thread of another process that gets no further: what a call to a disk that does not answer, or a host without time for
//! it, makes of a thread. The test is its tracer (ptrace(2)).

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::process::PATIENCE;

/// The thread goes on when this is dropped. All calls are for the test's thread that has made it.
pub(crate) struct Held(Pid);

impl Held {
    /// Stops the thread wherever it is. `None` after saying that the test is skipped.
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

    /// Stops the thread where it begins one of these system calls.
    pub(crate) fn at(thread: Pid, calls: &[libc::c_long]) -> Option<Self> {
        let held = Self::anywhere(thread)?;
        held.go_to(calls);
        Some(held)
    }

    /// Lets it go on to where it begins one of these system calls.
    pub(crate) fn go_to(&self, calls: &[libc::c_long]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "none of the calls {calls:?} within {PATIENCE:?}");
            ptrace::syscall(self.0, None).unwrap();
            if self.await_stop() == Stop::Call && self.begins(calls) {
                return;
            }
        }
    }

    /// Lets it go on to the next call that it begins or has done.
    pub(crate) fn go_on_to_a_call(&self) {
        ptrace::syscall(self.0, None).unwrap();
        self.await_stop();
    }

    fn begins(&self, calls: &[libc::c_long]) -> bool {
        let registers = ptrace::getregs(self.0).unwrap();
        // What a call returns is ENOSYS until it is carried out (arch/x86/entry/entry_64.S).
        registers.rax as i64 == -i64::from(libc::ENOSYS) && calls.contains(&(registers.orig_rax as libc::c_long))
    }

    fn await_stop(&self) -> Stop {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match waitpid(self.0, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::StillAlive => sleep(Duration::from_millis(1)),
                WaitStatus::PtraceSyscall(_) => return Stop::Call,
                // A signal would have to be handed on; those that come here are the sender's own affair.
                WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..) => return Stop::Other,
                ended => panic!("the thread ended: {ended:?}"),
            }
            assert!(Instant::now() < deadline, "the thread does not stop within {PATIENCE:?}");
        }
    }

    /// Waits for its end, which its process does not have before; the code, if it ended by itself.
    pub(crate) fn await_end(self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match waitpid(self.0, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::StillAlive => sleep(Duration::from_millis(1)),
                WaitStatus::Exited(_, code) => return Some(code),
                WaitStatus::Signaled(..) => return None,
                other => panic!("{other:?}"),
            }
            assert!(Instant::now() < deadline, "the thread does not end within {PATIENCE:?}");
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
        // Its process may have ended.
        let _ = ptrace::detach(self.0, None);
    }
}
