//! What a source has learned on the way, and what it makes of it: the figures that `policy` decides upon. Pure: it is
//! told what happened and when, and reads no clock.

mod cost;
mod rate;
mod speed;

use std::time::Duration;

use super::policy::Figures;
use crate::ram::PageCount;
use cost::PageCost;
pub(crate) use cost::SAMPLE;
use rate::Rate;
pub(crate) use speed::{Chunk, WireSpeed};

/// Both rates follow what they measure within this much measured time. It is QEMU's default downtime limit, thus about
/// the longest stretch of the future that they have to foretell.
const WINDOW: Duration = Duration::from_millis(300);

/// All that was measured since the migration began.
#[derive(Debug)]
pub(crate) struct Measured {
    /// The wire.
    pub(crate) wire: WireSpeed,
    cost: PageCost,
    /// Bytes that the guest's writes will cost.
    dirtied: Rate,
    rehearsed: Option<Duration>,
    sync: Duration,
}

/// Where the migration stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// Pages still to send.
    pub(crate) pending: u64,
    /// Pages sent since the migration began.
    pub(crate) sent: PageCount,
    /// As [`Figures`] has it.
    pub(crate) bandwidth_limit: Option<u64>,
    /// What the pause takes beyond what was rehearsed.
    pub(crate) switch_over_cost: Duration,
    /// Since the log was last read: what the guest has written since then is not among the pending pages yet.
    pub(crate) since_sync: Duration,
    /// Since the migration began.
    pub(crate) elapsed: Duration,
    /// Rounds done.
    pub(crate) rounds: u32,
}

impl Measured {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        let (wire, cost, dirtied) = (WireSpeed::new(), PageCost::default(), Rate::new(WINDOW));
        Self { wire, cost, dirtied, rehearsed: None, sync: Duration::ZERO }
    }

    /// A round begins with `pending` pages, some of which were looked at; `sent` are all pages sent before.
    pub(crate) fn round_begins(&mut self, pending: u64, looked_at: PageCount, sent: PageCount) {
        self.cost.round_begins(pending, looked_at, sent);
    }

    /// The machine has rehearsed its part of the pause. The newest time counts half, so that a first one, with cold
    /// caches and a full write-back, is forgotten after a few rounds.
    pub(crate) fn rehearsed(&mut self, took: Duration) {
        self.rehearsed = Some(self.rehearsed.map_or(took, |before| before.saturating_add(took) / 2));
    }

    /// The log was read, which took `sync`, and the next round has begun: its pending pages are what the guest has written
    /// in the time that the last round `lasted`.
    pub(crate) fn log_read(&mut self, lasted: Duration, sync: Duration, pending: u64, sent: PageCount) {
        self.dirtied.add(self.cost.bytes(pending, sent), lasted);
        self.sync = sync;
    }

    /// What `policy` decides upon.
    pub(crate) fn figures(&self, standing: &Standing) -> Figures {
        let &Standing { pending, sent, bandwidth_limit, switch_over_cost, since_sync, elapsed, rounds } = standing;
        let dirtied = self.dirtied.per_second().unwrap_or_default();
        Figures {
            pending_bytes: self.cost.bytes(pending, sent)
                + self.wire.unanswered_bytes() as f64
                + dirtied * since_sync.as_secs_f64(),
            dirty_bytes_per_second: dirtied,
            wire_bytes_per_second: self.wire.bytes_per_second().unwrap_or(f64::INFINITY),
            bandwidth_limit,
            round_trip: self.wire.round_trip(),
            // The stop itself is a part of one of them; which part nobody has measured.
            stopping: self.rehearsed.unwrap_or_default().max(switch_over_cost),
            switch_over_cost: switch_over_cost
                .saturating_add(self.rehearsed.unwrap_or_default())
                .saturating_add(self.sync),
            elapsed,
            rounds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn figures_hold_what_was_measured() {
        let mut measured = Measured::new();
        let pages = PageCount { normal: 1000, zero: 0 };
        measured.wire.sent(Chunk { begun: Duration::ZERO, bytes: 0, pages: PageCount::default() });
        assert!(measured.wire.answered(2 * MS));
        measured.wire.sent(Chunk { begun: 2 * MS, bytes: 4_104_000, pages });
        let mut standing = Standing {
            pending: 500,
            sent: pages,
            bandwidth_limit: Some(7),
            switch_over_cost: 5 * MS,
            since_sync: Duration::ZERO,
            elapsed: 9 * MS,
            rounds: 1,
        };
        measured.round_begins(1500, PageCount { normal: 9, zero: 0 }, PageCount::default());
        // Within the first round: what is unanswered counts as well, and nothing is known about the rest.
        let figures = measured.figures(&standing);
        assert_eq!(figures.pending_bytes, 1500.0 * 4104.0);
        assert_eq!((figures.dirty_bytes_per_second, figures.wire_bytes_per_second), (0.0, f64::INFINITY));
        assert_eq!((figures.switch_over_cost, figures.stopping), (5 * MS, 5 * MS));

        assert!(measured.wire.answered(44 * MS));
        standing.pending = 100;
        measured.round_begins(100, PageCount { normal: 9, zero: 0 }, pages);
        measured.log_read(50 * MS, MS, 100, pages);
        measured.rehearsed(9 * MS);
        measured.rehearsed(3 * MS);
        let figures = measured.figures(&standing);
        assert_eq!(figures.pending_bytes, 410_400.0);
        assert!((figures.dirty_bytes_per_second - 410_400.0 / 50e-3).abs() < 1.0);
        assert!((figures.wire_bytes_per_second - 4_104_000.0 / 40e-3).abs() < 1.0);
        assert_eq!((figures.switch_over_cost, figures.stopping), (12 * MS, 6 * MS));
        assert_eq!((figures.round_trip, figures.bandwidth_limit), (2 * MS, Some(7)));
        // A quarter of the last round later.
        standing.since_sync = Duration::from_micros(12_500);
        assert!((measured.figures(&standing).pending_bytes - 1.25 * 410_400.0).abs() < 1.0);
    }
}
