//! The measurements of a source, and the figures that `policy` decides upon. The module is pure: its caller reports what happened
//! and when, and it reads no clock.

mod history;
#[cfg(test)]
mod jitter;
mod lateness;
mod rate;
mod speed;
mod stretches;

use std::collections::VecDeque;
use std::time::Duration;

use super::Rehearsal;
use super::policy::{Figures, RoundFigures};
use history::History;
use rate::Rate;
pub(crate) use speed::{Chunk, Measures, WireSpeed};

/// Both rates adapt within this much measured time. It is QEMU's default downtime limit, and so about the longest time that they
/// have to predict.
const WINDOW: Duration = Duration::from_millis(300);

/// Some seconds: if the host was busy for all of them, it is assumed to stay busy.
const LAST_REHEARSALS: usize = 5;

/// All measurements since the migration began.
#[derive(Debug)]
pub(crate) struct Measured {
    /// The speed of the wire.
    pub(crate) wire: WireSpeed,
    /// The rate of bytes that the guest's writes will cost.
    dirtied: Rate,
    prepared: Option<Duration>,
    rehearsed: Option<Rehearsed>,
    /// The cost of the switch-over at each of the last rehearsals, besides the configured part.
    costs: VecDeque<Duration>,
    sync: Duration,
    history: History,
}

/// The part of the pause for the machine and the devices, as rehearsed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rehearsed {
    /// The machine's measurements.
    pub(crate) machine: Rehearsal,
    /// Time to save the sections.
    pub(crate) save: Duration,
    /// Time to load them at the destination.
    load: Duration,
    /// Size of the sections on the wire in bytes.
    pub(crate) bytes: f64,
}

impl Rehearsed {
    /// Loading sections of `bytes` bytes is assumed to take as long as it took to `save` them.
    pub(crate) fn new(machine: Rehearsal, save: Duration, bytes: f64) -> Self {
        Self { machine, save, load: save, bytes }
    }

    /// Combines two rehearsals. The source repeats its part, so the newest time counts. The destination does its part for the
    /// first time, as in the first rehearsal, so all of them count.
    fn after(self, before: Self) -> Self {
        let machine = Rehearsal { load: mean(self.machine.load, before.machine.load), ..self.machine };
        Self { machine, load: mean(self.load, before.load), ..self }
    }

    fn cost(&self) -> Duration {
        sum([self.machine.stop, self.machine.load, self.save, self.load])
    }
}

fn sum<const N: usize>(times: [Duration; N]) -> Duration {
    times.into_iter().fold(Duration::ZERO, Duration::saturating_add)
}

fn mean(a: Duration, b: Duration) -> Duration {
    a.saturating_add(b) / 2
}

/// The current state of the migration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MigrationState {
    /// Bytes still to be sent of the sections in parts.
    pub(crate) pending_bytes: u64,
    /// Cost of the pause besides the rehearsed parts.
    pub(crate) switch_over_cost: Duration,
    /// Time since the logs were last read: the guest's writes since then are not among the pending bytes yet.
    pub(crate) since_sync: Duration,
    /// Time since the migration began.
    pub(crate) elapsed: Duration,
    /// Number of completed rounds.
    pub(crate) rounds: u32,
    /// As in [`Figures`].
    pub(crate) throttle: Option<u8>,
}

impl Measured {
    /// Creates the state without measurements.
    pub(crate) fn new() -> Self {
        let (wire, dirtied) = (WireSpeed::new(), Rate::new(WINDOW));
        let (costs, history) = (VecDeque::new(), History::new());
        Self { wire, dirtied, prepared: None, rehearsed: None, costs, sync: Duration::ZERO, history }
    }

    /// Records how long work that is prepared before the pause will still take in it. The newest time has half of the weight.
    pub(crate) fn prepared(&mut self, takes: Duration) {
        self.prepared = Some(self.prepared.map_or(takes, |before| mean(before, takes)));
    }

    /// Records a rehearsal of the pause.
    pub(crate) fn rehearsed(&mut self, now: Rehearsed) {
        if self.costs.len() == LAST_REHEARSALS {
            self.costs.pop_front();
        }
        self.costs.push_back(sum([now.cost(), self.prepared.unwrap_or_default(), self.sync]));
        self.rehearsed = Some(self.rehearsed.map_or(now, |before| now.after(before)));
    }

    /// Records that the logs were read, which took `sync`, and that the next round has begun: its pending bytes are the guest's
    /// writes during the last round, which `lasted` that long.
    pub(crate) fn logs_read(&mut self, lasted: Duration, sync: Duration, pending_bytes: u64) {
        self.dirtied.add(pending_bytes as f64, lasted);
        self.sync = sync;
    }

    /// Records the end of a round in which this many bytes were sent under this throttle; the pending bytes are those that the
    /// guest dirtied.
    pub(crate) fn round_over(&mut self, pending_bytes: u64, sent_bytes: u64, throttle: u8) {
        let (dirtied_bytes, sent_bytes) = (pending_bytes as f64, sent_bytes as f64);
        self.history.round_over(RoundFigures { dirtied_bytes, sent_bytes, throttle });
    }

    /// The least cost of the last rehearsals; zero if there were too few.
    fn least_cost(&self) -> Duration {
        let enough = self.costs.len() == LAST_REHEARSALS;
        self.costs.iter().min().filter(|_| enough).copied().unwrap_or_default()
    }

    /// The figures that `policy` decides upon.
    pub(crate) fn figures(&self, state: &MigrationState) -> Figures {
        let &MigrationState { pending_bytes, switch_over_cost, since_sync, elapsed, rounds, throttle } = state;
        let dirtied = self.dirtied.per_second().unwrap_or_default();
        let rehearsed = self.rehearsed.unwrap_or_default();
        Figures {
            pending_bytes: pending_bytes as f64
                + self.wire.unanswered_bytes() as f64
                + dirtied * since_sync.as_secs_f64(),
            dirty_bytes_per_second: dirtied,
            device_bytes: rehearsed.bytes,
            wire_bytes_per_second: self.wire.bytes_per_second().unwrap_or(f64::INFINITY),
            paused_bytes_per_second: self.wire.paused_bytes_per_second().unwrap_or(f64::INFINITY),
            is_wire_measured: self.wire.bytes_per_second().is_some(),
            round_trip: self.wire.round_trip(),
            lateness: self.wire.usual_lateness(),
            // Without a rehearsal, the stop is an unmeasured part of the configured cost.
            stopping: self.rehearsed.map_or(switch_over_cost, |rehearsed| rehearsed.machine.stop),
            switch_over_cost: sum([switch_over_cost, self.prepared.unwrap_or_default(), rehearsed.cost(), self.sync]),
            least_switch_over_cost: switch_over_cost.saturating_add(self.least_cost()),
            elapsed,
            rounds,
            last_rounds: self.history.last_rounds(),
            least_pending_bytes: self.history.least_pending_bytes(),
            stalled_rounds: self.history.stalled_rounds(),
            throttle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::ram::PageCount;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn figures_hold_what_was_measured() {
        let mut measured = Measured::new();
        let pages = PageCount { normal: 1000, zero: 0 };
        let probe = Chunk::new(Duration::ZERO, 0, PageCount::default(), Measures::Rounds);
        measured.wire.sent(probe);
        assert!(measured.wire.answered(2 * MS));
        measured.wire.sent(Chunk { begun: 2 * MS, bytes: 4_104_000, pages, ..probe });
        let mut state = MigrationState {
            pending_bytes: 500 * 4104,
            switch_over_cost: 5 * MS,
            since_sync: Duration::ZERO,
            elapsed: 9 * MS,
            rounds: 1,
            throttle: Some(7),
        };
        // Within the first round: unanswered bytes count as well, and nothing is known about the rest.
        let figures = measured.figures(&state);
        assert_eq!(figures.pending_bytes, 1500.0 * 4104.0);
        assert_eq!((figures.dirty_bytes_per_second, figures.wire_bytes_per_second), (0.0, f64::INFINITY));
        assert_eq!((figures.switch_over_cost, figures.stopping), (5 * MS, 5 * MS));

        assert!(measured.wire.answered(44 * MS));
        state.pending_bytes = 410_400;
        measured.logs_read(50 * MS, MS, 410_400);
        let rehearsal = |stop, load, save, bytes| Rehearsed::new(Rehearsal { stop, load }, save, bytes);
        measured.prepared(3 * MS);
        measured.prepared(MS);
        measured.rehearsed(rehearsal(3 * MS, 4 * MS, 3 * MS, 700.0));
        measured.rehearsed(rehearsal(MS, 2 * MS, MS, 800.0));
        let figures = measured.figures(&state);
        assert_eq!((figures.pending_bytes, figures.device_bytes), (410_400.0, 800.0));
        assert!((figures.dirty_bytes_per_second - 410_400.0 / 50e-3).abs() < 1.0);
        assert!((figures.wire_bytes_per_second - 4_104_000.0 / 40e-3).abs() < 1.0);
        // 5 ms as configured, 1 ms for the log, 2 ms for images, 1 ms to stop, 3 ms to load the hypervisor's state, 1 ms to save
        // the sections, and 2 ms to load them.
        assert_eq!((figures.switch_over_cost, figures.stopping), (15 * MS, MS));
        // 5 ms as configured, and nothing from two rehearsals; from five the least, which is the second as long as it is among
        // them.
        assert_eq!(figures.least_switch_over_cost, 5 * MS);
        for least in [5, 5, 13, 13, 58] {
            measured.rehearsed(rehearsal(20 * MS, 20 * MS, 5 * MS, 0.0));
            assert_eq!(measured.figures(&state).least_switch_over_cost, least * MS);
        }
        assert_eq!((figures.round_trip, figures.throttle), (2 * MS, Some(7)));
        // A quarter of the last round later.
        state.since_sync = Duration::from_micros(12_500);
        assert!((measured.figures(&state).pending_bytes - 1.25 * 410_400.0).abs() < 1.0);
    }
}
