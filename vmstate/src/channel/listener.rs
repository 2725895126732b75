//! A socket at which a destination waits for its source.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, SockAddr, Socket, Type};

use super::connect::{SLICE, Waiting};
use super::socket::{SocketChannel, wait};

/// The first bytes of a stream (`QEMU_VM_FILE_MAGIC`, migration/savevm.c).
const MAGIC: [u8; 4] = *b"QEVM";
/// Connections that have not said anything yet, at most; the oldest goes when another comes.
const CANDIDATES: u8 = 16;
/// A connection that has not begun a stream after so long is dropped.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// A socket that waits for one source.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// Of unix, not of TCP.
    is_unix: bool,
    /// Made with a unix socket.
    file: Option<SocketFile>,
}

impl Listener {
    /// Listens at a path, for this user only. Its file is [removed](Self::remove_file) when the listener goes. One that is left of
    /// a process that was killed is replaced.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if somebody listens there, [`io::ErrorKind::AlreadyExists`] if the file is no socket; or the
    /// path cannot be made.
    pub fn unix(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        remove_stale(&path)?;
        // Linux gives the socket's file the mode of the socket itself (`unix_bind`), so there is no moment when others
        // may connect.
        let socket = File::from(OwnedFd::from(Socket::new(Domain::UNIX, Type::STREAM, None)?));
        socket.set_permissions(Permissions::from_mode(0o600))?;
        let socket = Socket::from(OwnedFd::from(socket));
        socket.bind(&SockAddr::unix(&path)?)?;
        let listener = Self { socket, is_unix: true, file: Some(SocketFile::new(path)?) };
        listener.socket.listen(CANDIDATES.into())?;
        listener.socket.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Listens at an address; port 0 is any free one.
    ///
    /// # Errors
    /// As [`TcpListener::bind`].
    pub fn tcp(address: impl ToSocketAddrs) -> io::Result<Self> {
        let socket = Socket::from(TcpListener::bind(address)?);
        socket.set_nonblocking(true)?;
        Ok(Self { socket, is_unix: false, file: None })
    }

    /// A unix or TCP socket that listens already, as one that a service manager made. Its file and mode stay as they are.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if it is another socket, or none.
    pub fn listening(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let socket = Socket::from(socket.into());
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let domain = socket.domain().map_err(|_| wrong("it is no socket"))?;
        if ![Domain::UNIX, Domain::IPV4, Domain::IPV6].contains(&domain) || socket.r#type()? != Type::STREAM {
            return Err(wrong("it is no stream socket of unix or TCP"));
        }
        if !socket.is_listener()? {
            return Err(wrong("it is a socket that does not listen"));
        }
        socket.set_nonblocking(true)?;
        Ok(Self { socket, is_unix: domain == Domain::UNIX, file: None })
    }

    /// Removes a unix socket's file, unless somebody else has put one there since: nobody finds the way here any more. Who is
    /// connected stays.
    pub fn remove_file(&self) {
        if let Some(file) = &self.file {
            file.remove();
        }
    }

    /// Where a TCP listener listens.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok().and_then(|address| address.as_socket())
    }

    /// Waits for a connection, whoever it is.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if none came within `timeout`.
    pub fn accept(&self, timeout: Duration) -> io::Result<SocketChannel> {
        let waiting = Waiting::new(timeout, &|| true);
        loop {
            let slice = waiting.slice()?;
            match self.socket.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&self.socket, PollFlags::POLLIN, slice)?;
                }
                accepted => return self.channel(accepted?.0),
            }
        }
    }

    /// Waits for a source: the first connection whose first bytes are those of a stream. Others are dropped, at once if
    /// they begin with something else or close, after 10 s if they say nothing, and meanwhile keep nobody waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionAborted`] within 20 ms once `go_on` says false; what makes the listening socket unusable.
    pub fn accept_source(&self, go_on: &dyn Fn() -> bool) -> io::Result<SocketChannel> {
        let waiting = Waiting::new(Duration::MAX, go_on);
        let mut candidates: Vec<(Socket, Instant)> = Vec::new();
        loop {
            let slice = waiting.slice()?;
            match self.socket.accept() {
                Ok((socket, _)) => {
                    socket.set_nonblocking(true)?;
                    if candidates.len() == usize::from(CANDIDATES) {
                        candidates.remove(0);
                    }
                    candidates.push((socket, Instant::now()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Candidates are looked at once a slice: a wait on all of them would wake for bytes that are only
                    // peeked at.
                    wait(&self.socket, PollFlags::POLLIN, if candidates.is_empty() { slice } else { SLICE / 20 })?;
                }
                Err(error) if is_fatal(&error) => return Err(error),
                Err(_) => thread::sleep(slice),
            }
            candidates.retain(|(_, since)| since.elapsed() < INTRODUCTION);
            // Each is looked at once: it may begin at any moment, so a second look may differ from the first.
            let mut index = 0;
            while let Some((socket, _)) = candidates.get(index) {
                match begins(socket) {
                    Beginning::Stream => return self.channel(candidates.swap_remove(index).0),
                    Beginning::Silence => index += 1,
                    Beginning::Other => drop(candidates.remove(index)),
                }
            }
        }
    }

    fn channel(&self, socket: Socket) -> io::Result<SocketChannel> {
        match self.is_unix {
            true => UnixStream::from(socket).try_into(),
            false => TcpStream::from(socket).try_into(),
        }
    }
}

/// True if the listening socket itself is unusable. All else passes: accept(2) also tells what is wrong with one connection or
/// with the network, and what the process lacks for now, as descriptors.
fn is_fatal(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EBADF | Errno::EFAULT | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP))
}

/// How a connection has begun.
enum Beginning {
    /// With a stream.
    Stream,
    /// Not yet, or not far enough to tell.
    Silence,
    /// With something else, or it is over.
    Other,
}

/// Looks at the first bytes without taking them.
fn begins(socket: &Socket) -> Beginning {
    let mut first = [0; MAGIC.len()];
    match recv(socket.as_raw_fd(), &mut first, MsgFlags::MSG_PEEK) {
        Ok(count) if count == MAGIC.len() && first == MAGIC => Beginning::Stream,
        Ok(count) if count > 0 && first.get(..count).is_some_and(|first| MAGIC.starts_with(first)) => {
            Beginning::Silence
        }
        Err(Errno::EAGAIN | Errno::EINTR) => Beginning::Silence,
        Ok(_) | Err(_) => Beginning::Other,
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove_file();
    }
}

/// The file of a socket, known by more than its name. While the socket is open the kernel gives its inode to no other file.
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

/// Device and number.
fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Removes a socket at which nobody listens any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file exists and is no socket"))
        }
        Ok(_) => {
            // Without waiting: a queue that is full is somebody's, too.
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

    /// The errors that accept(2) tells to treat like "nobody is there", and those of resources; and a closed socket.
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
