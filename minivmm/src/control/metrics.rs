//! HTTP server for the machine's metrics, on a thread of its own: at a unix socket for this user only, or at a loopback port.
//!
//! One client is served at a time, each for a short time at most, so that clients cost the machine neither memory nor threads.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::config::Address;
use crate::control::exposition;
use crate::control::socket::{ControlError, ControlSocket};
use crate::sandbox::{self, Kind};
use crate::vm::{Handle, RunState};

/// Longest request, in bytes.
const REQUEST_MAX: usize = 8 * 1024;

/// How long a client may take for its request, and for reading the answer.
const TIMEOUT: Duration = Duration::from_secs(1);

const FLAG: &str = "--metrics";

/// Name of the listening socket among the descriptors that a machine hands over with its guest.
pub const METRICS_DESCRIPTOR: &str = "metrics";

/// Listening socket whose clients are not served yet.
#[derive(Debug)]
pub struct MetricsSocket(Listener);

#[derive(Debug)]
enum Listener {
    Unix(ControlSocket),
    Tcp(TcpListener),
}

/// Server of metrics; dropping it removes the socket's file. If the socket is shared by both sides of a hand-over, only the process
/// that has the guest removes the file.
#[derive(Debug)]
pub struct Metrics {
    socket: Arc<MetricsSocket>,
    handle: Handle,
}

impl MetricsSocket {
    /// Listens at `address`; or continues the listening socket that was `handed_over` with the guest, if it has this address.
    ///
    /// # Errors
    /// The address is in use, or the system refuses it; a TCP address is not a loopback one.
    pub fn open(address: &Address, handed_over: Option<OwnedFd>) -> Result<Self, ControlError> {
        let refused = |source| ControlError::Listen { flag: FLAG, address: address.to_string(), source };
        let peer = match address {
            Address::Unix(path) => {
                let continued = handed_over.and_then(|socket| ControlSocket::continuing(path, socket));
                let socket = continued.map_or_else(|| ControlSocket::open(FLAG, path), Ok);
                return socket.map(|socket| Self(Listener::Unix(socket)));
            }
            Address::Tcp(peer) => peer,
            _ => {
                return Err(refused(io::Error::other(
                    "metrics are served at a socket; write unix:PATH or tcp:127.0.0.1:PORT",
                )));
            }
        };
        // A host name could resolve to an address of another interface.
        let loopback = peer.replacen("localhost:", "127.0.0.1:", 1).parse::<SocketAddr>().ok();
        let loopback = loopback.filter(|address| address.ip().is_loopback());
        let why = "metrics are served at loopback only; write tcp:127.0.0.1:PORT";
        let address = loopback.ok_or_else(|| refused(io::Error::other(why)))?;
        let continued = handed_over.map(TcpListener::from);
        // Port 0 is any port (ip(7)).
        let continued = continued.filter(|socket| {
            let local = socket.local_addr().ok();
            local.is_some_and(|local| local == address || (local.ip(), 0) == (address.ip(), address.port()))
        });
        let listener = continued.map_or_else(|| TcpListener::bind(address), Ok);
        listener.map(|listener| Self(Listener::Tcp(listener))).map_err(refused)
    }

    /// Duplicates the descriptor of the listening socket, with which another process can continue.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        match &self.0 {
            Listener::Unix(socket) => socket.listener().as_fd().try_clone_to_owned(),
            Listener::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
        }
    }

    /// Returns the port of a TCP socket.
    ///
    /// # Errors
    /// The system's.
    pub fn port(&self) -> io::Result<Option<u16>> {
        match &self.0 {
            Listener::Unix(_) => Ok(None),
            Listener::Tcp(listener) => Ok(Some(listener.local_addr()?.port())),
        }
    }

    /// Serves clients on a thread of its own.
    ///
    /// # Errors
    /// The thread cannot be spawned.
    pub fn serve(self, handle: Handle) -> io::Result<Metrics> {
        let socket = Arc::new(self);
        let (theirs, their_handle) = (Arc::clone(&socket), handle.clone());
        sandbox::spawn(Kind::Control, "metrics", move || theirs.accept(&their_handle))?;
        Ok(Metrics { socket, handle })
    }

    fn accept(&self, handle: &Handle) {
        loop {
            let served = match &self.0 {
                Listener::Unix(socket) => socket.listener().accept().and_then(|(client, _)| serve(client, handle)),
                Listener::Tcp(listener) => listener.accept().and_then(|(client, _)| serve(client, handle)),
            };
            // Clients leave, and the host may be out of descriptors for a while: the server continues.
            if served.is_err() {
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        // The thread keeps the listener until the process ends.
        if let Listener::Unix(socket) = &self.socket.0 {
            let guest_is_at_source = socket.is_continued() && self.handle.run_state() == RunState::InMigrate;
            if !guest_is_at_source && !self.handle.is_handed_over() {
                socket.remove_file();
            }
        }
    }
}

fn serve(mut client: impl Read + Write + AsFd, handle: &Handle) -> io::Result<()> {
    let socket = SockRef::from(&client);
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    let request = request(&mut client)?;
    let (status, text) = answer(&request, || exposition::page(handle));
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        text.len()
    );
    client.write_all(head.as_bytes())?;
    client.write_all(text.as_bytes())
}

/// Reads a request up to the empty line after its head or up to [`REQUEST_MAX`]; anything that follows is ignored.
fn request(client: &mut impl Read) -> io::Result<Vec<u8>> {
    let (mut request, mut part) = (Vec::new(), [0; 1024]);
    let deadline = Instant::now() + TIMEOUT;
    while request.len() < REQUEST_MAX && !request.windows(4).any(|window| window == b"\r\n\r\n") {
        let read = client.read(&mut part)?;
        if read == 0 || Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        request.extend_from_slice(&part[..read]);
    }
    Ok(request)
}

/// Returns status line and text. RFC 9112, section 3: the request line is `METHOD TARGET VERSION`.
fn answer(request: &[u8], page: impl FnOnce() -> String) -> (&'static str, String) {
    let line = request.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let words: Vec<_> = line.split(|&byte| byte == b' ').collect();
    match words[..] {
        [b"GET", target, version] if version.starts_with(b"HTTP/1.") => match target.split(|&byte| byte == b'?').next()
        {
            Some(b"/metrics") => ("200 OK", page()),
            _ => ("404 Not Found", "metrics are at /metrics\n".into()),
        },
        [_, _, version] if version.starts_with(b"HTTP/1.") => {
            ("405 Method Not Allowed", "only GET is answered\n".into())
        }
        _ => ("400 Bad Request", "this is not a request of HTTP/1.1\n".into()),
    }
}
