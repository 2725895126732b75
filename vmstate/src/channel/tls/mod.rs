//! TLS 1.3 on any channel: no thread, no wait beyond a call's timeout, bounded buffers.
//!
//! Each connection of a migration, including each page channel, does its own handshake before its first byte, as QEMU's do. A
//! stream ends with `close_notify`; a connection that ends without it is an error, because an attacker may have cut it.

mod connection;
mod name;
mod refusal;
mod side;
mod verify;

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustls::Connection as Session;

use super::{Channel, Listener, Plain, Security, SocketChannel};
pub use connection::Connection;
pub use name::{Fingerprint, NoFingerprint};
pub use side::{TlsClient, TlsError, TlsOptions, TlsServer};

/// The most bytes that one call encrypts: four records. Their ciphertext fits a socket's buffer.
const CHUNK: usize = 64 << 10;
/// The most bytes that are read from the transport at once.
const INCOMING: usize = 64 << 10;
/// How long a closing connection may wait for a full transport to take its last messages.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// A channel that encrypts data for another channel, and decrypts received data.
///
/// After a send that timed out, the next send has to begin with the same bytes, as the engine does: some of them may have been
/// sent already.
pub struct TlsChannel<C: Channel> {
    inner: C,
    session: Session,
    /// Number of the caller's bytes that are encrypted and not yet completely written to the transport.
    owed: usize,
    incoming: Box<[u8]>,
    /// The range of `incoming` that the session has not read yet.
    unread: std::ops::Range<usize>,
    /// Bytes that [`peek`](Self::peek) decrypted, and that were not received yet.
    ahead: Vec<u8>,
    /// True once something was received and decrypted.
    has_received: bool,
    /// The first bytes that the peer sent.
    first: Vec<u8>,
    /// True if the connection must end like a broken one: without `close_notify`.
    broken: bool,
}

impl<C: Channel> fmt::Debug for TlsChannel<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handshake = self.session.is_handshaking();
        f.debug_struct("TlsChannel").field("handshake", &handshake).field("owed", &self.owed).finish_non_exhaustive()
    }
}

impl<C: Channel> TlsChannel<C> {
    /// Creates the server's side. The handshake is done by [`handshake`](Self::handshake), or by the first byte that is sent or
    /// received.
    ///
    /// # Errors
    /// The TLS library's error about its configuration.
    pub fn server(inner: C, server: &TlsServer) -> io::Result<Self> {
        let session = rustls::ServerConnection::new(server.config()).map_err(io::Error::other)?;
        Ok(Self::new(inner, session.into()))
    }

    /// Creates the client's side, for a host with the name or address `host`; as for [`server`](Self::server).
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the server's certificate must have a name, and `host` is not one.
    pub fn client(inner: C, client: &TlsClient, host: &str) -> io::Result<Self> {
        let name = client.name(host)?;
        let session = rustls::ClientConnection::new(client.config(), name).map_err(io::Error::other)?;
        Ok(Self::new(inner, session.into()))
    }

    fn new(inner: C, mut session: Session) -> Self {
        // This module bounds the data; with a limit, the session would silently take less.
        session.set_buffer_limit(None);
        let incoming = vec![0; INCOMING].into_boxed_slice();
        Self {
            inner,
            session,
            owed: 0,
            incoming,
            unread: 0..0,
            ahead: Vec::new(),
            has_received: false,
            first: Vec::new(),
            broken: false,
        }
    }

    /// Advances the handshake as far as possible within `timeout`.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if the handshake is not complete and may be continued; otherwise a sentence that says why one
    /// side refuses the other.
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

    /// Copies the first bytes that have arrived to `into`; they can still be received.
    ///
    /// # Errors
    /// As for [`receive`](Channel::receive).
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

    /// Writes all pending records of the session to the transport.
    fn flush(&mut self, until: &Deadline) -> io::Result<()> {
        while self.session.wants_write() {
            let mut wire = Wire { channel: &mut self.inner, timeout: until.left() };
            if let Err(error) = self.session.write_tls(&mut wire) {
                return Err(self.because(error));
            }
        }
        Ok(())
    }

    /// The reason why the transport accepts nothing: the peer may have sent it before.
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

    /// Passes received bytes to the session, and returns their number; 0 at the end of the connection.
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
            // Sends the alert, if the transport accepts it in time.
            let mut wire = Wire { channel: &mut self.inner, timeout: CLOSE_TIMEOUT };
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
                    return Err(if self.has_received {
                        refusal::truncated()
                    } else {
                        refusal::closed_after_handshake(self.is_server())
                    });
                }
                result => {
                    self.has_received |= result.as_ref().is_ok_and(|count| *count > 0);
                    return result;
                }
            }
            match self.fill(&until) {
                Err(error) if is_closed(&error) && !self.has_received => {
                    self.broken = true;
                    return Err(refusal::closed_after_handshake(self.is_server()));
                }
                filled => filled?,
            };
        }
    }
}

impl<C: Channel> Channel for TlsChannel<C> {
    /// Decrypted bytes are received without waiting, so every wait is for bytes of this descriptor.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.descriptor()
    }

    fn shorten_queue(&mut self) {
        self.inner.shorten_queue();
    }

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
    /// Sends `close_notify`, unless the connection is broken, or ends within the handshake or with data unsent.
    fn drop(&mut self) {
        if self.broken || self.owed > 0 || self.session.is_handshaking() {
            return;
        }
        self.session.send_close_notify();
        let _ = self.flush(&Deadline::new(CLOSE_TIMEOUT));
    }
}

/// Requires TLS of each connection, or uses none if `None`.
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

    /// TLS sends an alert.
    fn sends_reason(channel: &Connection) -> bool {
        matches!(channel, Connection::Tls(_))
    }
}

impl Listener<Plain> {
    /// Requires TLS of each connection from now on, if there is a `server`: a stream is then recognised by its first decrypted
    /// bytes.
    #[must_use]
    pub fn with_tls(self, server: impl Into<Option<TlsServer>>) -> Listener<Option<TlsServer>> {
        self.secured(server.into())
    }
}

/// True for a transport's error after the peer has closed without reading everything.
fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// The time by which a call must return.
struct Deadline(Option<Instant>);

impl Deadline {
    fn new(timeout: Duration) -> Self {
        // Without a deadline if the timeout exceeds the range of the clock.
        Self(Instant::now().checked_add(timeout))
    }

    fn left(&self) -> Duration {
        self.0.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()))
    }
}

/// The transport, as the writer and reader of the session.
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
