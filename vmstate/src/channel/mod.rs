//! The wire: bytes to and from the peer, and time. The only I/O of the library.

mod clock;
mod connect;
mod file;
mod listener;
mod socket;
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub mod tls;

use std::fs::File;
use std::io;
use std::time::Duration;

use crate::codec::{Outbox, PageRun};
use crate::error::Error;
use crate::ram::{GuestRam, copied_in, copied_out};

pub use clock::MonotonicClock;
pub use file::FileChannel;
pub use listener::{Listener, Plain, Security};
pub use socket::SocketChannel;

/// A connection to the peer, both ways. No call waits for longer than its `timeout`, so that the engine can look at its
/// deadlines and at [`Control`](crate::migrate::Control) in between.
pub trait Channel {
    /// The file behind it, whose position is where the stream goes on: memory in it can have [places of its
    /// own](crate::migrate::snapshot::save_in_place). As it stands here, there is none.
    fn file(&self) -> Option<&File> {
        None
    }

    /// Sends the first bytes of `bytes`, as many as the transport takes, and returns how many; at least one if `bytes`
    /// is not empty.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if the transport took none within `timeout` (zero: do not wait); others if the peer is
    /// gone.
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize>;

    /// Sends the first bytes of `outbox`, whose pages are in `ram`, as [`send`](Self::send) does. A channel that has a descriptor
    /// gives it to [`GuestRam::send`]; as it stands here, the pages are copied.
    ///
    /// # Errors
    /// As [`send`](Self::send); what memory refuses, as the error within.
    fn send_outbox(&mut self, outbox: &Outbox, ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        copied_out(ram, outbox, |bytes| self.send(bytes, timeout))
    }

    /// Receives at least one byte; 0 means that the peer closed its side.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if nothing came within `timeout` (zero: do not wait).
    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize>;

    /// The connection has broken in post-copy, because of `why`: waits for as long as it takes until another one to the same peer is in its
    /// place. As it stands here, there is none.
    ///
    /// # Errors
    /// No other connection will come, and the guest's memory stays where it is.
    fn reconnect(&mut self, why: &Error) -> io::Result<()> {
        let _ = why;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Receives into the first bytes of `runs` of `ram`, as [`receive`](Self::receive) does. A channel that has a descriptor gives it
    /// to [`GuestRam::receive`]; as it stands here, the pages are copied.
    ///
    /// # Errors
    /// As [`receive`](Self::receive); what memory refuses, as the error within.
    fn receive_pages(&mut self, runs: &[PageRun], ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        copied_in(ram, runs, |into| self.receive(into, timeout))
    }
}

/// Time as the engine sees it.
pub trait Clock {
    /// Time since some fixed moment; never goes back.
    fn now(&self) -> Duration;

    /// Waits.
    fn sleep(&self, duration: Duration);
}
