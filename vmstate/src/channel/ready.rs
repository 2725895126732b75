//! A wait until one of several descriptors is ready.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

/// A descriptor, and the events that end a wait for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) descriptor: BorrowedFd<'a>,
    /// The wait ends when bytes can be received.
    pub(crate) to_receive: bool,
    /// The wait ends when bytes can be sent.
    pub(crate) to_send: bool,
}

/// Waits until one of `wanted` is ready; false if none was within `timeout`.
///
/// # Errors
/// Errors of poll(2). A signal is no error: it ends the wait.
pub(crate) fn wait_for_any(wanted: &[Wanted<'_>], timeout: Duration) -> io::Result<bool> {
    // At most a day: a longer timeout may not fit the kernel's `time_t`, and the engine needs none.
    let timeout = timeout.min(Duration::from_secs(24 * 60 * 60));
    let polled = wanted.iter().map(|wanted| {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, wanted.to_receive);
        flags.set(PollFlags::POLLOUT, wanted.to_send);
        PollFd::new(wanted.descriptor, flags)
    });
    match ppoll(&mut polled.collect::<Vec<_>>(), Some(TimeSpec::from_duration(timeout)), None) {
        Ok(count) => Ok(count > 0),
        // Interrupted by a signal: the caller checks the time and waits again.
        Err(Errno::EINTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}
