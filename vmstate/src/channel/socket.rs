//! Unix and TCP sockets.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::Channel;

/// How long a peer may take nothing before the connection counts as broken. During the switch-over the guest is paused
/// for it.
const STALL: Duration = Duration::from_secs(10);
/// A peer's host that is gone is noticed after so long without an answer to a probe.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A connected socket.
#[derive(Debug)]
pub struct SocketChannel {
    socket: Socket,
}

impl SocketChannel {
    /// Connects to a listening unix socket.
    ///
    /// # Errors
    /// As [`UnixStream::connect`].
    pub fn connect_unix(path: impl AsRef<Path>) -> io::Result<Self> {
        UnixStream::connect(path)?.try_into()
    }

    /// Connects to the first address that answers within `timeout`.
    ///
    /// # Errors
    /// The last address's, or that of the name look-up.
    pub fn connect_tcp(address: impl ToSocketAddrs, timeout: Duration) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, timeout) {
                Ok(stream) => return stream.try_into(),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn new(socket: Socket) -> io::Result<Self> {
        socket.set_write_timeout(Some(STALL))?;
        Ok(Self { socket })
    }
}

impl TryFrom<UnixStream> for SocketChannel {
    type Error = io::Error;

    fn try_from(stream: UnixStream) -> io::Result<Self> {
        Self::new(stream.into())
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
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.socket.write_all(bytes) {
            // What a write timeout looks like (socket(7), SO_SNDTIMEO).
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let message = format!("the peer took nothing for {} s", STALL.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            }
            result => result,
        }
    }

    fn receive(&mut self, into: &mut [u8], timeout: Option<Duration>) -> io::Result<usize> {
        let received = if timeout == Some(Duration::ZERO) {
            self.socket.set_nonblocking(true)?;
            let received = self.socket.read(into);
            self.socket.set_nonblocking(false)?;
            received
        } else {
            self.socket.set_read_timeout(timeout)?;
            self.socket.read(into)
        };
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            received => received,
        }
    }
}

/// A socket that waits for one source.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// Removed when the listener goes.
    path: Option<PathBuf>,
}

impl Listener {
    /// Listens at a path that does not exist yet, for this user only. It goes when the listener does.
    ///
    /// # Errors
    /// The path exists, or cannot be made.
    pub fn unix(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        // Linux gives the socket's file the mode of the socket itself (`unix_bind`), so there is no moment when others
        // may connect.
        let socket = File::from(OwnedFd::from(Socket::new(Domain::UNIX, Type::STREAM, None)?));
        socket.set_permissions(Permissions::from_mode(0o600))?;
        let socket = Socket::from(OwnedFd::from(socket));
        socket.bind(&SockAddr::unix(&path)?)?;
        socket.listen(1)?;
        Ok(Self { socket, path: Some(path) })
    }

    /// Listens at an address; port 0 is any free one.
    ///
    /// # Errors
    /// As [`TcpListener::bind`].
    pub fn tcp(address: impl ToSocketAddrs) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address)?.into(), path: None })
    }

    /// Where a TCP listener listens.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok().and_then(|address| address.as_socket())
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if none came within `timeout` (`None`: wait without limit).
    pub fn accept(&self, timeout: Option<Duration>) -> io::Result<SocketChannel> {
        // On Linux a receive timeout also bounds accept (socket(7), SO_RCVTIMEO).
        self.socket.set_read_timeout(timeout)?;
        match self.socket.accept() {
            Ok((socket, _)) if self.path.is_some() => UnixStream::from(socket).try_into(),
            Ok((socket, _)) => TcpStream::from(socket).try_into(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}
