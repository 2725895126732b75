//! Outgoing migration: a thread that connects, runs the engine, and reports the end.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use vmstate::channel::MonotonicClock;
use vmstate::channel::tls::Connection;
use vmstate::migrate::multifd::{Compression, Senders};
use vmstate::migrate::source::{self, Outgoing, SourceOptions};
use vmstate::migrate::{Control, Phase, SourcePhase};
use vmstate::schema::json::Schema;

use super::channels::PageThreads;
use super::connector::Connector;
use super::ended::Ended;
use super::engine_machine::EngineMachine;
use super::replaceable::{Connections, Reconnection, Replaceable};
use crate::config::Address;
use crate::error::chain;
use crate::machine_map::MACHINE_TYPE;
use crate::migration::dirty_log::{MachineDirtyLog, NothingToSend};
use crate::migration::ram::MachineRam;
use crate::migration::sections::Parts;
use crate::sync::lock;
use crate::vm::published::Published;

/// State of the migration thread.
pub(super) struct OutgoingTask {
    pub(super) connector: Connector,
    /// Addresses for post-copy's reconnection; closed once no more can come.
    pub(super) reconnections: Receiver<Reconnection>,
    /// Published state, for the reason of a lost connection.
    pub(super) shared: Arc<Published>,
    /// Schema of the destination's release, unless it is this one.
    pub(super) release: Option<Schema>,
    pub(super) control: Control,
    pub(super) parts: Parts,
    pub(super) ram: MachineRam,
    pub(super) log: MachineDirtyLog,
    pub(super) machine: EngineMachine,
    /// Number of page channels, and their compression.
    pub(super) channels: Option<(u8, Compression)>,
}

/// Makes the source's further connections.
struct Reconnecting<'a> {
    connector: &'a mut Connector,
    reconnections: &'a Receiver<Reconnection>,
    shared: &'a Published,
}

impl Connections for Reconnecting<'_> {
    /// Connects to the addresses that clients give until that succeeds; `None` once no more can come.
    fn replace(&mut self, why: &vmstate::Error) -> Option<Connection> {
        let mut why = format!(
            "the connection broke: {}; the guest runs at the destination and waits there for memory that is only here: migrate with resume",
            chain(why)
        );
        loop {
            self.shared.update_migration(|info| info.error = Some(why));
            let Reconnection { address, secure, connected } = self.reconnections.recv().ok()?;
            let connector = &mut *self.connector;
            (connector.address, connector.secure, connector.connected) = (address, secure, connected);
            match connector.connect() {
                Ok(connection) => {
                    self.shared.update_migration(|info| info.error = None);
                    return Some(connection);
                }
                Err(error) => why = format!("{}: {error}", connector.address),
            }
        }
    }

    fn urgent(&mut self) -> io::Result<Option<Connection>> {
        let connects_again = !matches!(self.connector.address, Address::Descriptor { .. } | Address::Exec(_));
        connects_again.then(|| self.connector.connect()).transpose()
    }
}

impl OutgoingTask {
    pub(super) fn run(mut self) -> Ended {
        let failed = |why| Ended { phase: Phase::Source(SourcePhase::Failed), error: Some(why), unrecorded: false };
        let channel = match self.connector.connect() {
            Ok(channel) => channel,
            Err(_) if self.control.is_cancelled() => {
                return Ended { phase: Phase::Source(SourcePhase::Cancelled), error: None, unrecorded: false };
            }
            Err(error) => {
                return failed(match error.kind() {
                    // The other side answered, and the message says what to do.
                    io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                        format!("{}: {error}", self.connector.address)
                    }
                    _ => {
                        let address = &self.connector.address;
                        format!("{address}: {error}; start the destination with --incoming and that address")
                    }
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
            Err(error) => return failed(format!("a page channel to {}: {error}", self.connector.address)),
        };
        let mut nothing = NothingToSend;
        let is_local = self.connector.offer.is_some();
        let mut others =
            Reconnecting { connector: &mut self.connector, reconnections: &self.reconnections, shared: &self.shared };
        let mut channel = Replaceable::new(channel, &mut others);
        let outgoing = Outgoing {
            channel: &mut channel,
            clock: &MonotonicClock::new(),
            machine: &mut self.machine,
            sections: &mut sections,
            ram: &self.ram,
            log: if is_local { &mut nothing } else { &mut self.log },
        };
        let departure = source::run(outgoing, &options, &self.control);
        let why = departure.error.as_ref().map(|error| chain(error));
        let unrecorded = self.machine.peer_is_qemu();
        Ended { phase: Phase::Source(departure.phase), error: message(departure.phase, why), unrecorded }
    }

    /// Connects the page channels and starts their threads, after the main channel: so a destination that accepts connections
    /// in order sees the source before its pages.
    fn connect_pages(&mut self) -> io::Result<Option<(Senders, PageThreads)>> {
        let Some((count, compression)) = self.channels else { return Ok(None) };
        let channels = (0..count).map(|_| self.connector.connect()).collect::<io::Result<Vec<Connection>>>()?;
        let senders = Senders::new(count, compression);
        let threads = PageThreads::send(&senders, channels, &self.ram)?;
        Ok(Some((senders, threads)))
    }
}

/// Message for the user about the final phase and its reason.
fn message(phase: SourcePhase, why: Option<String>) -> Option<String> {
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
            "the connection broke while the guest ran at the destination without all of its memory: {why}; unless the destination says that \
             the migration completed, it is lost there, and what is here is older: cont takes it back only if it is proved that it never ran \
             there"
        )),
        _ => Some(why),
    }
}
