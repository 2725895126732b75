//! Destination in post-copy whose connection broke: waits for its source at the first address, and at addresses that clients
//! give.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use vmstate::channel::tls::{Connection, TlsChannel, TlsServer};

use super::LOOK_UP;
use super::incoming::{self, IncomingListener, Origin};
use super::look_up::LookUp;
use super::replaceable::{Connections, Recovery};
use crate::config::Address;
use crate::error::chain;
use crate::vm::published::Published;
use crate::vm::request::Refusal;

/// Interval between two checks of each address.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Time for which a check waits for a connection.
const ACCEPT_TIMEOUT: Duration = Duration::from_millis(1);

/// Addresses at which the source of a migration is awaited again.
pub(super) struct ReconnectListeners {
    /// Listener at which the source was awaited first, if there was one.
    pub(super) first: Option<Arc<IncomingListener>>,
    /// The address of `first`, if it is known.
    pub(super) address: Option<Address>,
    /// The address that a client gave last, and its listener.
    pub(super) named: Option<(Address, IncomingListener)>,
    /// A connection that a client has passed.
    pub(super) connected: Option<Connection>,
    /// Whether there is a control socket, by which a client can give an address.
    pub(super) can_be_asked: bool,
    pub(super) shared: Arc<Published>,
    /// Resolves host names.
    pub(super) look_up: LookUp,
    /// TLS server for the connections, if they are encrypted.
    pub(super) server: Option<TlsServer>,
}

impl Connections for ReconnectListeners {
    /// Waits until the source has connected again; `None` if the source cannot: this machine listens at no address, and has no control
    /// socket by which a client could give one.
    fn replace(&mut self, why: &vmstate::Error) -> Option<Connection> {
        if self.first.is_none() && self.named.is_none() && !self.can_be_asked {
            return None;
        }
        let why = format!(
            "the connection broke: {}; the guest waits for memory that is only at the source: migrate there with resume, to where this \
             machine listens or to what migrate-recover names",
            chain(why)
        );
        self.shared.update_migration(|info| info.error = Some(why));
        let (sender, recoveries) = channel();
        self.shared.set_recovery(Some(sender));
        let connection = loop {
            if let Some(connection) = self.look() {
                break connection;
            }
            self.take_address(&recoveries);
        };
        self.shared.set_recovery(None);
        self.shared.update_migration(|info| info.error = None);
        Some(connection)
    }

    fn urgent(&mut self) -> io::Result<Option<Connection>> {
        for listener in self.listeners() {
            if let Some(connection) = listener.accept_urgent()? {
                return Ok(Some(connection));
            }
        }
        Ok(None)
    }
}

impl ReconnectListeners {
    fn listeners(&self) -> impl Iterator<Item = &IncomingListener> {
        self.first.as_deref().into_iter().chain(self.named.as_ref().map(|(_, listener)| listener))
    }

    /// Returns the source's connection, if it has connected.
    fn look(&mut self) -> Option<Connection> {
        if let Some(connection) = self.connected.take() {
            return Some(connection);
        }
        self.listeners().filter_map(|listener| listener.accept_resuming(ACCEPT_TIMEOUT).ok()).next()
    }

    /// Listens at an address, if a client gives one within a moment.
    fn take_address(&mut self, recoveries: &Receiver<Recovery>) {
        match recoveries.recv_timeout(CHECK_INTERVAL) {
            Ok(Recovery { at, answer }) => {
                // The client may be gone.
                let _ = answer.send(self.listen(&at).map_err(Refusal));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(CHECK_INTERVAL),
        }
    }

    fn listen(&mut self, at: &Address) -> Result<(), String> {
        let first = self.address.as_ref().filter(|_| self.first.is_some());
        if first.into_iter().chain(self.named.as_ref().map(|(address, _)| address)).any(|address| address == at) {
            return Ok(());
        }
        let look_up = |name: &str| self.look_up.addresses(name, Instant::now() + LOOK_UP, &|| true);
        match incoming::origin(at, self.server.clone(), look_up, false)? {
            Origin::Listener(listener) => {
                self.named = Some((at.clone(), listener));
                Ok(())
            }
            Origin::Connection(socket, server) => {
                let connection = match server {
                    Some(server) => TlsChannel::server(socket, &server).map(Connection::from),
                    None => Ok(socket.into()),
                };
                self.connected = Some(connection.map_err(|error| format!("{at}: {error}"))?);
                Ok(())
            }
            Origin::HandedOver(_) | Origin::File(_) => {
                Err(format!("{at}: post-copy continues only over a connection: give an address, as tcp:HOST:PORT"))
            }
        }
    }
}
