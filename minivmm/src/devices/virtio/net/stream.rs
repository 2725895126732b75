//! Backend on a unix stream socket to another process, as passt, which needs no privilege for the host's network. Each frame
//! follows its length in four bytes, big-endian, as in QEMU's `-netdev stream` (net/stream.c, net_fill_rstate in net/net.c).

use std::fmt;
use std::io;
use std::mem::take;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getpeername, getsockopt, setsockopt, socket, sockopt,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::HEADER;
use super::backend::{Backend, Offloads, USO};
use super::frame::{ETHERNET, FRAME_MAX};
use super::in_transit::InTransit;
use super::segment;
use crate::error::RateLimitedLog;
use crate::passed;
use crate::sandbox::{self, Kind};
use crate::sync::lock;

/// Interval between the loss of a connection and the first attempt to reconnect, and between two attempts.
const RETRY: Duration = Duration::from_secs(1);

/// Interval after which a full socket is tried again.
const FULL: Duration = Duration::from_millis(1);

/// Requested size of the kernel's send buffer; the host's administrator may have set a lower limit.
const SOCKET_BUFFER: usize = 4 << 20;

/// Bytes that are read at once, at most.
pub(super) const INPUT: usize = 2 * FRAME_MAX;

/// Bytes of the length before a frame.
pub(super) const LENGTH: usize = 4;

/// Why a stream socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use stream socket {name}: {source}; {}", remedy(name))]
pub struct StreamError {
    name: String,
    source: io::Error,
}

fn remedy(name: &str) -> String {
    match passed::reference(Path::new(name)) {
        Some(_) => "pass a unix stream socket that is connected".into(),
        None => format!("start the network first: passt --socket {name}"),
    }
}

/// Backend on a stream socket. Clones share the connection.
#[derive(Clone)]
pub struct Stream {
    link: Arc<Link>,
    offloads: Offloads,
}

struct Link {
    /// Path of the socket, or reference of a passed one.
    path: PathBuf,
    /// Descriptor that the card's thread watches across connections: an epoll is ready when one of its descriptors is
    /// (epoll(7)).
    events: Epoll,
    /// Signalled at a new connection.
    arrived: EventFd,
    connection: Mutex<Option<Connection>>,
    /// Signals the thread that reconnects; `None` for a passed socket.
    lost: Option<Sender<()>>,
    losses: Mutex<RateLimitedLog>,
    returns: Mutex<RateLimitedLog>,
}

impl Stream {
    /// Connects to the socket at `path`, and reconnects whenever the connection is lost; or takes a passed connected socket,
    /// `fd:N` or `fd:NAME`, without reconnecting.
    ///
    /// # Errors
    /// [`StreamError`]: no process listens; the socket has another type; a thread cannot be spawned.
    pub fn open(path: &Path) -> Result<Self, StreamError> {
        Self::attach(path, None).map_err(|source| StreamError { name: path.display().to_string(), source })
    }

    /// Continues with the connection that was handed over with the guest, and connects to `path` when it is lost; a socket that
    /// was passed to this process at its start comes first.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn continuing(path: &Path, handed_over: OwnedFd) -> Result<Self, StreamError> {
        Self::attach(path, Some(handed_over)).map_err(|source| StreamError { name: path.display().to_string(), source })
    }

    fn attach(path: &Path, handed_over: Option<OwnedFd>) -> io::Result<Self> {
        let continues = handed_over.is_some() && passed::reference(path).is_none();
        let (socket, lost) = match (passed::reference(path), handed_over) {
            (Some(reference), _) => (passed_socket(reference)?, None),
            (None, Some(socket)) => (socket, Some(channel())),
            (None, None) => (connect_to(path)?, Some(channel())),
        };
        let (lost, losses) = lost.unzip();
        let (events, arrived) = (Epoll::new()?, EventFd::new(EFD_NONBLOCK)?);
        watch(&events, arrived.as_raw_fd())?;
        let [losses_log, returns] = Default::default();
        let connection = Mutex::new(None);
        let link = Link { path: path.into(), events, arrived, connection, lost, losses: losses_log, returns };
        link.adopt(socket, continues)?;
        let link = Arc::new(link);
        if let Some(losses) = losses {
            let link = Arc::downgrade(&link);
            sandbox::spawn(Kind::Connect, "net-connect", move || keep_connected(&link, &losses))?;
        }
        Ok(Self { link, offloads: Offloads::ALL })
    }

    /// Turns UDP segmentation off.
    pub fn without_uso(self) -> Self {
        Self { offloads: self.offloads.without(&USO), ..self }
    }

    /// Duplicates the connection's socket, if there is a connection.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn descriptor(&self) -> io::Result<Option<OwnedFd>> {
        let connection = self.link.lock();
        connection.as_ref().map(|connection| connection.socket.try_clone()).transpose()
    }
}

/// Identifies a socket on this host: the number is the same in each process that has the socket. 0 is none.
fn inode(socket: &OwnedFd) -> u64 {
    rustix::fs::fstat(socket.as_fd()).map_or(0, |status| status.st_ino)
}

/// Reconnects until the last user of the link is gone.
fn keep_connected(link: &Weak<Link>, losses: &Receiver<()>) {
    while losses.recv().is_ok() {
        loop {
            if losses.recv_timeout(RETRY) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            let Some(link) = link.upgrade() else { return };
            // No process listens yet, or the host is short of something: tried again.
            if connect_to(&link.path).and_then(|socket| link.adopt(socket, false)).is_ok() {
                link.report(&link.returns, "connected again; the guest's link is up");
                break;
            }
        }
    }
}

fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

fn passed_socket(reference: &str) -> io::Result<OwnedFd> {
    let socket = passed::descriptor(reference)?;
    if getsockopt(&socket, sockopt::SockType).ok() != Some(SockType::Stream) {
        return Err(io::Error::other("it is no stream socket"));
    }
    getpeername::<UnixAddr>(socket.as_raw_fd())
        .map_err(|_| io::Error::other("it is no unix socket that is connected"))?;
    let status = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
    fcntl(&socket, FcntlArg::F_SETFL(status | OFlag::O_NONBLOCK))?;
    Ok(socket)
}

/// Does not check for readiness: the card's thread reads until nothing is left.
fn watch(events: &Epoll, fd: RawFd) -> io::Result<()> {
    events.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0))
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        lock(&self.connection)
    }

    fn report(&self, log: &Mutex<RateLimitedLog>, what: &str) {
        let mut log = lock(log);
        log.print(format_args!("--net stream={}: {what}", self.path.display()));
    }

    fn adopt(&self, socket: OwnedFd, continues: bool) -> io::Result<()> {
        // With a smaller buffer frames only wait sooner.
        let _ = setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER);
        watch(&self.events, socket.as_raw_fd())?;
        *self.lock() = Some(Connection { socket, continues, input: Input::new(), unsent: Vec::new(), sent: 0 });
        self.arrived.write(1)
    }

    /// Runs `work` with the connection, which is closed if that fails for another reason than missing bytes or room.
    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> io::Result<T>) -> io::Result<T> {
        let mut held = self.lock();
        let connection = held.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let result = work(connection);
        if let Err(error) = &result
            && !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        {
            *held = None;
            drop(held);
            let then = match &self.lost {
                Some(lost) => {
                    // The thread exists as long as this link.
                    let _ = lost.send(());
                    "until it can be connected to again"
                }
                None => "for good, since a socket that was passed cannot be connected again",
            };
            self.report(&self.losses, &format!("{error}; the guest's link is down {then}"));
        }
        result
    }
}

impl Backend for Stream {
    fn fd(&self) -> RawFd {
        self.link.events.as_raw_fd()
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        let (header, payload) = frame.split_at_mut(HEADER);
        header.fill(0);
        Ok(HEADER + self.link.with(|connection| connection.receive(payload))?)
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.link.with(|connection| {
            connection.flush()?;
            connection.put(frame);
            connection.flush()
        })
    }

    fn wait(&self) -> Option<Duration> {
        let flushed = self.link.with(Connection::flush);
        flushed.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock).then_some(FULL)
    }

    fn is_up(&self) -> bool {
        self.link.lock().is_some()
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// The other end supports no offloads for frames to the guest.
    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn in_transit(&self) -> InTransit {
        match &*self.link.lock() {
            Some(connection) => InTransit {
                socket: inode(&connection.socket),
                received: connection.input.bytes[connection.input.taken..connection.input.filled].to_vec(),
                unsent: connection.unsent[connection.sent..].to_vec(),
                waiting: Vec::new(),
            },
            None => InTransit::default(),
        }
    }

    /// Continues the source's connection with the bytes in transit. If the source has lost the connection that it handed over,
    /// connects again; a connection of this process's own stays.
    fn take_over(&self, from: InTransit) {
        let mut held = self.link.lock();
        let Some(connection) = held.as_mut().filter(|connection| connection.continues) else { return };
        if inode(&connection.socket) == from.socket {
            connection.input = Input::with(&from.received);
            (connection.unsent, connection.sent) = (from.unsent, 0);
        } else {
            *held = None;
            if let Some(lost) = &self.link.lost {
                // The thread exists as long as this link.
                let _ = lost.send(());
            }
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("path", &self.link.path).finish_non_exhaustive()
    }
}

/// A connection, and the partial frames of both directions.
struct Connection {
    socket: OwnedFd,
    /// Whether the connection was handed over by the guest's source.
    continues: bool,
    input: Input,
    /// Frames with their lengths, which result from one frame of the guest.
    unsent: Vec<u8>,
    /// Bytes of `unsent` that the socket has taken.
    sent: usize,
}

impl Connection {
    fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(len) = self.input.take(frame)? {
                return Ok(len);
            }
            match nix::unistd::read(&self.socket, self.input.space())? {
                0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other end closed the connection")),
                len => self.input.filled += len,
            }
        }
    }

    /// Carries out the offloads of a frame from the guest, and queues the results. A malformed frame is dropped.
    fn put(&mut self, frame: &[u8]) {
        let unsent = &mut self.unsent;
        let _ = segment::finish(frame, |frame| {
            unsent.extend((frame.len() as u32).to_be_bytes());
            unsent.extend(frame);
        });
    }

    /// Writes as much as the socket takes; `WouldBlock` if that was not all.
    fn flush(&mut self) -> io::Result<()> {
        while let Some(rest) = self.unsent.get(self.sent..).filter(|rest| !rest.is_empty()) {
            self.sent += nix::unistd::write(&self.socket, rest)?;
        }
        self.unsent.clear();
        self.sent = 0;
        Ok(())
    }
}

/// Bytes that were read: frames with their lengths, the last of which may be incomplete.
struct Input {
    bytes: Box<[u8]>,
    taken: usize,
    filled: usize,
}

impl Input {
    fn new() -> Self {
        Self { bytes: vec![0; INPUT].into(), taken: 0, filled: 0 }
    }

    /// Starts with bytes that another process has read, at most [`INPUT`].
    fn with(received: &[u8]) -> Self {
        let mut input = Self::new();
        let filled = received.len().min(INPUT);
        input.bytes[..filled].copy_from_slice(&received[..filled]);
        Self { filled, ..input }
    }

    /// Moves the next complete frame into `frame`.
    fn take(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        let there = &self.bytes[self.taken..self.filled];
        let Some((length, rest)) = there.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if !(ETHERNET..=FRAME_MAX - HEADER).contains(&length) {
            let what = format!("the other end sent a frame of {length} bytes, which none has");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let Some(whole) = rest.get(..length) else { return Ok(None) };
        frame[..length].copy_from_slice(whole);
        self.taken += LENGTH + length;
        Ok(Some(length))
    }

    /// Returns the free part of the buffer, which is not empty: the bytes that are left are less than a frame.
    fn space(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.taken..self.filled, 0);
        self.filled -= take(&mut self.taken);
        &mut self.bytes[self.filled..]
    }
}
