//! A connected socket: of unix, TCP or vsock.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::time::TimeSpec;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use super::Channel;
use crate::codec::{Outbox, PageRun};
use crate::ram::GuestRam;

/// A peer's host that is gone is noticed after so long without an answer to a probe.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Bytes that a unix socket holds for the peer, before the kernel doubles them for what it needs itself. By default it holds some 200
/// KiB, which both sides wait for in turns. What the system allows (`net.core.wmem_max`) may be less, and is no reason to fail.
const UNIX_BUFFER: usize = 1 << 20;

/// A connected socket. It never blocks, but waits with `ppoll`.
#[derive(Debug)]
pub struct SocketChannel {
    socket: Socket,
}

/// For what else goes over the socket before the stream, as descriptors do. It does not block.
impl AsFd for SocketChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl SocketChannel {
    fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// A stream socket that is connected already, as one that another process made.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if it is another one, or none.
    pub fn connected(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let (domain, socket) = stream_socket(socket.into())?;
        if socket.is_listener()? {
            return Err(unfit("it is a socket that listens"));
        }
        Self::of(domain, socket)
    }

    /// A stream socket of this domain.
    pub(super) fn of(domain: Domain, socket: Socket) -> io::Result<Self> {
        match domain {
            Domain::UNIX => UnixStream::from(socket).try_into(),
            Domain::VSOCK => Self::new(socket),
            _ => TcpStream::from(socket).try_into(),
        }
    }

    /// The first bytes that have come, without taking them.
    pub(super) fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        match recv(self.socket.as_raw_fd(), into, MsgFlags::MSG_PEEK) {
            Err(Errno::EAGAIN | Errno::EINTR) => Err(io::ErrorKind::TimedOut.into()),
            peeked => Ok(peeked?),
        }
    }
}

/// A stream socket that somebody else has made, with its domain.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if it is another one, or none.
pub(super) fn stream_socket(socket: OwnedFd) -> io::Result<(Domain, Socket)> {
    let socket = Socket::from(socket);
    let domain = socket.domain().map_err(|_| unfit("it is no socket"))?;
    let is_known = [Domain::UNIX, Domain::IPV4, Domain::IPV6, Domain::VSOCK].contains(&domain);
    if !is_known || socket.r#type()? != Type::STREAM {
        return Err(unfit("it is no stream socket of unix, TCP or vsock"));
    }
    Ok((domain, socket))
}

/// A socket that cannot be used for what it was given for.
pub(super) fn unfit(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Repeats `attempt` on `end` until it does not say `WouldBlock` any more, or `timeout` has passed.
pub(super) fn repeat<E: AsFd, T>(
    end: &mut E,
    ready: PollFlags,
    timeout: Duration,
    mut attempt: impl FnMut(&mut E) -> io::Result<T>,
) -> io::Result<T> {
    let begun = Instant::now();
    loop {
        match attempt(end) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => return result,
        }
        let left = timeout.saturating_sub(begun.elapsed());
        if left.is_zero() || !wait(end, ready, left)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// Waits until `socket` is ready; false if it was not within `timeout`.
pub(super) fn wait(socket: &impl AsFd, ready: PollFlags, timeout: Duration) -> io::Result<bool> {
    // A day: what is longer does not fit every kernel's time_t, and no wait of the engine is.
    let timeout = timeout.min(Duration::from_secs(24 * 60 * 60));
    let mut polled = [PollFd::new(socket.as_fd(), ready)];
    match ppoll(&mut polled, Some(TimeSpec::from_duration(timeout)), None) {
        Ok(count) => Ok(count > 0),
        // A signal: the caller looks at the time and waits again.
        Err(Errno::EINTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

impl TryFrom<UnixStream> for SocketChannel {
    type Error = io::Error;

    fn try_from(stream: UnixStream) -> io::Result<Self> {
        let socket = Socket::from(stream);
        socket.set_send_buffer_size(UNIX_BUFFER)?;
        Self::new(socket)
    }
}

impl TryFrom<TcpStream> for SocketChannel {
    type Error = io::Error;

    fn try_from(stream: TcpStream) -> io::Result<Self> {
        // Questions and answers are a few bytes each, and the guest waits for them.
        stream.set_nodelay(true)?;
        let probes = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(1)).with_retries(5);
        SockRef::from(&stream).set_tcp_keepalive(&probes)?;
        Self::new(stream.into())
    }
}

impl Channel for SocketChannel {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        repeat(&mut self.socket, PollFlags::POLLOUT, timeout, |socket| socket.write(bytes))
    }

    fn send_outbox(&mut self, outbox: &Outbox, ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        repeat(&mut self.socket, PollFlags::POLLOUT, timeout, |socket| ram.send(socket.as_fd(), outbox))
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        repeat(&mut self.socket, PollFlags::POLLIN, timeout, |socket| socket.read(into))
    }

    fn receive_pages(&mut self, runs: &[PageRun], ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        repeat(&mut self.socket, PollFlags::POLLIN, timeout, |socket| ram.receive(socket.as_fd(), runs))
    }
}
