//! The recent rounds that decisions use: the last two for a throttle, the last eight for a minimum of the pending bytes.

use std::collections::VecDeque;

use crate::migrate::policy::RoundFigures;

/// Number of rounds in which a minimum of the pending bytes is searched.
const LOOKED_BACK: usize = 8;
/// A round helped only if it left less than this part of the previous minimum.
const USEFUL_RATIO: f64 = 0.95;

/// The pending, dirtied and sent bytes at the end of each round.
#[derive(Debug)]
pub(crate) struct History {
    last: [Option<RoundFigures>; 2],
    /// The pending bytes at the end of the last rounds, the newest last.
    pending: VecDeque<f64>,
    /// The least pending bytes of all rounds, updated only by rounds that helped.
    least: f64,
    stalled: u32,
}

impl History {
    /// Creates an empty history.
    pub(crate) fn new() -> Self {
        Self { last: [None; 2], pending: VecDeque::new(), least: f64::INFINITY, stalled: 0 }
    }

    /// Records the end of a `round`; the bytes that the guest dirtied are the pending ones now.
    pub(crate) fn round_over(&mut self, round: RoundFigures) {
        self.last = [Some(round), self.last[0]];
        let pending = round.dirtied_bytes;
        if self.pending.len() > LOOKED_BACK {
            self.pending.pop_front();
        }
        self.pending.push_back(pending);
        if pending < self.least * USEFUL_RATIO {
            (self.least, self.stalled) = (pending, 0);
        } else {
            self.stalled = self.stalled.saturating_add(1);
        }
    }

    /// The last two rounds, the newest first.
    pub(crate) fn last_rounds(&self) -> [Option<RoundFigures>; 2] {
        self.last
    }

    /// The least pending bytes at the end of one of the rounds before the last; infinite if there was none.
    pub(crate) fn least_pending_bytes(&self) -> f64 {
        let before = self.pending.len().saturating_sub(1);
        self.pending.iter().take(before).copied().fold(f64::INFINITY, f64::min)
    }

    /// The number of rounds since one left a twentieth less than all before it.
    pub(crate) fn stalled_rounds(&self) -> u32 {
        self.stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_back_two_rounds_for_shares_and_eight_for_a_minimum() {
        let round = |dirtied_bytes| RoundFigures { dirtied_bytes, sent_bytes: 1.0, throttle: 0 };
        let mut history = History::new();
        assert_eq!((history.least_pending_bytes(), history.stalled_rounds()), (f64::INFINITY, 0));
        for (pending, least, stalled) in [
            (100.0, f64::INFINITY, 0),
            (96.0, 100.0, 1),
            (94.0, 96.0, 0),
            (200.0, 94.0, 1),
            (90.0, 94.0, 2),
            (89.0, 90.0, 0),
        ] {
            history.round_over(round(pending));
            assert_eq!((history.least_pending_bytes(), history.stalled_rounds()), (least, stalled), "{pending}");
        }
        assert_eq!(history.last_rounds(), [Some(round(89.0)), Some(round(90.0))]);
        for _ in 0..8 {
            history.round_over(round(300.0));
            assert_eq!(history.least_pending_bytes(), 89.0);
        }
        history.round_over(round(300.0));
        assert_eq!((history.least_pending_bytes(), history.stalled_rounds()), (300.0, 9));
    }
}
