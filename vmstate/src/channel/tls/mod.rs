//! TLS 1.3 on any channel: no thread, no wait beyond a call's timeout, bounded buffers.
//!
//! Each connection of a migration, a page channel's too, does its own handshake before its first byte, as QEMU's do. A stream
//! ends with `close_notify`; a connection that ends without it is an error, for somebody else may have ended it.

mod connection;
mod name;
mod refusal;
mod side;
mod verify;

use std::fmt;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use rustls::Connection as Session;

use super::{Channel, Listener, Plain, Security, SocketChannel};
pub use connection::Connection;
pub use name::{Fingerprint, NoFingerprint};
pub use side::{TlsClient, TlsError, TlsOptions, TlsServer};

/// Bytes that one call encrypts at most: four records. What they become fits into what a socket holds.
const CHUNK: usize = 64 << 10;
/// Bytes of the peer that are taken from the transport at once.
const INCOMING: usize = 64 << 10;
/// How long the last words of a connection may take, where its transport is full.
const FAREWELL: Duration = Duration::from_millis(100);

/// A channel that encrypts what it sends on another one, and decrypts what comes.
///
/// After a send that timed out, the next one has to begin with the same bytes, as the engine's do: some of them may be on their
/// way already.
pub struct TlsChannel<C: Channel> {
    inner: C,
    session: Session,
    /// Bytes of the caller's that are encrypted and not yet all written to the transport.
    owed: usize,
    incoming: Box<[u8]>,
    /// What of `incoming` the session has not taken yet.
    unread: std::ops::Range<usize>,
    /// Decrypted by [`peek`](Self::peek), and not received yet.
    ahead: Vec<u8>,
    /// Something came that was decrypted.
    heard: bool,
    /// The first bytes that the peer sent.
    first: Vec<u8>,
    /// The connection ends as a broken one does: without `close_notify`.
    broken: bool,
}

impl<C: Channel> fmt::Debug for TlsChannel<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handshake = self.session.is_handshaking();
        f.debug_struct("TlsChannel").field("handshake", &handshake).field("owed", &self.owed).finish_non_exhaustive()
    }
}

impl<C: Channel> TlsChannel<C> {
    /// The side that was connected to. The handshake is done by [`handshake`](Self::handshake), or by the first byte that is sent
    /// or received.
    ///
    /// # Errors
    /// What the library says of its configuration.
    pub fn server(inner: C, server: &TlsServer) -> io::Result<Self> {
        let session = rustls::ServerConnection::new(server.config()).map_err(io::Error::other)?;
        Ok(Self::new(inner, session.into()))
    }

    /// The side that has connected, to a host of the name or address `host`; as [`server`](Self::server).
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the server's certificate has to have a name, and `host` is none.
    pub fn client(inner: C, client: &TlsClient, host: &str) -> io::Result<Self> {
        let name = client.name(host)?;
        let session = rustls::ClientConnection::new(client.config(), name).map_err(io::Error::other)?;
        Ok(Self::new(inner, session.into()))
    }

    fn new(inner: C, mut session: Session) -> Self {
        // What is written is bounded here; the session would silently take less.
        session.set_buffer_limit(None);
        let incoming = vec![0; INCOMING].into_boxed_slice();
        Self {
            inner,
            session,
            owed: 0,
            incoming,
            unread: 0..0,
            ahead: Vec::new(),
            heard: false,
            first: Vec::new(),
            broken: false,
        }
    }

    /// Does what of the handshake can be done within `timeout`.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if it is not over then, and it may be gone on with; a sentence that says why one side refuses
    /// the other.
    pub fn handshake(&mut self, timeout: Duration) -> io::Result<()> {
        let until = Deadline::new(timeout);
        while self.session.is_handshaking() {
            match self.flush(&until).and_then(|()| self.fill(&until)) {
                Ok(0) => {}
                Err(error) if is_closed(&error) => {}
                Err(error) => return Err(error),
                Ok(_) => continue,
            }
            self.broken = true;
            return Err(refusal::closed(self.is_server()));
        }
        self.flush(&until)
    }

    /// Fills `into` with the first bytes that come, as far as they have come, and leaves them to be received.
    ///
    /// # Errors
    /// As [`receive`](Channel::receive).
    pub fn peek(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.ahead.len() < into.len() {
            let mut part = vec![0; into.len() - self.ahead.len()];
            match self.decrypt(&mut part, Duration::ZERO) {
                Ok(0) => break,
                Ok(count) => self.ahead.extend_from_slice(part.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::TimedOut && !self.ahead.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        self.ahead.as_slice().read(into)
    }

    fn is_server(&self) -> bool {
        matches!(self.session, Session::Server(_))
    }

    /// Gives the transport all that the session has for it.
    fn flush(&mut self, until: &Deadline) -> io::Result<()> {
        while self.session.wants_write() {
            let mut wire = Wire { channel: &mut self.inner, timeout: until.left() };
            if let Err(error) = self.session.write_tls(&mut wire) {
                return Err(self.because(error));
            }
        }
        Ok(())
    }

    /// Why the transport takes nothing any more: the peer may have said so before.
    fn because(&mut self, error: io::Error) -> io::Error {
        if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) {
            return error;
        }
        self.broken = true;
        loop {
            match self.fill(&Deadline::new(Duration::ZERO)) {
                Ok(0) => return error,
                Ok(_) => {}
                Err(said) if said.get_ref().is_some() && said.kind() == io::ErrorKind::InvalidData => return said,
                Err(_) => return error,
            }
        }
    }

    /// Gives the session what comes, and returns how many bytes that were; 0 at the end of the connection.
    fn fill(&mut self, until: &Deadline) -> io::Result<usize> {
        if self.unread.is_empty() {
            let count = self.inner.receive(&mut self.incoming, until.left())?;
            self.unread = 0..count;
            let wanted = 4 - self.first.len();
            self.first.extend_from_slice(self.incoming.get(..count.min(wanted)).unwrap_or_default());
        }
        let mut bytes = self.incoming.get(self.unread.clone()).unwrap_or_default();
        let count = self.session.read_tls(&mut bytes)?;
        self.unread.start += count;
        if let Err(error) = self.session.process_new_packets() {
            self.broken = true;
            // The alert; a peer that takes none hears nothing.
            let mut wire = Wire { channel: &mut self.inner, timeout: FAREWELL };
            while self.session.wants_write() && self.session.write_tls(&mut wire).is_ok() {}
            return Err(refusal::of(&error, self.is_server(), &self.first));
        }
        Ok(count)
    }

    fn decrypt(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        let until = Deadline::new(timeout);
        self.handshake(timeout)?;
        loop {
            match self.session.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.broken = true;
                    return Err(if self.heard { refusal::truncated() } else { refusal::unheard(self.is_server()) });
                }
                result => {
                    self.heard |= result.as_ref().is_ok_and(|count| *count > 0);
                    return result;
                }
            }
            match self.fill(&until) {
                Err(error) if is_closed(&error) && !self.heard => {
                    self.broken = true;
                    return Err(refusal::unheard(self.is_server()));
                }
                filled => filled?,
            };
        }
    }
}

impl<C: Channel> Channel for TlsChannel<C> {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        let until = Deadline::new(timeout);
        self.handshake(timeout)?;
        if self.owed == 0 {
            let chunk = bytes.get(..bytes.len().min(CHUNK)).unwrap_or_default();
            self.owed = self.session.writer().write(chunk)?;
        }
        self.flush(&until)?;
        Ok(std::mem::take(&mut self.owed))
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        if self.ahead.is_empty() {
            return self.decrypt(into, timeout);
        }
        let count = self.ahead.as_slice().read(into)?;
        self.ahead.drain(..count);
        Ok(count)
    }
}

impl<C: Channel> Drop for TlsChannel<C> {
    /// Says that this is the end, unless it comes in the middle of something.
    fn drop(&mut self) {
        if self.broken || self.owed > 0 || self.session.is_handshaking() {
            return;
        }
        self.session.send_close_notify();
        let _ = self.flush(&Deadline::new(FAREWELL));
    }
}

/// Speaks TLS with whoever connects; `None`: does not.
impl Security for Option<TlsServer> {
    type Channel = Connection;

    fn secure(&self, socket: SocketChannel) -> io::Result<Connection> {
        match self {
            Some(server) => TlsChannel::server(socket, server).map(Connection::from),
            None => Ok(socket.into()),
        }
    }

    fn peek(channel: &mut Connection, into: &mut [u8]) -> io::Result<usize> {
        channel.peek(into)
    }

    /// By an alert.
    fn tells(channel: &Connection) -> bool {
        matches!(channel, Connection::Tls(_))
    }
}

impl Listener<Plain> {
    /// Speaks TLS with whoever connects from now on, if there is a `server`: a stream is one whose first decrypted bytes say so.
    #[must_use]
    pub fn with_tls(self, server: impl Into<Option<TlsServer>>) -> Listener<Option<TlsServer>> {
        self.secured(server.into())
    }
}

/// What a transport says whose peer has gone without taking what was sent.
fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// A moment by which a call has to return.
struct Deadline(Option<Instant>);

impl Deadline {
    fn new(timeout: Duration) -> Self {
        // One that no clock reaches is none.
        Self(Instant::now().checked_add(timeout))
    }

    fn left(&self) -> Duration {
        self.0.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()))
    }
}

/// The transport as the session writes to it.
struct Wire<'a, C> {
    channel: &'a mut C,
    timeout: Duration,
}

impl<C: Channel> Write for Wire<'_, C> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.channel.send(bytes, self.timeout)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
