//! Channels: bytes to and from the peer, and time. All I/O of the library goes through them.

mod clock;
mod connect;
mod file;
mod listener;
mod ready;
mod socket;
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub mod tls;
mod waiters;

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::codec::{Outbox, PageRun};
use crate::error::Error;
use crate::ram::{GuestRam, copied_in, copied_out};

pub use clock::MonotonicClock;
pub use file::FileChannel;
pub use listener::{Listener, Plain, Security};
pub(crate) use ready::{Wanted, wait_for_any};
pub use socket::SocketChannel;

/// A bidirectional connection to the peer. No call waits longer than its `timeout`, so that the engine can check its deadlines
/// and [`Control`](crate::migrate::Control) in between.
pub trait Channel {
    /// The file behind the channel, if there is one; the stream continues at its position. Memory in a file can have [fixed
    /// places](crate::migrate::snapshot::save_in_place). The default has none.
    fn file(&self) -> Option<&File> {
        None
    }

    /// Returns the descriptor that poll(2) can wait on to receive or to send. The default has none; the engine then looks every millisecond
    /// where it waits for something else as well.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Sends the first bytes of `bytes`, as many as the transport accepts, and returns their number; at least one if `bytes` is
    /// not empty.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if the transport accepted none within `timeout` (zero: do not wait); others if the connection
    /// failed.
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize>;

    /// Sends the first bytes of `outbox`, whose pages are in `ram`, as [`send`](Self::send) does. A channel with a file
    /// descriptor passes it to [`GuestRam::send`]; the default copies the pages.
    ///
    /// # Errors
    /// As for [`send`](Self::send); an error of guest memory is the inner error.
    fn send_outbox(&mut self, outbox: &Outbox, ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        copied_out(ram, outbox, |bytes| self.send(bytes, timeout))
    }

    /// Receives at least one byte; 0 means that the peer closed its side.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if nothing came within `timeout` (zero: do not wait).
    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize>;

    /// Called when the connection has broken in post-copy, because of `why`: waits without limit until another connection to the
    /// same peer has replaced it. The default has no other connection.
    ///
    /// # Errors
    /// There will be no other connection; the guest's missing memory stays at the peer.
    fn reconnect(&mut self, why: &Error) -> io::Result<()> {
        let _ = why;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Keeps the queue of unsent bytes on this side short from now on: in post-copy a requested page waits behind it. The default changes
    /// nothing.
    fn shorten_queue(&mut self) {}

    /// Returns a second connection to the same peer, which carries only requested pages in post-copy (parameter
    /// [`postcopy_preempt`](crate::migrate::Parameters::postcopy_preempt)). A source connects it; a destination returns, without waiting, the
    /// connection that has begun with a page. The default has none.
    ///
    /// # Errors
    /// The source cannot connect.
    fn urgent(&mut self) -> io::Result<Option<Box<dyn Channel>>> {
        Ok(None)
    }

    /// Receives into the first bytes of `runs` of `ram`, as [`receive`](Self::receive) does. A channel with a file descriptor
    /// passes it to [`GuestRam::receive`]; the default copies the pages.
    ///
    /// # Errors
    /// As for [`receive`](Self::receive); an error of guest memory is the inner error.
    fn receive_pages(&mut self, runs: &[PageRun], ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        copied_in(ram, runs, |into| self.receive(into, timeout))
    }
}

/// The time that the engine uses.
pub trait Clock {
    /// Time since some fixed moment; never decreases.
    fn now(&self) -> Duration;

    /// Waits for `duration`.
    fn sleep(&self, duration: Duration);
}
