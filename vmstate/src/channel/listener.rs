//! A socket at which a destination waits for its source.

use std::collections::VecDeque;
use std::fs::{self, File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, SockAddr, Socket, Type};

use super::connect::{SLICE, Waiting};
use super::socket::{SocketChannel, wait};
use crate::ram::multifd::packet::MAGIC_BYTES;

/// The first bytes of a stream (`QEMU_VM_FILE_MAGIC`, migration/savevm.c).
const MAGIC: [u8; 4] = *b"QEVM";
/// Connections that have not said anything yet, at most; the oldest goes when another comes.
const CANDIDATES: u8 = 16;
/// Connections of each kind that are kept for who wants them, at most: a migration has up to 255 page channels.
const KEPT: usize = 255;
/// A connection that has not begun a stream after so long is dropped.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// A socket that waits for a source, and for its page channels.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// Of unix, not of TCP.
    is_unix: bool,
    /// Made with a unix socket.
    file: Option<SocketFile>,
    waiting: Mutex<Waiters>,
}

/// Connections that nobody has taken yet.
#[derive(Debug, Default)]
struct Waiters {
    /// They have not begun, since when they are here.
    candidates: Vec<(Socket, Instant)>,
    streams: VecDeque<Socket>,
    pages: VecDeque<Socket>,
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
        let listener = Self::new(socket, true, Some(SocketFile::new(path)?));
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
        Ok(Self::new(socket, false, None))
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
        Ok(Self::new(socket, domain == Domain::UNIX, None))
    }

    fn new(socket: Socket, is_unix: bool, file: Option<SocketFile>) -> Self {
        Self { socket, is_unix, file, waiting: Mutex::default() }
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

    /// Waits for a source: the first connection whose first bytes are those of a stream. Those of page channels are kept, for
    /// [`accept_pages`](Self::accept_pages). Others are dropped, at once if they begin with something else or close, after 10 s if
    /// they say nothing, and meanwhile keep nobody waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionAborted`] within 20 ms once `go_on` says false; what makes the listening socket unusable.
    pub fn accept_source(&self, go_on: &dyn Fn() -> bool) -> io::Result<SocketChannel> {
        self.accept_one(go_on, |waiters| waiters.streams.pop_front())
    }

    /// Waits for a page channel, as [`accept_source`](Self::accept_source) does for a source; sources are kept. Which migration the
    /// channel belongs to is found out by who reads it.
    ///
    /// # Errors
    /// As [`accept_source`](Self::accept_source).
    pub fn accept_pages(&self, go_on: &dyn Fn() -> bool) -> io::Result<SocketChannel> {
        self.accept_one(go_on, |waiters| waiters.pages.pop_front())
    }

    fn accept_one(
        &self,
        go_on: &dyn Fn() -> bool,
        wanted: impl Fn(&mut Waiters) -> Option<Socket>,
    ) -> io::Result<SocketChannel> {
        let waiting = Waiting::new(Duration::MAX, go_on);
        loop {
            let slice = waiting.slice()?;
            let mut waiters = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let accepted = self.socket.accept();
            let pause = match accepted {
                Ok((socket, _)) => {
                    socket.set_nonblocking(true)?;
                    waiters.come(socket);
                    Pause::None
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Pause::Until(slice),
                Err(error) if is_fatal(&error) => return Err(error),
                Err(_) => Pause::For(slice),
            };
            waiters.sort();
            if let Some(socket) = wanted(&mut waiters) {
                return self.channel(socket);
            }
            let any = !waiters.candidates.is_empty();
            drop(waiters);
            match pause {
                Pause::None => {}
                // Candidates are looked at once a slice: a wait on all of them would wake for bytes that are only peeked at.
                Pause::Until(slice) => {
                    wait(&self.socket, PollFlags::POLLIN, if any { SLICE / 20 } else { slice })?;
                }
                Pause::For(slice) => thread::sleep(slice),
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

/// What to wait for before the next look.
enum Pause {
    None,
    /// A connection, for so long.
    Until(Duration),
    For(Duration),
}

impl Waiters {
    /// Somebody has connected.
    fn come(&mut self, socket: Socket) {
        if self.candidates.len() == usize::from(CANDIDATES) {
            self.candidates.remove(0);
        }
        self.candidates.push((socket, Instant::now()));
    }

    /// Looks how the candidates have begun. Each is looked at once: it may begin at any moment, so a second look may differ from
    /// the first.
    fn sort(&mut self) {
        self.candidates.retain(|(_, since)| since.elapsed() < INTRODUCTION);
        let mut index = 0;
        while let Some((socket, _)) = self.candidates.get(index) {
            let kept = match begins(socket) {
                Beginning::Silence => {
                    index += 1;
                    continue;
                }
                Beginning::Stream => Some(&mut self.streams),
                Beginning::Pages => Some(&mut self.pages),
                Beginning::Other => None,
            };
            let (socket, _) = self.candidates.remove(index);
            if let Some(kept) = kept {
                if kept.len() == KEPT {
                    kept.pop_front();
                }
                kept.push_back(socket);
            }
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
    /// As a page channel.
    Pages,
    /// Not yet, or not far enough to tell.
    Silence,
    /// With something else, or it is over.
    Other,
}

/// Looks at the first bytes without taking them.
fn begins(socket: &Socket) -> Beginning {
    let mut first = [0; MAGIC.len()];
    let count = match recv(socket.as_raw_fd(), &mut first, MsgFlags::MSG_PEEK) {
        Err(Errno::EAGAIN | Errno::EINTR) => return Beginning::Silence,
        Ok(0) | Err(_) => return Beginning::Other,
        Ok(count) => count,
    };
    let first = first.get(..count).unwrap_or_default();
    match first {
        _ if first == MAGIC => Beginning::Stream,
        _ if first == MAGIC_BYTES => Beginning::Pages,
        _ if MAGIC.starts_with(first) || MAGIC_BYTES.starts_with(first) => Beginning::Silence,
        _ => Beginning::Other,
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
