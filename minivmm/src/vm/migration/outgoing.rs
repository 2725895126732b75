//! An outgoing migration: a thread that connects, runs the engine, and says how it ended.

use std::io;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use vmstate::channel::{MonotonicClock, SocketChannel};
use vmstate::migrate::multifd::{Compression, Senders};
use vmstate::migrate::source::{self, Outgoing, SourceOptions};
use vmstate::migrate::{Control, Phase, SourcePhase};
use vmstate::schema::json::Schema;

use super::channels::PageThreads;
use super::ended::Ended;
use super::look_up::LookUp;
use super::seam::Seam;
use crate::boot::layout::MACHINE_TYPE;
use crate::config::Address;
use crate::error::chain;
use crate::migration::dirty_log::MachineDirtyLog;
use crate::migration::ram::MachineRam;
use crate::migration::sections::Parts;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// What the thread works with.
pub(super) struct Departure {
    pub(super) address: Address,
    pub(super) look_up: LookUp,
    /// Of the release that the destination has, unless it is this one.
    pub(super) release: Option<Schema>,
    pub(super) control: Control,
    pub(super) parts: Parts,
    pub(super) ram: MachineRam,
    pub(super) log: MachineDirtyLog,
    pub(super) seam: Seam,
    /// How many page channels there are, and what goes on them.
    pub(super) channels: Option<(u8, Compression)>,
}

impl Departure {
    pub(super) fn run(mut self) -> Ended {
        let failed = |why| Ended { phase: Phase::Source(SourcePhase::Failed), error: Some(why), unrecorded: false };
        let mut channel = match self.connect() {
            Ok(channel) => channel,
            Err(_) if self.control.is_cancelled() => {
                return Ended { phase: Phase::Source(SourcePhase::Cancelled), error: None, unrecorded: false };
            }
            Err(error) => {
                let why = format!("{}: {error}; start the destination with --incoming and that address", self.address);
                return failed(why);
            }
        };
        let mut sections = match self.parts.sections() {
            Ok(sections) => sections,
            Err(error) => return failed(chain(&error)),
        };
        if self.release.is_some() {
            self.seam.see_state();
        }
        sections.save_for(self.release.take());
        if let Err(error) = self.seam.begin() {
            return failed(chain(&error));
        }
        self.parts.state.lock().unwrap_or_else(PoisonError::into_inner).preflight.stamp();
        let mut options = SourceOptions::new(MACHINE_TYPE);
        let _threads = match self.connect_pages() {
            Ok(None) => None,
            Ok(Some((senders, threads))) => {
                options.page_channels = Some(senders);
                Some(threads)
            }
            Err(error) => return failed(format!("a page channel to {}: {error}", self.address)),
        };
        let outgoing = Outgoing {
            channel: &mut channel,
            clock: &MonotonicClock::new(),
            machine: &mut self.seam,
            sections: &mut sections,
            ram: &self.ram,
            log: &mut self.log,
        };
        let departure = source::run(outgoing, &options, &self.control);
        let why = departure.error.as_ref().map(|error| chain(error));
        let unrecorded = self.seam.met_qemu();
        Ended { phase: Phase::Source(departure.phase), error: told(departure.phase, why), unrecorded }
    }

    /// Connects the page channels and starts their threads, behind the main channel: so a destination that takes connections in turn
    /// knows the source before its pages.
    fn connect_pages(&self) -> io::Result<Option<(Senders, PageThreads)>> {
        let Some((count, compression)) = self.channels else { return Ok(None) };
        let channels = (0..count).map(|_| self.connect()).collect::<io::Result<Vec<_>>>()?;
        let senders = Senders::new(count, compression);
        let threads = PageThreads::send(&senders, channels, &self.ram)?;
        Ok(Some((senders, threads)))
    }

    fn connect(&self) -> io::Result<SocketChannel> {
        let go_on = || !self.control.is_cancelled();
        match &self.address {
            Address::Unix(path) => SocketChannel::connect_unix(path, CONNECT, &go_on),
            Address::Tcp(host_and_port) => self.connect_tcp(host_and_port, &go_on),
        }
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
        _ => Some(why),
    }
}
