//! QMP socket: who may connect, one reader and one writer thread for each client, and an orderly end.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, Socket, Type};

use crate::control::descriptors::Incoming;
use crate::control::qmp::{ParsedCommand, Session, SessionState, line};
use crate::control::report;
use crate::passed;
use crate::sandbox::{self, Kind};
use crate::sync::lock;
use crate::vm::Handle;

/// Most clients at once. When one more connects, the client that was silent for longest is disconnected.
const CLIENTS_MAX: usize = 16;

/// Most messages that wait for a slow client; with more it is disconnected.
const OUTGOING_MAX: usize = 256;

/// Most commands of a client that wait for execution, as with QEMU (its `QMP_REQ_QUEUE_LEN_MAX`); with more, the client is not
/// read, and its out-of-band commands wait, too.
const WAITING_MAX: usize = 8;

/// How long a client may leave a message unread before it is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long all clients together may take, at the end, to read their pending messages, and to learn that the driver has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);

/// Flag that names the QMP socket.
const FLAG: &str = "--control";

/// Why the control socket or the metrics' socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A file with this name is no socket.
    #[error("{0} {path}: the file exists and is no socket; remove it or choose another path", path = .1.display())]
    NotASocket(&'static str, PathBuf),
    /// Another process listens at this path.
    #[error("{0} {path}: another process listens there; end it or choose another path", path = .1.display())]
    InUse(&'static str, PathBuf),
    /// The passed descriptor is no listening stream socket.
    #[error("--control {}: {what}; pass a unix stream socket that listens", path.display())]
    Passed {
        /// The flag's value.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The system refused.
    #[error("{flag} {}: {source}; choose a path in a directory that you may write", path.display())]
    Bind {
        /// Flag that names the socket.
        flag: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The system refuses to listen at the address.
    #[error("{flag} {address}: {source}")]
    Listen {
        /// Flag that names the address.
        flag: &'static str,
        /// The flag's value.
        address: String,
        /// Why.
        source: io::Error,
    },
}

/// Control socket that serves clients. Dropping it answers the running commands, closes the connections, and removes the
/// socket's file; a client that does not read, or that waits for a stuck driver, does not delay that for long.
#[derive(Debug)]
pub struct Server {
    socket: Arc<ControlSocket>,
    clients: Clients,
    acceptor: Option<JoinHandle<()>>,
}

/// Control socket whose clients are not served yet; dropping it removes its file.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    inode: Option<(u64, u64)>,
    listener: UnixListener,
    /// Whether another process of this host made the socket, and may serve it still.
    is_continued: bool,
}

type Clients = Arc<Mutex<Vec<Client>>>;

/// A client and its threads.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    outgoing: SyncSender<Outgoing>,
    state: Arc<ClientState>,
    thread: JoinHandle<()>,
}

/// State of a client, which its reader thread maintains.
#[derive(Debug)]
struct ClientState {
    negotiated: AtomicBool,
    /// Commands of the client that are being executed or wait for execution.
    pending: AtomicUsize,
    last_command: Mutex<Instant>,
}

/// A message for a client, or the end of the messages.
type Outgoing = Option<Vec<u8>>;

impl ControlSocket {
    /// Listens at `path`, which `flag` names, for the owner of this process only; or at the passed socket `fd:N`, whose file
    /// and mode belong to the process that made it.
    ///
    /// # Errors
    /// The path is taken, or the system refuses it; or the passed descriptor is no listening socket. A socket file at which no
    /// process listens any more is replaced.
    pub fn open(flag: &'static str, path: &Path) -> Result<Self, ControlError> {
        if let Some(reference) = passed::reference(path) {
            let listener =
                passed_listener(reference).map_err(|what| ControlError::Passed { path: path.into(), what })?;
            return Ok(Self { path: path.into(), inode: None, listener, is_continued: false });
        }
        remove_stale(flag, path)?;
        let listener =
            listen_privately(path).map_err(|source| ControlError::Bind { flag, path: path.into(), source })?;
        Ok(Self { path: path.into(), inode: inode(path), listener, is_continued: false })
    }

    /// Continues a listening socket that another process of this host handed over; `None` if it does not listen at `path`.
    /// Dropping this leaves the file to the other process.
    pub(super) fn continuing(path: &Path, handed_over: OwnedFd) -> Option<Self> {
        let listener = listening(handed_over.into()).ok()?;
        let is_there = listener.local_addr().is_ok_and(|address| address.as_pathname() == Some(path));
        is_there.then(|| Self { path: path.into(), inode: inode(path), listener, is_continued: true })
    }

    /// Like [`open`](Self::open), for a machine that takes its guest over from another process of this host. If that process
    /// listens at `path`, this one listens at [`aside`] until its socket is renamed.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn succeed(flag: &'static str, path: &Path) -> Result<Self, ControlError> {
        match Self::open(flag, path) {
            Err(ControlError::InUse(..)) => {
                let mut socket = Self::open(flag, &aside(path))?;
                socket.path = path.into();
                Ok(socket)
            }
            socket => socket,
        }
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(super) fn is_continued(&self) -> bool {
        self.is_continued
    }

    /// Removes the socket's file, unless another process has made a socket of its own at the path meanwhile.
    pub(super) fn remove_file(&self) {
        for path in [self.path.clone(), aside(&self.path)] {
            if self.inode.is_some() && inode(&path) == self.inode {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if !self.is_continued {
            self.remove_file();
        }
    }
}

/// Path at which a machine listens while another process listens at `path`.
pub fn aside(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    aside.into()
}

impl Server {
    /// Listens at `path` like [`ControlSocket::open`], and serves clients.
    ///
    /// # Errors
    /// The same as [`ControlSocket::open`]; or a thread cannot be spawned.
    pub fn bind(path: &Path, handle: Handle) -> Result<Self, ControlError> {
        Self::serve(ControlSocket::open(FLAG, path)?, handle)
    }

    /// Serves clients at `socket`.
    ///
    /// # Errors
    /// The thread cannot be spawned.
    pub fn serve(socket: ControlSocket, handle: Handle) -> Result<Self, ControlError> {
        let socket = Arc::new(socket);
        let clients = Clients::default();
        let audience = Arc::downgrade(&clients);
        handle.subscribe(move |event| match audience.upgrade() {
            Some(clients) => {
                if let Some(message) = report::event(event, SystemTime::now()) {
                    broadcast(&lock(&clients), &line(&message));
                }
                true
            }
            None => false,
        });
        let acceptor = {
            let (theirs, clients) = (Arc::clone(&socket), Arc::clone(&clients));
            let begun = spawn("qmp-accept", move || accept(&theirs.listener, &clients, &handle));
            begun.map_err(|source| ControlError::Bind { flag: FLAG, path: socket.path.clone(), source })?
        };
        Ok(Self { socket, clients, acceptor: Some(acceptor) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A passed socket is not shut down, since other processes may use it: the accepting thread stays until the process
        // ends.
        if passed::reference(&self.socket.path).is_none() {
            // Wakes `accept`; std has no shutdown for listeners.
            let _ = nix::sys::socket::shutdown(self.socket.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
            if let Some(acceptor) = self.acceptor.take() {
                let _ = acceptor.join();
            }
        }
        // Readers see the end of their input, while replies and events are still written for a while. The list is moved out
        // first, since publishing an event takes its lock.
        let clients = std::mem::take(&mut *lock(&self.clients));
        for client in &clients {
            let _ = client.stream.shutdown(Shutdown::Read);
        }
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        for client in clients {
            while !client.thread.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            // Threads that still run then end by themselves.
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }
}

fn remove_stale(flag: &'static str, path: &Path) -> Result<(), ControlError> {
    let refused = |source| ControlError::Bind { flag, path: path.into(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(refused(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(ControlError::NotASocket(flag, path.into())),
        Ok(_) => match is_dead(path) {
            Ok(false) => Err(ControlError::InUse(flag, path.into())),
            Ok(true) => std::fs::remove_file(path).map_err(refused),
            Err(error) => Err(refused(error)),
        },
    }
}

/// Whether no process listens at the path. Does not wait: a full queue of connections also belongs to a listener.
fn is_dead(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(fd.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) | Err(Errno::EAGAIN) => Ok(false),
        Err(Errno::ECONNREFUSED) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Linux gives the socket file the mode of the socket itself (`unix_bind`), so there is no moment when others may connect.
fn listen_privately(path: &Path) -> io::Result<UnixListener> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(CLIENTS_MAX as i32)?)?;
    Ok(fd.into())
}

/// Takes a passed unix socket that listens; others are refused, since no client may come over a network.
fn passed_listener(reference: &str) -> Result<UnixListener, String> {
    listening(passed::descriptor(reference).map_err(|error| error.to_string())?.into())
}

/// Checks that this is a unix socket that listens.
fn listening(socket: Socket) -> Result<UnixListener, String> {
    let failed = |error: io::Error| error.to_string();
    if socket.domain().map_err(|_| "it is no socket")? != Domain::UNIX
        || socket.r#type().map_err(failed)? != Type::STREAM
    {
        return Err("it is no stream socket of unix".into());
    }
    if !socket.is_listener().map_err(failed)? {
        return Err("it is a socket that does not listen".into());
    }
    // systemd may pass the socket in non-blocking mode.
    socket.set_nonblocking(false).map_err(failed)?;
    Ok(socket.into())
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn accept(listener: &UnixListener, clients: &Mutex<Vec<Client>>, handle: &Handle) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let mut clients = lock(clients);
                clients.retain(|client| !client.thread.is_finished());
                if clients.len() >= CLIENTS_MAX
                    && let Some(idle) = longest_idle(&clients)
                {
                    // The client's threads end by themselves.
                    let _ = clients.swap_remove(idle).stream.shutdown(Shutdown::Both);
                }
                // A client beyond the limit is closed at once, before its greeting.
                if clients.len() < CLIENTS_MAX
                    && let Ok(client) = serve(stream, handle.clone())
                {
                    clients.push(client);
                }
            }
            // EINVAL is what `Server::drop` causes.
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => return,
            // The process may be out of descriptors: clients that leave release some.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Chooses the client to disconnect: none that waits for an answer; first one that has not negotiated, then the one that was
/// silent for longest.
fn longest_idle(clients: &[Client]) -> Option<usize> {
    let states = clients.iter().map(|client| &client.state).enumerate();
    let idle = states.filter(|(_, state)| state.pending.load(Ordering::SeqCst) == 0);
    let least = idle.min_by_key(|(_, state)| (state.negotiated.load(Ordering::SeqCst), *lock(&state.last_command)));
    least.map(|(index, _)| index)
}

/// Queues an event for each client. A client whose queue is full is disconnected, so that no client misses an event or blocks
/// the publishing thread.
fn broadcast(clients: &[Client], message: &[u8]) {
    for client in clients.iter().filter(|client| client.state.negotiated.load(Ordering::SeqCst)) {
        if client.outgoing.try_send(Some(message.to_vec())).is_err() {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }
}

/// Starts the threads of one client.
fn serve(stream: UnixStream, handle: Handle) -> io::Result<Client> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let (input, output) = (stream.try_clone()?, stream.try_clone()?);
    let (outgoing, messages) = sync_channel(OUTGOING_MAX);
    let state = Arc::new(ClientState {
        negotiated: AtomicBool::new(false),
        pending: AtomicUsize::new(0),
        last_command: Mutex::new(Instant::now()),
    });
    let writer = spawn("qmp-write", move || write(output, &messages))?;
    let thread = {
        let (outgoing, state) = (outgoing.clone(), Arc::clone(&state));
        spawn("qmp-read", move || {
            let incoming = Incoming::new(&input);
            let descriptors = incoming.descriptors();
            serve_commands(Session::new(handle, incoming).with_descriptors(descriptors), &outgoing, &state);
            let _ = outgoing.send(None);
            let _ = writer.join();
            let _ = input.shutdown(Shutdown::Both);
        })?
    };
    Ok(Client { stream, outgoing, state, thread })
}

/// Serves a client until it leaves or cannot be written to. A client that does not read its answers blocks only its own thread.
fn serve_commands(mut session: Session<Incoming<'_>>, outgoing: &SyncSender<Outgoing>, state: &Arc<ClientState>) {
    let mut alive = outgoing.send(Some(session.greeting())).is_ok();
    let mut command_thread: Option<CommandThread> = None;
    while alive && let Some(command) = session.next_command() {
        state.pending.fetch_add(1, Ordering::SeqCst);
        // Recorded before the answer is sent: a client that has its answer then counts as active before every client that sends
        // later.
        *lock(&state.last_command) = Instant::now();
        if let Some(command_thread) = command_thread.as_ref().filter(|_| !command.is_out_of_band()) {
            alive = command_thread.commands.send(command).is_ok();
            continue;
        }
        let answer = session.answer(command);
        let session_state = session.state();
        if session_state.is_out_of_band() && command_thread.is_none() {
            command_thread = CommandThread::begin(session_state.clone(), outgoing.clone(), Arc::clone(state)).ok();
            alive = command_thread.is_some();
        }
        // Set before the answer is sent: the client must get every event that follows its answer.
        state.negotiated.store(session_state.is_negotiated(), Ordering::SeqCst);
        alive = alive && outgoing.send(Some(answer)).is_ok();
        state.pending.fetch_sub(1, Ordering::SeqCst);
    }
    if let Some(CommandThread { commands, thread }) = command_thread {
        drop(commands);
        let _ = thread.join();
    }
}

/// Thread that executes a client's commands in order while the reader goes on, for clients that may send commands out of band.
struct CommandThread {
    commands: SyncSender<ParsedCommand>,
    thread: JoinHandle<()>,
}

impl CommandThread {
    fn begin(
        mut session_state: SessionState,
        outgoing: SyncSender<Outgoing>,
        state: Arc<ClientState>,
    ) -> io::Result<Self> {
        // One more command is being executed.
        let (commands, received) = sync_channel(WAITING_MAX - 1);
        let thread = spawn("qmp-commands", move || {
            for command in received {
                let answered = outgoing.send(Some(session_state.answer(command)));
                state.pending.fetch_sub(1, Ordering::SeqCst);
                if answered.is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { commands, thread })
    }
}

fn write(mut output: UnixStream, messages: &Receiver<Outgoing>) {
    while let Ok(Some(message)) = messages.recv() {
        if output.write_all(&message).is_err() {
            // Also wakes the reader.
            let _ = output.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    sandbox::spawn(Kind::Control, name, body)
}
