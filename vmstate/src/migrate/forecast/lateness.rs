//! How much later than the shortest round trip answers arrive: the delay added by a queue, a radio link or a busy host.
//!
//! The median counts. On a busy host, a few answers are very late, which does not predict the next one; if answers are late in
//! general, half of them are later than the median.

use std::collections::VecDeque;
use std::time::Duration;

use super::stretches::Doubt;

/// The most answers to lone probes that are kept.
const ANSWERS: usize = 12;
/// Number of answers that is enough if they hardly differ.
const FEW: usize = 4;
/// Answers differ if their median delay exceeds this part of the shortest round trip.
const PART: u32 = 8;
/// An answer is later than this many medians in one case of sixteen if delays are exponentially distributed; never if they are
/// evenly distributed, because the maximum is then two medians.
const DOUBTFUL: u32 = 4;

/// The round trips of probes that were alone on the wire.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    alone: VecDeque<Duration>,
    /// The shortest round trip of all chunks and probes.
    least: Option<Duration>,
    /// [`Self::usual`], cached because it is read more often than answers arrive.
    usual: Duration,
}

impl Lateness {
    /// Records that a chunk or a probe was answered within this time.
    pub(super) fn answered(&mut self, within: Duration) {
        if self.least.is_none_or(|least| within < least) {
            self.least = Some(within);
            self.usual = self.median();
        }
    }

    /// Records that a probe which was alone on the wire was answered within this time.
    pub(super) fn answered_alone(&mut self, within: Duration) {
        if self.alone.len() == ANSWERS {
            self.alone.pop_front();
        }
        self.alone.push_back(within);
        self.usual = self.median();
    }

    /// The shortest round trip. Zero before the first answer.
    pub(super) fn least(&self) -> Duration {
        self.least.unwrap_or_default()
    }

    /// The usual delay beyond the shortest round trip: the median, or half of the maximum, since the median of a few answers may
    /// be any of them.
    pub(super) fn usual(&self) -> Duration {
        self.usual
    }

    /// [`Self::usual`] for the answers so far.
    fn median(&self) -> Duration {
        let mut alone: Vec<_> = self.alone.iter().map(|within| within.saturating_sub(self.least())).collect();
        alone.sort_unstable();
        let median = alone.get(alone.len() / 2).copied().unwrap_or_default();
        median.min(alone.last().copied().unwrap_or_default() / 2)
    }

    /// The earliest of `n` evenly delayed answers has 1/(n + 1) of the maximum delay on average, and more than four times that in
    /// at most one case of fifty (e^-4).
    pub(super) fn doubt(&self) -> Doubt {
        let late = self.usual().saturating_mul(DOUBTFUL);
        let answers = u32::try_from(self.alone.len()).unwrap_or(u32::MAX).saturating_add(1);
        Doubt { late, unseen: late.saturating_mul(2) / answers }
    }

    /// True if more lone probes would improve the estimate.
    pub(super) fn is_unknown(&self) -> bool {
        let differ = self.usual() > self.least() / PART;
        self.alone.len() < FEW || differ && self.alone.len() < ANSWERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn of(round_trips: &[u32]) -> Lateness {
        let mut lateness = Lateness::default();
        for &round_trip in round_trips {
            lateness.answered(round_trip * MS);
            lateness.answered_alone(round_trip * MS);
        }
        lateness
    }

    #[test]
    fn a_few_answers_that_are_late_are_no_jitter() {
        let busy = of(&[20, 21, 90, 20]);
        assert_eq!((busy.least(), busy.usual(), busy.is_unknown()), (20 * MS, MS, false));
        let jittery = of(&[20, 35, 90, 41]);
        assert_eq!((jittery.least(), jittery.usual(), jittery.is_unknown()), (20 * MS, 21 * MS, true));
    }

    #[test]
    fn as_many_probes_are_wanted_as_tell_something() {
        assert!(of(&[]).is_unknown() && of(&[20; 3]).is_unknown());
        // Delays from 0 to 55 ms.
        let even: Vec<_> = (0..12).map(|late| 20 + 5 * late).collect();
        assert!(of(&even[..11]).is_unknown() && !of(&even).is_unknown());
        let doubt = of(&even).doubt();
        assert_eq!((of(&even).usual(), doubt.late, doubt.unseen), (55 * MS / 2, 110 * MS, 220 * MS / 13));
    }

    #[test]
    fn old_answers_are_forgotten_and_the_shortest_round_trip_is_not() {
        let mut lateness = of(&[1, 90]);
        assert_eq!(lateness.usual(), 89 * MS / 2);
        (0..12).for_each(|_| lateness.answered_alone(9 * MS));
        assert_eq!((lateness.least(), lateness.usual()), (MS, 4 * MS));
    }
}
