//! An outgoing migration: a thread that connects, runs the engine, and says how it ended.

use std::io;
use std::time::{Duration, Instant};

use vmstate::channel::tls::{Connection, TlsChannel, TlsClient};
use vmstate::channel::{MonotonicClock, SocketChannel};
use vmstate::migrate::multifd::{Compression, Senders};
use vmstate::migrate::source::{self, Outgoing, SourceOptions};
use vmstate::migrate::{Control, Phase, SourcePhase};
use vmstate::schema::json::Schema;

use super::channels::PageThreads;
use super::ended::Ended;
use super::engine_machine::EngineMachine;
use super::handover::Offer;
use super::look_up::LookUp;
use crate::config::{Address, Tls};
use crate::error::chain;
use crate::machine_map::MACHINE_TYPE;
use crate::migration::dirty_log::{MachineDirtyLog, NothingToSend};
use crate::migration::ram::MachineRam;
use crate::migration::sections::Parts;
use crate::sync::lock;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// How often a handshake that is waited for is given up if the migration is.
const LOOK: Duration = Duration::from_millis(20);

/// How connections are encrypted.
pub(super) struct Secure {
    client: TlsClient,
    /// The name that the destination's certificate has to have.
    host: String,
}

impl Secure {
    /// What `tls` asks for, on the way to `address`; `None`: nothing.
    ///
    /// # Errors
    /// A sentence for the user.
    pub(super) fn new(tls: &Tls, address: &Address) -> Result<Option<Self>, String> {
        // What was set for connections between hosts does not hold for a file or a hand-over.
        let (Some(options), false) = (tls.options(), address.stays_on_this_host()) else { return Ok(None) };
        let client = TlsClient::new(&options).map_err(|error| format!("tls-creds {error}"))?;
        let host = match (&tls.hostname, address) {
            (Some(name), _) => name.clone(),
            (None, Address::Tcp(peer)) => {
                peer.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']).into()
            }
            // Who is known by the certificate itself needs no name.
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

/// What the thread works with.
pub(super) struct OutgoingTask {
    pub(super) address: Address,
    /// Memory and networks that another process of this host goes on with.
    pub(super) offer: Option<Offer>,
    /// The main channel's connection, where it was passed.
    pub(super) connected: Option<SocketChannel>,
    /// How each connection is encrypted, if it is.
    pub(super) secure: Option<Secure>,
    pub(super) look_up: LookUp,
    /// Of the release that the destination has, unless it is this one.
    pub(super) release: Option<Schema>,
    pub(super) control: Control,
    pub(super) parts: Parts,
    pub(super) ram: MachineRam,
    pub(super) log: MachineDirtyLog,
    pub(super) machine: EngineMachine,
    /// How many page channels there are, and what goes on them.
    pub(super) channels: Option<(u8, Compression)>,
}

impl OutgoingTask {
    pub(super) fn run(mut self) -> Ended {
        let failed = |why| Ended { phase: Phase::Source(SourcePhase::Failed), error: Some(why), unrecorded: false };
        let mut channel = match self.connect() {
            Ok(channel) => channel,
            Err(_) if self.control.is_cancelled() => {
                return Ended { phase: Phase::Source(SourcePhase::Cancelled), error: None, unrecorded: false };
            }
            Err(error) => {
                return failed(match error.kind() {
                    // The other side answered, and the sentence says what to do.
                    io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => format!("{}: {error}", self.address),
                    _ => format!("{}: {error}; start the destination with --incoming and that address", self.address),
                });
            }
        };
        let mut sections = match self.parts.sections() {
            Ok(sections) => sections,
            Err(error) => return failed(chain(&error)),
        };
        if self.release.is_some() {
            self.machine.see_state();
        }
        sections.save_for(self.release.take());
        if let Err(error) = self.machine.begin() {
            return failed(chain(&error));
        }
        lock(&self.parts.state).preflight.stamp();
        let mut options = SourceOptions::new(MACHINE_TYPE);
        let _threads = match self.connect_pages() {
            Ok(None) => None,
            Ok(Some((senders, threads))) => {
                options.page_channels = Some(senders);
                Some(threads)
            }
            Err(error) => return failed(format!("a page channel to {}: {error}", self.address)),
        };
        let mut nothing = NothingToSend;
        let outgoing = Outgoing {
            channel: &mut channel,
            clock: &MonotonicClock::new(),
            machine: &mut self.machine,
            sections: &mut sections,
            ram: &self.ram,
            log: if self.offer.is_some() { &mut nothing } else { &mut self.log },
        };
        let departure = source::run(outgoing, &options, &self.control);
        let why = departure.error.as_ref().map(|error| chain(error));
        let unrecorded = self.machine.met_qemu();
        Ended { phase: Phase::Source(departure.phase), error: told(departure.phase, why), unrecorded }
    }

    /// Connects the page channels and starts their threads, behind the main channel: so a destination that takes connections in turn
    /// knows the source before its pages.
    fn connect_pages(&mut self) -> io::Result<Option<(Senders, PageThreads)>> {
        let Some((count, compression)) = self.channels else { return Ok(None) };
        let channels = (0..count).map(|_| self.connect()).collect::<io::Result<Vec<Connection>>>()?;
        let senders = Senders::new(count, compression);
        let threads = PageThreads::send(&senders, channels, &self.ram)?;
        Ok(Some((senders, threads)))
    }

    /// A connection that is ready for its first byte: its handshake is over, if it has one.
    fn connect(&mut self) -> io::Result<Connection> {
        let passed = self.connected.take();
        let go_on = || !self.control.is_cancelled();
        let socket = match &self.address {
            Address::Unix(path) => SocketChannel::connect_unix(path, CONNECT, &go_on),
            Address::Local(path) => match &self.offer {
                Some(offer) => offer.make(path),
                None => Err(io::ErrorKind::InvalidInput.into()),
            },
            Address::Tcp(host_and_port) => self.connect_tcp(host_and_port, &go_on),
            Address::Vsock { cid, port } => SocketChannel::connect_vsock(*cid, *port, CONNECT, &go_on),
            Address::Descriptor { .. } | Address::Exec(_) | Address::File { .. } => {
                passed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it cannot be connected to"))
            }
        }?;
        let Some(Secure { client, host }) = &self.secure else { return Ok(socket.into()) };
        shake_hands(TlsChannel::client(socket, client, host)?, &go_on)
    }

    /// To the first address that answers.
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

/// Ends the handshake of `channel`.
///
/// # Errors
/// The other side is refused, or refuses; it takes too long; `go_on` says false.
pub(super) fn shake_hands(mut channel: TlsChannel<SocketChannel>, go_on: &dyn Fn() -> bool) -> io::Result<Connection> {
    let deadline = Instant::now() + CONNECT;
    loop {
        match channel.handshake(LOOK) {
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

/// What the user is told about the end `phase`, which came about because of `why`.
fn told(phase: SourcePhase, why: Option<String>) -> Option<String> {
    let why = why.unwrap_or_default();
    match phase {
        SourcePhase::Completed | SourcePhase::Cancelled => None,
        SourcePhase::Unacknowledged => Some(format!(
            "the destination did not confirm that it runs the guest: {why}; another process holds the guest's disks or \
             has run it, so the guest stays stopped here; cont takes it back as soon as that is proved to be safe"
        )),
        SourcePhase::Undecided => Some(format!(
            "the destination did not confirm that it runs the guest: {why}; nothing can prove whether it does, so the \
             guest stays stopped here; look there, and only if it does not run, ask for cont with force here"
        )),
        SourcePhase::Interrupted => Some(format!(
            "the connection broke while the guest ran at the destination without all of its memory: {why}; it is lost there, and what is here is              older: cont takes it back only if it is proved that it never ran there"
        )),
        _ => Some(why),
    }
}
