//! A process at the other end of a unix stream socket, as passt: it needs no right of the host's network. Each frame comes behind its
//! length in four bytes, big-endian, as QEMU's `-netdev stream` sends and takes it (net/stream.c, net_fill_rstate in net/net.c).

use std::fmt;
use std::io;
use std::mem::take;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
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
use super::segment;
use crate::error::SparingLog;
use crate::passed;
use crate::sandbox::{self, Kind};
use crate::sync::lock;

/// After a connection is lost, and between two attempts to have another one.
const RETRY: Duration = Duration::from_secs(1);

/// When a socket that was full is looked at again.
const FULL: Duration = Duration::from_millis(1);

/// Bytes that the kernel is asked to keep of frames on their way; it takes less where the host's administrator says so.
const SOCKET_BUFFER: usize = 4 << 20;

/// Bytes of a frame's length.
const LENGTH: usize = 4;

/// A socket that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use stream socket {name}: {source}; {}", mend(name))]
pub struct StreamError {
    name: String,
    source: io::Error,
}

fn mend(name: &str) -> String {
    match passed::reference(Path::new(name)) {
        Some(_) => "pass a unix stream socket that is connected".into(),
        None => format!("start the network first: passt --socket {name}"),
    }
}

/// The socket. Clones share it.
#[derive(Clone)]
pub struct Stream {
    link: Arc<Link>,
    offloads: Offloads,
}

struct Link {
    /// The socket's path, or the reference of a passed one.
    path: PathBuf,
    /// What the card's thread watches, whatever connection there is: an epoll is ready when one of its descriptors is (epoll(7)).
    events: Epoll,
    /// Written when there is a new connection.
    arrived: EventFd,
    connection: Mutex<Option<Connection>>,
    /// To the thread that connects again; none for a socket that was passed.
    lost: Option<Sender<()>>,
    losses: Mutex<SparingLog>,
    returns: Mutex<SparingLog>,
}

impl Stream {
    /// Connects to the socket at `path`, again and again whenever the other end is gone; or takes a connected one that was passed,
    /// `fd:N` or `fd:NAME`, once.
    ///
    /// # Errors
    /// [`StreamError`]: nobody listens there; it is another kind of socket; cannot spawn a thread.
    pub fn open(path: &Path) -> Result<Self, StreamError> {
        Self::attach(path).map_err(|source| StreamError { name: path.display().to_string(), source })
    }

    fn attach(path: &Path) -> io::Result<Self> {
        let (socket, lost) = match passed::reference(path) {
            Some(reference) => (passed_socket(reference)?, None),
            None => (connect_to(path)?, Some(channel())),
        };
        let (lost, losses) = lost.unzip();
        let (events, arrived) = (Epoll::new()?, EventFd::new(EFD_NONBLOCK)?);
        watch(&events, arrived.as_raw_fd())?;
        let [losses_log, returns] = Default::default();
        let connection = Mutex::new(None);
        let link = Link { path: path.into(), events, arrived, connection, lost, losses: losses_log, returns };
        link.adopt(socket)?;
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
}

/// The thread's work, until the last user of the link is gone.
fn keep_connected(link: &Weak<Link>, losses: &Receiver<()>) {
    while losses.recv().is_ok() {
        loop {
            if losses.recv_timeout(RETRY) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            let Some(link) = link.upgrade() else { return };
            // Nobody listens yet, or the host is short of something: the next time.
            if connect_to(&link.path).and_then(|socket| link.adopt(socket)).is_ok() {
                link.say(&link.returns, "connected again; the guest's link is up");
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

/// Whether it is still ready matters to nobody: the card's thread reads until nothing is left.
fn watch(events: &Epoll, fd: RawFd) -> io::Result<()> {
    events.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0))
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        lock(&self.connection)
    }

    fn say(&self, log: &Mutex<SparingLog>, what: &str) {
        let mut log = lock(log);
        log.say(format_args!("--net stream={}: {what}", self.path.display()));
    }

    fn adopt(&self, socket: OwnedFd) -> io::Result<()> {
        // With less room frames wait sooner.
        let _ = setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER);
        watch(&self.events, socket.as_raw_fd())?;
        *self.lock() = Some(Connection { socket, input: Input::new(), unsent: Vec::new(), sent: 0 });
        self.arrived.write(1)
    }

    /// Does `work` with the connection, which is lost if that fails in another way than for want of bytes or room.
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
                    // The thread is there as long as this is.
                    let _ = lost.send(());
                    "until it can be connected to again"
                }
                None => "for good, since a socket that was passed cannot be connected again",
            };
            self.say(&self.losses, &format!("{error}; the guest's link is down {then}"));
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

    /// The other end finishes all frames, and the guest may not take any that are not.
    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("path", &self.link.path).finish_non_exhaustive()
    }
}

/// A connection, and what of a frame is on its way in either direction.
struct Connection {
    socket: OwnedFd,
    input: Input,
    /// Frames with their lengths: those that one frame of the guest was cut into.
    unsent: Vec<u8>,
    /// Bytes of that which the socket has.
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

    /// Finishes a frame of the guest, and cuts it where that left this undone. One that makes no sense is dropped, as every frame
    /// may be.
    fn put(&mut self, frame: &[u8]) {
        let unsent = &mut self.unsent;
        let _ = segment::finish(frame, |frame| {
            unsent.extend((frame.len() as u32).to_be_bytes());
            unsent.extend(frame);
        });
    }

    /// Gives the socket what it takes; `WouldBlock` if that was not all.
    fn flush(&mut self) -> io::Result<()> {
        while let Some(rest) = self.unsent.get(self.sent..).filter(|rest| !rest.is_empty()) {
            self.sent += nix::unistd::write(&self.socket, rest)?;
        }
        self.unsent.clear();
        self.sent = 0;
        Ok(())
    }
}

/// Bytes that were read: frames with their lengths, the last one perhaps not whole.
struct Input {
    bytes: Box<[u8]>,
    taken: usize,
    filled: usize,
}

impl Input {
    fn new() -> Self {
        Self { bytes: vec![0; 2 * FRAME_MAX].into(), taken: 0, filled: 0 }
    }

    /// Puts the next whole frame into `frame`.
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

    /// Where more is to be read to. There is room: what is left is less than a frame.
    fn space(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.taken..self.filled, 0);
        self.filled -= take(&mut self.taken);
        &mut self.bytes[self.filled..]
    }
}
