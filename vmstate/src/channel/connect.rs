//! Connecting to a destination, with a timeout and a way to cancel the wait at any moment.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use socket2::{Domain, SockAddr, Socket, Type};

use super::socket::{SocketChannel, wait};

/// How often a wait calls `go_on`.
pub(super) const SLICE: Duration = Duration::from_millis(20);

impl SocketChannel {
    /// Connects to a listening unix socket; waits while the listener's backlog is full.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] after `timeout`, [`io::ErrorKind::ConnectionAborted`] within 20 ms after `go_on` returns
    /// false; else as for [`UnixStream::connect`].
    pub fn connect_unix(path: impl AsRef<Path>, timeout: Duration, go_on: &dyn Fn() -> bool) -> io::Result<Self> {
        let address = SockAddr::unix(path)?;
        let waiting = Waiting::new(timeout, go_on);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        loop {
            match socket.connect(&address) {
                // The backlog is full (unix(7)); the kernel does not signal when it has room again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(waiting.slice()?),
                Err(error) => return Err(error),
                Ok(()) => return UnixStream::from(socket).try_into(),
            }
        }
    }

    /// Connects to the first address of `address` that accepts.
    ///
    /// # Errors
    /// As for [`connect_unix`](Self::connect_unix); else the error of the last address, or of the name look-up.
    pub fn connect_tcp(address: &str, timeout: Duration, go_on: &dyn Fn() -> bool) -> io::Result<Self> {
        let waiting = Waiting::new(timeout, go_on);
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in look_up(address, &waiting)? {
            match connect(Domain::for_address(address), &address.into(), &waiting) {
                Err(error) if !waiting.is_over() => last = error,
                result => return result,
            }
        }
        Err(last)
    }

    /// Connects to a port of the virtual machine or host `cid` (vsock(7)).
    ///
    /// # Errors
    /// As for [`connect_unix`](Self::connect_unix).
    pub fn connect_vsock(cid: u32, port: u32, timeout: Duration, go_on: &dyn Fn() -> bool) -> io::Result<Self> {
        connect(Domain::VSOCK, &SockAddr::vsock(cid, port), &Waiting::new(timeout, go_on))
    }
}

/// A wait that ends at a deadline or when it is cancelled.
pub(super) struct Waiting<'a> {
    deadline: Option<Instant>,
    go_on: &'a dyn Fn() -> bool,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(timeout: Duration, go_on: &'a dyn Fn() -> bool) -> Self {
        // Without a deadline if the timeout exceeds the range of the clock.
        Self { deadline: Instant::now().checked_add(timeout), go_on }
    }

    /// How long to sleep before the next attempt; an error if the wait is over.
    pub(super) fn slice(&self) -> io::Result<Duration> {
        if !(self.go_on)() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "called off"));
        }
        let left = self.deadline.map_or(SLICE, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left.min(SLICE)) }
    }

    fn is_over(&self) -> bool {
        self.slice().is_err()
    }
}

fn connect(domain: Domain, address: &SockAddr, waiting: &Waiting<'_>) -> io::Result<SocketChannel> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(address) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => {
            while !wait(&socket, PollFlags::POLLOUT, waiting.slice()?)? {}
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
        }
        result => result?,
    }
    SocketChannel::of(domain, socket)
}

/// Looks up the addresses of `host:port`. The system's look-up can be neither bounded nor cancelled, so it runs on a thread of
/// its own, which is abandoned if the wait ends first.
fn look_up(name: &str, waiting: &Waiting<'_>) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let (found, addresses) = mpsc::channel();
    let name = name.to_owned();
    thread::Builder::new().name("look-up".into()).spawn(move || {
        // The send fails if the wait is over; the result is then not needed.
        let _ = found.send(name.to_socket_addrs().map(Vec::from_iter));
    })?;
    loop {
        match addresses.recv_timeout(waiting.slice()?) {
            Ok(addresses) => return addresses,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(io::Error::other("the name look-up failed")),
        }
    }
}
