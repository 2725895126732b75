//! The wire: bytes to and from the peer, and time. The only I/O of the library.

mod clock;
mod file;
mod socket;

use std::io;
use std::time::Duration;

pub use clock::MonotonicClock;
pub use file::FileChannel;
pub use socket::{Listener, SocketChannel};

/// A connection to the peer, both ways.
pub trait Channel {
    /// Sends all of `bytes`, in order.
    ///
    /// # Errors
    /// The peer is gone, or took nothing for longer than the transport allows.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Receives at least one byte; 0 means that the peer closed its side.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if nothing came within `timeout` (`None`: wait without limit; zero: do not wait).
    fn receive(&mut self, into: &mut [u8], timeout: Option<Duration>) -> io::Result<usize>;
}

/// Time as the engine sees it.
pub trait Clock {
    /// Time since some fixed moment; never goes back.
    fn now(&self) -> Duration;

    /// Waits.
    fn sleep(&self, duration: Duration);
}
