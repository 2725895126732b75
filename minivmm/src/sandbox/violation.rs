//! Handles forbidden system calls: builds with debug assertions print the call and the thread; in every build SIGSYS ends the
//! process.

use std::io::{self, Write};
use std::os::fd::AsFd;

use libc::{c_int, c_void, siginfo_t};
use nix::unistd;
use seccompiler::SeccompAction;
use syscalls::Sysno;
use vmm_sys_util::signal::register_signal_handler;

use super::KIND;

/// What happens when a thread makes a forbidden system call. The process ends in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnViolation {
    /// A signal handler names the call before the process ends.
    Report,
    /// The process ends at once, without running any more code.
    Kill,
}

impl OnViolation {
    /// Builds with debug assertions name the call.
    pub const OF_THIS_BUILD: Self = if cfg!(debug_assertions) { Self::Report } else { Self::Kill };

    pub(super) fn action(self) -> SeccompAction {
        match self {
            Self::Report => SeccompAction::Trap,
            Self::Kill => SeccompAction::KillProcess,
        }
    }

    /// Installs the signal handler, if one is needed.
    ///
    /// # Errors
    /// The system refuses it.
    pub(super) fn prepare(self) -> io::Result<()> {
        match self {
            Self::Report => register_signal_handler(libc::SIGSYS, report)
                .map_err(|errno| io::Error::from_raw_os_error(errno.errno())),
            Self::Kill => Ok(()),
        }
    }
}

/// Reports the call. Does only what a signal handler may (signal-safety(7)): a write from the stack.
extern "C" fn report(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    let number = call_number(info);
    let kind = KIND.get().map_or("starting", |kind| kind.name());
    let name = usize::try_from(number).ok().and_then(Sysno::new).map_or("unknown", |call| call.name());
    let mut line = [0; 160];
    let mut rest = &mut line[..];
    let _ = writeln!(
        rest,
        "minivmm: sandbox: a thread of kind {kind} made the system call {name} ({number}), which it may not"
    );
    let left = rest.len();
    let _ = unistd::write(io::stderr().as_fd(), &line[..line.len() - left]);
    // No filter allows this call. Since the signal is blocked in its handler, the kernel ends the process
    // (`force_sig_info_to_task`, kernel/signal.c).
    let _ = unistd::getppid();
}

/// `si_syscall` of SIGSYS (sigaction(2)), which the crate libc has no name for: behind `si_signo`, `si_errno`, `si_code`, padding
/// and `si_call_addr`.
fn call_number(info: *const siginfo_t) -> c_int {
    const PLACE: usize = 24;
    const { assert!(PLACE + size_of::<c_int>() <= size_of::<siginfo_t>()) };
    // SAFETY: the kernel gives a handler a whole `siginfo_t`, and the place is inside and aligned, for `siginfo_t` is.
    let place = unsafe { info.byte_add(PLACE) };
    // SAFETY: as above; any four bytes are a number.
    unsafe { place.cast::<c_int>().read() }
}
