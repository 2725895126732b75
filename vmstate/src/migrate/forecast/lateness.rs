//! How much later than the shortest round trip answers come: what a queue, a radio link or a busy host adds to the way.
//!
//! It is the median that counts. On a host that is busy a few answers are late by much, which says nothing about the next one;
//! where answers are late at all times, half of them are late by more than the median.

use std::collections::VecDeque;
use std::time::Duration;

use super::stretches::Doubt;

/// Most answers to lone probes that are looked at.
const ANSWERS: usize = 12;
/// Answers that are enough where their lateness hardly differs.
const FEW: usize = 4;
/// Answers differ if their median is later than this part of the shortest round trip.
const PART: u32 = 8;
/// An answer is later than this many medians in one case of sixteen where lateness is exponentially distributed; where it is evenly
/// distributed, never: there the most is two medians.
const DOUBTFUL: u32 = 4;

/// The round trips of probes that were alone on the way.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    alone: VecDeque<Duration>,
    /// The shortest round trip of all chunks and probes.
    least: Option<Duration>,
    /// [`Self::usual`], which is asked for more often than an answer comes.
    usual: Duration,
}

impl Lateness {
    /// A chunk or a probe was answered within this time.
    pub(super) fn answered(&mut self, within: Duration) {
        if self.least.is_none_or(|least| within < least) {
            self.least = Some(within);
            self.usual = self.median();
        }
    }

    /// A probe was answered within this time, and there was nothing else on the way.
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

    /// By how much answers usually come later than after the shortest round trip: the median, or half of the most that was seen,
    /// since the median of a few answers may be any of them.
    pub(super) fn usual(&self) -> Duration {
        self.usual
    }

    /// [`Self::usual`] of the answers so far.
    fn median(&self) -> Duration {
        let mut alone: Vec<_> = self.alone.iter().map(|within| within.saturating_sub(self.least())).collect();
        alone.sort_unstable();
        let median = alone.get(alone.len() / 2).copied().unwrap_or_default();
        median.min(alone.last().copied().unwrap_or_default() / 2)
    }

    /// Of `n` answers that are evenly late the earliest is late by 1/(n + 1) of the most on average, and by four times that in one
    /// case of fifty at most (e^-4).
    pub(super) fn doubt(&self) -> Doubt {
        let late = self.usual().saturating_mul(DOUBTFUL);
        let answers = u32::try_from(self.alone.len()).unwrap_or(u32::MAX).saturating_add(1);
        Doubt { late, unseen: late.saturating_mul(2) / answers }
    }

    /// More probes alone would tell more.
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
        // Late by 0 to 55 ms.
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
