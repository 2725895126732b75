//! A connected unix, TCP or vsock socket.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use super::{Channel, Wanted, wait_for_any};
use crate::codec::{Outbox, PageRun};
use crate::ram::GuestRam;

/// Time without an answer to a probe after which the peer's host counts as lost.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Send buffer of a unix socket in bytes, before the kernel doubles it for its own needs. The default is some 200 KiB, which
/// makes both sides wait for each other. The system's limit (`net.core.wmem_max`) may be lower, which is not an error.
const UNIX_BUFFER: usize = 1 << 20;

/// Unsent bytes of a TCP socket in post-copy.
const SHORT_QUEUE: u32 = 64 << 10;

/// Send buffer of a unix socket in post-copy, before the kernel doubles it. No wire is between its ends; with a shorter one the two
/// processes take turns more often, which costs more time than requested pages gain.
const SHORT_UNIX_BUFFER: usize = 256 << 10;

/// A connected socket. It never blocks, but waits with `ppoll`.
#[derive(Debug)]
pub struct SocketChannel {
    socket: Socket,
}

/// For data that is exchanged over the socket before the stream, such as file descriptors. The socket is non-blocking.
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

    /// Takes over a stream socket that is connected already, such as one that another process created.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if it is another socket, or not a socket.
    pub fn connected(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let (domain, socket) = stream_socket(socket.into())?;
        if socket.is_listener()? {
            return Err(unfit("it is a socket that listens"));
        }
        Self::of(domain, socket)
    }

    /// Takes over a stream socket of this domain.
    pub(super) fn of(domain: Domain, socket: Socket) -> io::Result<Self> {
        match domain {
            Domain::UNIX => UnixStream::from(socket).try_into(),
            Domain::VSOCK => Self::new(socket),
            _ => TcpStream::from(socket).try_into(),
        }
    }

    /// Copies the first bytes that have arrived, without consuming them.
    pub(super) fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        match recv(self.socket.as_raw_fd(), into, MsgFlags::MSG_PEEK) {
            Err(Errno::EAGAIN | Errno::EINTR) => Err(io::ErrorKind::TimedOut.into()),
            peeked => Ok(peeked?),
        }
    }
}

/// A stream socket from outside, with its domain.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if it is another socket, or not a socket.
pub(super) fn stream_socket(socket: OwnedFd) -> io::Result<(Domain, Socket)> {
    let socket = Socket::from(socket);
    let domain = socket.domain().map_err(|_| unfit("it is no socket"))?;
    let is_known = [Domain::UNIX, Domain::IPV4, Domain::IPV6, Domain::VSOCK].contains(&domain);
    if !is_known || socket.r#type()? != Type::STREAM {
        return Err(unfit("it is no stream socket of unix, TCP or vsock"));
    }
    Ok((domain, socket))
}

/// The error for a socket that does not fit its purpose.
pub(super) fn unfit(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Repeats `attempt` on `end` until it returns something else than `WouldBlock`, or `timeout` has passed.
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
    let (to_receive, to_send) = (ready.contains(PollFlags::POLLIN), ready.contains(PollFlags::POLLOUT));
    wait_for_any(&[Wanted { descriptor: socket.as_fd(), to_receive, to_send }], timeout)
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
        // Requests and answers are a few bytes each, and the guest waits for them.
        stream.set_nodelay(true)?;
        let probes = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(1)).with_retries(5);
        SockRef::from(&stream).set_tcp_keepalive(&probes)?;
        Self::new(stream.into())
    }
}

impl Channel for SocketChannel {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn shorten_queue(&mut self) {
        // A socket that refuses keeps its longer queue.
        let _ = match self.socket.domain() {
            Ok(Domain::UNIX) => self.socket.set_send_buffer_size(SHORT_UNIX_BUFFER),
            // Bytes in flight do not count, so the throughput stays the same (`tcp_stream_memory_free`, include/net/tcp.h).
            _ => self.socket.set_tcp_notsent_lowat(SHORT_QUEUE),
        };
    }

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
