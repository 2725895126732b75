//! The handle on a migration that other threads hold: cancel it, move its limits, watch it.

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

/// A shared handle on one migration of either side. Clones are the same handle. Made anew for each migration.
#[derive(Clone, Debug)]
pub struct Control(Arc<ControlState>);

#[derive(Debug)]
struct ControlState {
    intent: AtomicU8,
    /// A source is to go on in post-copy.
    postcopy: AtomicBool,
    /// The connection is to be given up, for another one.
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
    /// Where it stands.
    pub phase: Phase,
    /// Since it began.
    pub elapsed: Duration,
    /// From the beginning to the first page.
    pub setup: Duration,
    /// Bytes sent, or received.
    pub bytes: u64,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Bytes of guest RAM still to send.
    pub remaining_bytes: u64,
    /// Pages sent or received with contents: whole, or as what changed of them.
    pub normal_pages: u64,
    /// Pages sent or received as zero.
    pub zero_pages: u64,
    /// Rounds begun.
    pub rounds: u32,
    /// Pages that the guest dirties a second, measured over the last round.
    pub dirty_pages_per_second: u64,
    /// Bytes that go through the wire a second.
    pub bytes_per_second: u64,
    /// What XBZRLE has done, if it is in use.
    pub xbzrle: Option<XbzrleCount>,
    /// Predicted pause of the guest, if it were switched over now; from the destination's first answer for pages on.
    pub expected_downtime: Option<Duration>,
    /// Predicted time from the beginning to the end; `None` before that answer, and as long as the guest dirties pages
    /// about as fast as they go, or faster.
    pub expected_total: Option<Duration>,
    /// What the machine was last told to [throttle](crate::migrate::Machine::throttle), in percent; 0 if it is not throttled.
    pub throttle_percent: u8,
    /// How much the guest was slowed so far.
    pub slowdown: Slowdown,
    /// Measured, once over: from the order to pause until the destination's last word.
    pub downtime: Option<Downtime>,
    /// What a guest in post-copy has waited for pages, at its destination.
    pub page_waits: PageWaits,
    /// What the destination measured of its own part, once over. A source knows it only from a destination of this library.
    pub takeover: Option<Takeover>,
}

impl Default for Control {
    /// The default [`Parameters`]: QEMU's downtime limit of 300 ms, no limit of bandwidth, no throttle.
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
    /// Requests that the migration is cancelled. True if it will be; false once the commit has begun.
    pub fn cancel(&self) -> bool {
        self.settle(CANCELLED)
    }

    /// True if a cancel was asked for, and granted.
    pub fn is_cancelled(&self) -> bool {
        self.0.intent.load(Ordering::Acquire) == CANCELLED
    }

    /// A source that began with [`Parameters::postcopy_ram`] hands its guest over at once, and sends the rest of its memory while the guest
    /// runs at the destination. Others go on as they were.
    pub fn start_postcopy(&self) {
        self.0.postcopy.store(true, Ordering::Release);
    }

    pub(super) fn wants_postcopy(&self) -> bool {
        self.0.postcopy.load(Ordering::Acquire)
    }

    /// In post-copy: gives the connection up, as if it had broken, so that another one can take its place. False in any other phase, which
    /// goes on as it was.
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

    /// Another connection has taken the place of one that was given up.
    pub(super) fn connected(&self) {
        self.0.disconnects.store(false, Ordering::Release);
    }

    /// What the owner of the guest has set.
    pub fn parameters(&self) -> Parameters {
        *lock(&self.0.parameters)
    }

    /// Sets all of them. When each takes effect is in `docs/migration-policy.md`: within a tenth of a second, or at the end
    /// of the round.
    ///
    /// # Errors
    /// One is out of its range; nothing changes.
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

    /// Sets [`Parameters::postcopy_ram`]. Holds for a source that has not begun.
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

    /// The figures now. Waits for nothing but the copy of another such call.
    pub fn progress(&self) -> Progress {
        *lock(&self.0.progress)
    }

    /// Each round that is over, in order, of a source. Waits for nothing but the copy of another such call.
    pub fn rounds(&self) -> Vec<Round> {
        lock(&self.0.finished_rounds).clone()
    }

    /// Which parts of guest memory a source has sent how often, as of the end of the last round, or of a migration that completed.
    pub fn heat(&self) -> HeatMap {
        lock(&self.0.heat).clone()
    }

    /// The sections that went whole in the pause, in their order, once the migration is over.
    pub fn sections(&self) -> Vec<SectionReport> {
        lock(&self.0.sections).clone()
    }

    pub(super) fn memory_sent(&self, heat: HeatMap) {
        *lock(&self.0.heat) = heat;
    }

    pub(super) fn sections_went(&self, sections: Vec<SectionReport>) {
        *lock(&self.0.sections) = sections;
    }

    /// A round is over.
    pub(super) fn round_over(&self, round: Round) {
        lock(&self.0.finished_rounds).push(round);
    }

    /// Calls `watcher` with each phase from now on, as it begins, on the migration's own thread: it must not block. Only
    /// the first watcher is kept.
    pub fn watch(&self, watcher: impl Fn(Phase) + Send + Sync + 'static) {
        let _ = self.0.of_phases.set(Watcher(Box::new(watcher)));
    }

    /// Calls `watcher` with the number of each round from now on, 1 for the first one, as [`watch`](Self::watch) does with
    /// phases.
    pub fn watch_rounds(&self, watcher: impl Fn(u32) + Send + Sync + 'static) {
        let _ = self.0.of_rounds.set(Watcher(Box::new(watcher)));
    }

    /// Changes the figures. `change` only puts values there: who asks for the figures waits for it, so what has to be asked of the machine, the
    /// clock or memory is asked before.
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

    /// An error if a cancel was asked for, or that the connection is given up.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(cancelled());
        }
        match self.0.disconnects.load(Ordering::Acquire) {
            true => Err(Error::new(ErrorKind::Io, "the connection was given up on request")),
            false => Ok(()),
        }
    }

    /// Refuses each cancel from now on, as a source does before it gives up the guest's resources. An embedder that writes a guest into a
    /// file calls it before it gives up the resources itself.
    ///
    /// # Errors
    /// `Cancelled`: a cancel was granted before.
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
