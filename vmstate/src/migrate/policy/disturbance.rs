//! The aim of least disturbance: what a round costs the guest, and when another round is worth it.

use std::time::Duration;

use super::Known;
use crate::migrate::parameters::Aim;

/// The guest's loss during a round, as a share of the round's time: faults for the dirty log, and use of the host's processors
/// and memory bandwidth. The cost of throttling is added.
const ROUND_COST: f64 = 0.05;
/// A difference between two pauses below this is not noticeable for the guest: a tick of its clock at 1000 Hz.
const LEAST_GAIN: Duration = Duration::from_millis(1);
/// Nor is a difference below this share of the pause.
const LEAST_SHARE: f64 = 0.1;
/// After this many rounds without progress, no more are awaited.
pub(super) const STALLED_ROUNDS: u32 = 8;

impl Known<'_> {
    /// True if the aim allows the switch-over now, given that the pause fits into its limit.
    pub(super) fn is_the_moment(self) -> bool {
        self.parameters.aim == Aim::Soonest
            || !self.is_worth_a_round(self.figures.pending_bytes)
                && (self.is_a_minimum() || self.figures.stalled_rounds >= STALLED_ROUNDS)
    }

    /// True if another round for `pending` bytes is expected to take more off the pause than it costs.
    pub(super) fn is_worth_a_round(self, pending: f64) -> bool {
        if self.parameters.aim == Aim::Soonest {
            return false;
        }
        let round = self.round(pending).as_secs_f64();
        let now = self.expected(pending);
        let then = self.expected(self.figures.dirty_bytes_per_second * round);
        let gain = now.as_secs_f64() - then.as_secs_f64();
        let throttle = f64::from(self.figures.throttle.unwrap_or_default()) / 100.0;
        gain > round * (ROUND_COST + throttle) + negligible(now).as_secs_f64()
    }

    /// True if the pending bytes are as few as in the last rounds.
    fn is_a_minimum(self) -> bool {
        let least = self.expected(self.figures.least_pending_bytes);
        self.expected(self.figures.pending_bytes) <= least.saturating_add(negligible(least))
    }

    /// True if the rounds make no progress and each costs the guest.
    pub(super) fn is_futile(self) -> bool {
        self.parameters.aim == Aim::LeastDisturbance && self.figures.stalled_rounds >= STALLED_ROUNDS
    }
}

/// The difference between two pauses that the guest does not notice.
fn negligible(pause: Duration) -> Duration {
    LEAST_GAIN.max(Duration::try_from_secs_f64(pause.as_secs_f64() * LEAST_SHARE).unwrap_or(Duration::MAX))
}
