//! A listening socket at which a destination waits for its source, and in post-copy for the same source again.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use socket2::{Domain, SockAddr, Socket, Type};

use super::Channel;
use super::connect::{SLICE, Waiting};
use super::socket::{SocketChannel, stream_socket, unfit, wait};
use super::waiters::{CANDIDATES, Waiters};
use crate::sync::lock;

/// How accepted sockets are secured.
pub trait Security: sealed::Sealed {
    /// The type of a secured connection.
    type Channel: Channel;

    /// Secures a socket, without waiting.
    ///
    /// # Errors
    /// The connection cannot be used.
    fn secure(&self, socket: SocketChannel) -> io::Result<Self::Channel>;

    /// Copies the first bytes that have arrived to `into`; they can still be received.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if nothing has arrived; [`io::ErrorKind::InvalidData`] if the peer must be refused.
    fn peek(channel: &mut Self::Channel, into: &mut [u8]) -> io::Result<usize>;

    /// True if a refused peer was sent the reason.
    fn sends_reason(channel: &Self::Channel) -> bool;
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for super::Plain {}

    #[cfg(feature = "tls")]
    impl Sealed for Option<crate::channel::tls::TlsServer> {}
}

/// Connections without TLS.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Security for Plain {
    type Channel = SocketChannel;

    fn secure(&self, socket: SocketChannel) -> io::Result<SocketChannel> {
        Ok(socket)
    }

    fn peek(channel: &mut SocketChannel, into: &mut [u8]) -> io::Result<usize> {
        channel.peek(into)
    }

    fn sends_reason(_: &SocketChannel) -> bool {
        false
    }
}

/// A socket that accepts a source and its page channels.
pub struct Listener<S: Security = Plain> {
    /// The file of a unix socket that this listener created. It is the first field, so that it is dropped before the socket is
    /// closed.
    file: Option<SocketFile>,
    socket: Socket,
    domain: Domain,
    waiting: Box<Mutex<Waiters<S::Channel>>>,
    security: S,
    on_refusal: Box<dyn Fn(&io::Error) + Send + Sync>,
}

impl<S: Security> fmt::Debug for Listener<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("socket", &self.socket).field("file", &self.file).finish_non_exhaustive()
    }
}

impl Listener {
    /// Listens at a path, for this user only. The socket's file is [removed](Self::remove_file) when the listener is dropped. A
    /// file that a killed process left is replaced.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if a process listens there, [`io::ErrorKind::AlreadyExists`] if the file is not a socket; or
    /// the path cannot be created.
    pub fn unix(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        remove_stale(&path)?;
        // Linux gives the socket's file the mode of the socket itself (`unix_bind`), so other users can connect at no moment.
        let socket = File::from(OwnedFd::from(Socket::new(Domain::UNIX, Type::STREAM, None)?));
        socket.set_permissions(Permissions::from_mode(0o600))?;
        let socket = Socket::from(OwnedFd::from(socket));
        socket.bind(&SockAddr::unix(&path)?)?;
        let listener = Self::new(socket, Domain::UNIX, Some(SocketFile::new(path)?));
        listener.socket.listen(CANDIDATES.into())?;
        listener.socket.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Listens at an address; port 0 selects a free port.
    ///
    /// # Errors
    /// As for [`TcpListener::bind`].
    pub fn tcp(address: impl ToSocketAddrs) -> io::Result<Self> {
        let socket = Socket::from(TcpListener::bind(address)?);
        socket.set_nonblocking(true)?;
        Ok(Self::new(socket, Domain::IPV4, None))
    }

    /// Listens at a port of the machine's address `cid`; `u32::MAX` means all of its addresses (vsock(7)).
    ///
    /// # Errors
    /// The system's error: the machine has no such address, or the port is taken.
    pub fn vsock(cid: u32, port: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
        socket.bind(&SockAddr::vsock(cid, port))?;
        socket.listen(CANDIDATES.into())?;
        socket.set_nonblocking(true)?;
        Ok(Self::new(socket, Domain::VSOCK, None))
    }

    /// Takes over a unix, TCP or vsock socket that already listens, such as one from a service manager. Its file and mode stay as
    /// they are.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if it is another socket, or not a socket.
    pub fn listening(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let (domain, socket) = stream_socket(socket.into())?;
        if !socket.is_listener()? {
            return Err(unfit("it is a socket that does not listen"));
        }
        socket.set_nonblocking(true)?;
        Ok(Self::new(socket, domain, None))
    }

    fn new(socket: Socket, domain: Domain, file: Option<SocketFile>) -> Self {
        Self { socket, domain, file, waiting: Box::default(), security: Plain, on_refusal: Box::new(|_| {}) }
    }

    /// Secures each connection from now on with `security`.
    #[cfg(feature = "tls")]
    pub(super) fn secured<S: Security>(self, security: S) -> Listener<S> {
        let Self { socket, domain, file, on_refusal, .. } = self;
        Listener { socket, domain, file, waiting: Box::default(), security, on_refusal }
    }
}

impl<S: Security> Listener<S> {
    /// Calls `report` with the reason each time that a connection is refused because of its first bytes: without TLS where TLS is
    /// required, with TLS where it is not configured, or with a certificate that is refused. Connections that close or stay
    /// silent are not reported.
    #[must_use]
    pub fn on_refusal(mut self, report: impl Fn(&io::Error) + Send + Sync + 'static) -> Self {
        self.on_refusal = Box::new(report);
        self
    }

    /// Removes a unix socket's file, unless another process has created one there since: no further peer can connect. Existing
    /// connections stay.
    pub fn remove_file(&self) {
        if let Some(file) = &self.file {
            file.remove();
        }
    }

    /// How each connection is secured.
    pub fn security(&self) -> &S {
        &self.security
    }

    /// The address of a TCP listener.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok().and_then(|address| address.as_socket())
    }

    /// Waits for any connection; a TLS handshake is not awaited.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if there was none within `timeout`.
    pub fn accept(&self, timeout: Duration) -> io::Result<S::Channel> {
        let waiting = Waiting::new(timeout, &|| true);
        loop {
            let slice = waiting.slice()?;
            match self.socket.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&self.socket, PollFlags::POLLIN, slice)?;
                }
                accepted => return self.connection(accepted?.0),
            }
        }
    }

    /// Waits for a source: the first connection that begins with a stream. Page channels are kept for
    /// [`accept_pages`](Self::accept_pages). Other connections are dropped, at once if they begin with other bytes or close,
    /// after 10 s if they stay silent; none of them delays the source.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionAborted`] within 20 ms after `go_on` returns false; an error that makes the listening socket
    /// unusable.
    pub fn accept_source(&self, go_on: &dyn Fn() -> bool) -> io::Result<S::Channel> {
        self.accept_one(&Waiting::new(Duration::MAX, go_on), |waiters| waiters.streams.pop_front())
    }

    /// Waits for a page channel, as [`accept_source`](Self::accept_source) does for a source; sources are kept. The reader of the
    /// channel must check to which migration it belongs.
    ///
    /// # Errors
    /// As for [`accept_source`](Self::accept_source).
    pub fn accept_pages(&self, go_on: &dyn Fn() -> bool) -> io::Result<S::Channel> {
        self.accept_one(&Waiting::new(Duration::MAX, go_on), |waiters| waiters.pages.pop_front())
    }

    /// Waits for a source whose connection broke in post-copy: the first connection that begins with the bytes of a resumption.
    /// Others are kept or dropped as in [`accept_source`](Self::accept_source).
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if there was none within `timeout`; an error that makes the listening socket unusable.
    pub fn accept_resuming(&self, timeout: Duration) -> io::Result<S::Channel> {
        let taken = |waiters: &mut Waiters<S::Channel>| waiters.resuming.pop_front().map(|(connection, _)| connection);
        self.accept_one(&Waiting::new(timeout, &|| true), taken)
    }

    /// Returns the connection whose first record is a page requested in post-copy, if there is one; does not wait. From the first call until a
    /// connection is found, connections that send nothing are kept.
    ///
    /// # Errors
    /// The listening socket is unusable.
    pub fn accept_urgent(&self) -> io::Result<Option<S::Channel>> {
        let found = self.look(|waiters| {
            let found = waiters.urgent.pop_front().map(|(connection, _)| connection);
            waiters.awaits_urgent = found.is_none();
            found
        });
        found.map(|Attempt { found, .. }| found)
    }

    fn accept_one(
        &self,
        waiting: &Waiting<'_>,
        wanted: impl Fn(&mut Waiters<S::Channel>) -> Option<S::Channel>,
    ) -> io::Result<S::Channel> {
        loop {
            let slice = waiting.slice()?;
            let Attempt { found, accepted, has_candidates } = self.look(&wanted)?;
            match (found, accepted) {
                (Some(connection), _) => return Ok(connection),
                (None, Accepted::Connection) => {}
                // Candidates are polled once in each slice: waiting for all of them would wake again and again for bytes that are
                // only peeked at.
                (None, Accepted::NonePending) => {
                    wait(&self.socket, PollFlags::POLLIN, if has_candidates { SLICE / 20 } else { slice })?;
                }
                (None, Accepted::Failed) => thread::sleep(slice),
            }
        }
    }

    /// Accepts a pending connection, sorts the candidates by their first bytes, and takes the `wanted` one. Does not wait.
    ///
    /// # Errors
    /// The listening socket is unusable.
    fn look(&self, wanted: impl Fn(&mut Waiters<S::Channel>) -> Option<S::Channel>) -> io::Result<Attempt<S::Channel>> {
        let mut waiters = lock(&self.waiting);
        let accepted = match self.socket.accept() {
            Ok((socket, _)) => {
                // A connection that has already ended is ignored.
                if let Ok(connection) = self.connection(socket) {
                    waiters.add(connection);
                }
                Accepted::Connection
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Accepted::NonePending,
            Err(error) if is_fatal(&error) => return Err(error),
            Err(_) => Accepted::Failed,
        };
        let refusals = waiters.sort(S::peek, S::sends_reason);
        let found = wanted(&mut waiters);
        let has_candidates = !waiters.candidates.is_empty();
        drop(waiters);
        refusals.iter().for_each(&self.on_refusal);
        Ok(Attempt { found, accepted, has_candidates })
    }

    fn connection(&self, socket: Socket) -> io::Result<S::Channel> {
        self.security.secure(SocketChannel::of(self.domain, socket)?)
    }
}

/// Result of one attempt to accept a connection.
struct Attempt<C> {
    /// The wanted connection.
    found: Option<C>,
    accepted: Accepted,
    /// Some connections have not sent their first bytes.
    has_candidates: bool,
}

/// What accept(2) returned.
enum Accepted {
    Connection,
    NonePending,
    /// An error that passes.
    Failed,
}

/// True if the listening socket itself is unusable. All other errors pass: accept(2) also reports errors of single connections or
/// of the network, and temporary lack of resources such as descriptors.
fn is_fatal(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EBADF | Errno::EFAULT | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP))
}

/// The file of a socket, identified by its inode besides its name. While the socket is open, the kernel gives the inode to no
/// other file.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    fn new(path: PathBuf) -> io::Result<Self> {
        let inode = inode(&path)?;
        Ok(Self { path, inode })
    }

    fn remove(&self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The device and inode number of a file.
fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Removes the file of a socket at which no process listens.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file exists and is no socket"))
        }
        Ok(_) => {
            // Without waiting: a socket with a full backlog is in use, too.
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            match socket.connect(&SockAddr::unix(path)?) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
                Ok(()) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Errors that accept(2) says to treat like EAGAIN, errors of missing resources, and a closed socket.
    #[test]
    fn only_an_unusable_socket_ends_the_wait() {
        use Errno::*;
        for errno in [ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENETDOWN, EPROTO, EHOSTUNREACH, EPERM, EINTR] {
            assert!(!is_fatal(&io::Error::from(errno)), "{errno}");
        }
        for errno in [EBADF, EINVAL, ENOTSOCK] {
            assert!(is_fatal(&io::Error::from(errno)), "{errno}");
        }
    }
}
