//! The handle on a migration for other threads: cancels it, changes its limits, reads its progress.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::parameters::Parameters;
use super::phase::{DestinationPhase, Phase, SourcePhase};
use super::report::{Downtime, Round, SectionReport, Slowdown, Takeover};
use super::waits::PageWaits;
use crate::error::{Error, ErrorKind, Result};
use crate::ram::{HeatMap, XbzrleCount};
use crate::sync::lock;

/// A shared handle on one migration of either side. Clones are the same handle. Create a new one for each migration.
#[derive(Clone, Debug)]
pub struct Control(Arc<ControlState>);

#[derive(Debug)]
struct ControlState {
    intent: AtomicU8,
    /// True if a source shall switch to post-copy.
    postcopy: AtomicBool,
    /// True if the connection shall be given up for another one.
    disconnects: AtomicBool,
    parameters: Mutex<Parameters>,
    progress: Mutex<Progress>,
    finished_rounds: Mutex<Vec<Round>>,
    heat: Mutex<HeatMap>,
    sections: Mutex<Vec<SectionReport>>,
    of_phases: OnceLock<Watcher<Phase>>,
    of_rounds: OnceLock<Watcher<u32>>,
}

/// Called with each new value of a figure.
struct Watcher<T>(Box<dyn Fn(T) + Send + Sync>);

impl<T> fmt::Debug for Watcher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

/// Values of `intent`. A cancel and the commit race for the same word, so exactly one of them wins.
const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

/// Figures of a migration at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// The current phase.
    pub phase: Phase,
    /// Time since the migration began.
    pub elapsed: Duration,
    /// Time from the beginning to the first page.
    pub setup: Duration,
    /// Bytes sent or received.
    pub bytes: u64,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Bytes of guest RAM still to send.
    pub remaining_bytes: u64,
    /// Bytes that the other sections in parts still have to send; in a save to a file, bytes of the state beside the file.
    pub remaining_section_bytes: u64,
    /// Pages sent or received with contents: whole, or as differences.
    pub normal_pages: u64,
    /// Pages sent or received as zero.
    pub zero_pages: u64,
    /// Rounds begun.
    pub rounds: u32,
    /// Pages that the guest dirties a second, measured over the last round.
    pub dirty_pages_per_second: u64,
    /// Speed of the wire in bytes a second.
    pub bytes_per_second: u64,
    /// The results of XBZRLE, if it is in use.
    pub xbzrle: Option<XbzrleCount>,
    /// Predicted pause of the guest if the switch-over began now; known after the destination's first answer for pages.
    pub expected_downtime: Option<Duration>,
    /// Predicted time from the beginning to the end; `None` before that answer, and as long as the guest dirties pages about as
    /// fast as they are sent, or faster.
    pub expected_total: Option<Duration>,
    /// The last [throttle](crate::migrate::Machine::throttle) that the machine was set to, in percent; 0 if it is not throttled.
    pub throttle_percent: u8,
    /// How much the guest has been slowed so far.
    pub slowdown: Slowdown,
    /// The measured downtime, after the end: from the order to pause to the destination's final answer.
    pub downtime: Option<Downtime>,
    /// How long a guest in post-copy has waited for pages, at its destination.
    pub page_waits: PageWaits,
    /// The destination's own measurements, after the end. A source gets them only from a destination of this library.
    pub takeover: Option<Takeover>,
}

impl Default for Control {
    /// The default [`Parameters`]: QEMU's downtime limit of 300 ms, no bandwidth limit, no throttle.
    fn default() -> Self {
        Self(Arc::new(ControlState {
            intent: AtomicU8::new(OPEN),
            postcopy: AtomicBool::new(false),
            disconnects: AtomicBool::new(false),
            parameters: Mutex::default(),
            progress: Mutex::default(),
            finished_rounds: Mutex::default(),
            heat: Mutex::default(),
            sections: Mutex::default(),
            of_phases: OnceLock::new(),
            of_rounds: OnceLock::new(),
        }))
    }
}

impl Control {
    /// Requests a cancel of the migration. True if it will be cancelled; false once the commit has begun.
    pub fn cancel(&self) -> bool {
        self.settle(CANCELLED)
    }

    /// True if a cancel was requested and granted.
    pub fn is_cancelled(&self) -> bool {
        self.0.intent.load(Ordering::Acquire) == CANCELLED
    }

    /// Switches a source that began with [`Parameters::postcopy_ram`] to post-copy: the guest is handed over at once, and the
    /// rest of its memory is sent while it runs at the destination. Other migrations are not affected.
    pub fn start_postcopy(&self) {
        self.0.postcopy.store(true, Ordering::Release);
    }

    pub(super) fn wants_postcopy(&self) -> bool {
        self.0.postcopy.load(Ordering::Acquire)
    }

    /// In post-copy: gives the connection up, as if it had broken, so that another one can replace it. Returns false in any other
    /// phase, without an effect.
    pub fn disconnect(&self) -> bool {
        let phase = self.progress().phase;
        let may = matches!(
            phase,
            Phase::Source(SourcePhase::Postcopy | SourcePhase::PostcopyRecover)
                | Phase::Destination(DestinationPhase::Postcopy | DestinationPhase::PostcopyRecover)
        );
        if may {
            self.0.disconnects.store(true, Ordering::Release);
        }
        may
    }

    /// Records that another connection has replaced one that was given up.
    pub(super) fn connected(&self) {
        self.0.disconnects.store(false, Ordering::Release);
    }

    /// The parameters that the guest's owner has set.
    pub fn parameters(&self) -> Parameters {
        *lock(&self.0.parameters)
    }

    /// Sets all parameters. `docs/migration-policy.md` says when each takes effect: within a tenth of a second, or at the end of
    /// the round.
    ///
    /// # Errors
    /// A parameter is out of its range; nothing changes.
    pub fn set_parameters(&self, parameters: Parameters) -> Result<()> {
        parameters.check()?;
        self.change(|own| *own = parameters);
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut Parameters)) {
        change(&mut lock(&self.0.parameters));
    }

    /// Sets [`Parameters::downtime_limit`]. Takes effect at the end of the current round.
    pub fn set_downtime_limit(&self, limit: Duration) {
        self.change(|parameters| parameters.downtime_limit = limit);
    }

    /// Sets [`Parameters::postcopy_ram`]. Takes effect for a source that has not begun.
    pub fn set_postcopy_ram(&self, may: bool) {
        self.change(|parameters| parameters.postcopy_ram = may);
    }

    /// Sets [`Parameters::pause_budget`]. Takes effect if the guest is not paused yet.
    pub fn set_pause_budget(&self, budget: Option<Duration>) {
        self.change(|parameters| parameters.pause_budget = budget);
    }

    /// Sets [`Parameters::max_bandwidth`]. Takes effect within a tenth of a second; 0 is no limit.
    pub fn set_bandwidth_limit(&self, bytes_per_second: u64) {
        self.change(|parameters| parameters.max_bandwidth = NonZeroU64::new(bytes_per_second));
    }

    /// The present figures. Waits only while another such call copies them.
    pub fn progress(&self) -> Progress {
        *lock(&self.0.progress)
    }

    /// The completed rounds of a source, in order. Waits only while another such call copies them.
    pub fn rounds(&self) -> Vec<Round> {
        lock(&self.0.finished_rounds).clone()
    }

    /// How often a source has sent each part of guest memory, as of the end of the last round, or of a completed migration.
    pub fn heat(&self) -> HeatMap {
        lock(&self.0.heat).clone()
    }

    /// The sections that were sent whole in the pause, in their order, after the end of the migration.
    pub fn sections(&self) -> Vec<SectionReport> {
        lock(&self.0.sections).clone()
    }

    pub(super) fn memory_sent(&self, heat: HeatMap) {
        *lock(&self.0.heat) = heat;
    }

    pub(super) fn sections_went(&self, sections: Vec<SectionReport>) {
        *lock(&self.0.sections) = sections;
    }

    /// Records a completed round.
    pub(super) fn round_over(&self, round: Round) {
        lock(&self.0.finished_rounds).push(round);
    }

    /// Calls `watcher` with each phase from now on when the phase begins, on the migration's own thread: it must not block. Only
    /// the first watcher is kept.
    pub fn watch(&self, watcher: impl Fn(Phase) + Send + Sync + 'static) {
        let _ = self.0.of_phases.set(Watcher(Box::new(watcher)));
    }

    /// Calls `watcher` with the number of each round from now on, starting at 1, like [`watch`](Self::watch) for phases.
    pub fn watch_rounds(&self, watcher: impl Fn(u32) + Send + Sync + 'static) {
        let _ = self.0.of_rounds.set(Watcher(Box::new(watcher)));
    }

    /// Changes the figures. `change` must only assign values, because readers of the figures wait for it: values of the machine,
    /// the clock or memory must be read before.
    pub(super) fn publish(&self, change: impl FnOnce(&mut Progress)) {
        let (old, new) = {
            let mut progress = lock(&self.0.progress);
            let old = (progress.phase, progress.rounds);
            change(&mut progress);
            (old, (progress.phase, progress.rounds))
        };
        if let Some(Watcher(watcher)) = self.0.of_phases.get().filter(|_| old.0 != new.0) {
            watcher(new.0);
        }
        if let Some(Watcher(watcher)) = self.0.of_rounds.get().filter(|_| old.1 != new.1) {
            watcher(new.1);
        }
    }

    /// Returns an error if a cancel was requested, or if the connection is given up.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(cancelled());
        }
        match self.0.disconnects.load(Ordering::Acquire) {
            true => Err(Error::new(ErrorKind::Io, "the connection was given up on request")),
            false => Ok(()),
        }
    }

    /// Refuses every cancel from now on; a source calls it before it releases the guest's resources. An embedder that writes a
    /// guest to a file calls it before it releases the resources itself.
    ///
    /// # Errors
    /// `Cancelled` if a cancel was granted before.
    pub fn commit(&self) -> Result<()> {
        if self.settle(COMMITTED) { Ok(()) } else { Err(cancelled()) }
    }

    fn settle(&self, intent: u8) -> bool {
        let intents = &self.0.intent;
        match intents.compare_exchange(OPEN, intent, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(settled) => settled == intent,
        }
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "cancelled")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_of_rounds_sees_each_round_once() {
        let control = Control::default();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        control.watch_rounds(move |round| log.lock().unwrap().push(round));
        control.publish(|progress| progress.rounds += 1);
        control.publish(|progress| progress.bytes = 1);
        control.publish(|progress| progress.rounds += 1);
        assert_eq!(*seen.lock().unwrap(), [1, 2]);
    }

    #[test]
    fn a_watcher_sees_each_phase_once() {
        let control = Control::default();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        control.watch(move |phase| log.lock().unwrap().push(phase));
        let (setup, rounds) = (Phase::Source(SourcePhase::Setup), Phase::Source(SourcePhase::Rounds));
        control.publish(|progress| progress.phase = setup);
        control.publish(|progress| progress.bytes = 1);
        control.publish(|progress| progress.phase = rounds);
        assert_eq!(*seen.lock().unwrap(), [setup, rounds]);
    }
}
