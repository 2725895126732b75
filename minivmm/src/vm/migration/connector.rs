//! Connections of a source: to an address of any kind, with TLS if it is set.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vmstate::channel::SocketChannel;
use vmstate::channel::tls::{Connection, TlsChannel, TlsClient};
use vmstate::migrate::Control;

use super::handover::{CONNECT, Offer};
use super::look_up::LookUp;
use crate::config::{Address, Tls};

/// Interval at which a handshake checks whether the migration was given up.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// TLS for the connections of a migration.
pub(super) struct Secure {
    client: TlsClient,
    /// Name that the destination's certificate must have.
    host: String,
}

impl Secure {
    /// Sets up TLS for `address` by the parameters `tls`; `None` without encryption.
    ///
    /// # Errors
    /// The reason, as a sentence for the user.
    pub(super) fn new(tls: &Tls, address: &Address) -> Result<Option<Self>, String> {
        // The parameters of TLS do not apply to a file or a hand-over.
        let (Some(options), false) = (tls.options(), address.stays_on_this_host()) else { return Ok(None) };
        let client = TlsClient::new(&options).map_err(|error| format!("tls-creds {error}"))?;
        let host = match (&tls.hostname, address) {
            (Some(name), _) => name.clone(),
            (None, Address::Tcp(peer)) => {
                peer.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']).into()
            }
            // With pinned certificates no name is needed.
            (None, _) if !tls.pin.is_empty() => String::new(),
            (None, address) => {
                return Err(format!(
                    "{address} names no host that a certificate could be for: set tls-hostname to a name in the destination's \
                     certificate"
                ));
            }
        };
        Ok(Some(Self { client, host }))
    }
}

/// Makes the connections of one migration.
pub(super) struct Connector {
    pub(super) address: Address,
    /// Memory, networks and console to hand over to another process of this host.
    pub(super) offer: Option<Offer>,
    /// Unix socket at which they are handed over before the connection is made; `None` if this is done on the connection itself.
    pub(super) cpr: Option<PathBuf>,
    /// Connection of the main channel, if it was passed.
    pub(super) connected: Option<SocketChannel>,
    /// TLS for each connection, if it is set.
    pub(super) secure: Option<Secure>,
    pub(super) look_up: LookUp,
    pub(super) control: Control,
}

impl Connector {
    /// Makes a connection, including its handshake.
    pub(super) fn connect(&mut self) -> io::Result<Connection> {
        let passed = self.connected.take();
        let go_on = || !self.control.is_cancelled();
        if let (Some(offer), Some(path)) = (&self.offer, self.cpr.take()) {
            let transferred = offer.transfer(&path, &go_on);
            transferred.map_err(|error| {
                io::Error::new(error.kind(), format!("cpr channel unix:{}: {error}", path.display()))
            })?;
        }
        let socket = match &self.address {
            Address::Unix(path) => SocketChannel::connect_unix(path, CONNECT, &go_on),
            Address::Local(path) => match &self.offer {
                Some(offer) => offer.make(path, &go_on),
                None => Err(io::ErrorKind::InvalidInput.into()),
            },
            Address::Tcp(host_and_port) => self.connect_tcp(host_and_port, &go_on),
            Address::Vsock { cid, port } => SocketChannel::connect_vsock(*cid, *port, CONNECT, &go_on),
            Address::Descriptor { .. } | Address::Exec(_) | Address::File { .. } => {
                passed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it cannot be connected to"))
            }
        }?;
        let Some(Secure { client, host }) = &self.secure else { return Ok(socket.into()) };
        complete_handshake(TlsChannel::client(socket, client, host)?, &go_on)
    }

    /// Connects to the first address that answers.
    fn connect_tcp(&self, host_and_port: &str, go_on: &dyn Fn() -> bool) -> io::Result<SocketChannel> {
        let deadline = Instant::now() + CONNECT;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.look_up.addresses(host_and_port, deadline, go_on)? {
            let left = deadline.saturating_duration_since(Instant::now());
            match SocketChannel::connect_tcp(&address.to_string(), left, go_on) {
                Err(error) if go_on() && Instant::now() < deadline => last = error,
                result => return result,
            }
        }
        Err(last)
    }
}

/// Completes the handshake of `channel`.
///
/// # Errors
/// A side refuses the other one; the handshake takes too long; `go_on` returns false.
pub(super) fn complete_handshake(
    mut channel: TlsChannel<SocketChannel>,
    go_on: &dyn Fn() -> bool,
) -> io::Result<Connection> {
    let deadline = Instant::now() + CONNECT;
    loop {
        match channel.handshake(CHECK_INTERVAL) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && go_on() => {
                if Instant::now() >= deadline {
                    let what = format!("TLS: the other side has not ended the handshake within {CONNECT:?}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
            }
            result => return result.map(|()| channel.into()),
        }
    }
}
