//! How long a guest in post-copy has waited for pages, at its destination: a histogram of durations, in bounded memory.

use std::time::Duration;

/// Number of classes for each factor of two: the error is within an eighth.
const STEPS: u32 = 8;
/// Range of the histogram: from 1 µs to more than an hour.
const OCTAVES: u32 = 33;
const LENGTHS: usize = (OCTAVES * STEPS) as usize;

/// The waits of a guest in post-copy for pages that its destination requested, each from the moment when the wait was noticed
/// until the page was stored. A vCPU, a device's thread or the hypervisor may wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageWaits {
    /// Number of pages that were requested and have arrived.
    pub count: u64,
    /// Half of the waits were no longer, to within an eighth.
    pub median: Duration,
    /// 99 of 100 waits were no longer, to within an eighth.
    pub p99: Duration,
    /// The longest wait.
    pub longest: Duration,
}

/// The waits so far.
pub(crate) struct WaitCounts {
    counts: [u64; LENGTHS],
    longest: Duration,
}

impl WaitCounts {
    pub(crate) fn new() -> Self {
        Self { counts: [0; LENGTHS], longest: Duration::ZERO }
    }

    /// Records that a requested page has arrived after this time.
    pub(crate) fn add(&mut self, wait: Duration) {
        if let Some(count) = self.counts.get_mut(class(wait)) {
            *count += 1;
        }
        self.longest = self.longest.max(wait);
    }

    pub(crate) fn summary(&self) -> PageWaits {
        let count = self.counts.iter().sum();
        PageWaits { count, median: self.percentile(count, 50), p99: self.percentile(count, 99), longest: self.longest }
    }

    /// Returns the upper end of the first class at which the count reaches this percentage of all waits.
    fn percentile(&self, count: u64, percent: u64) -> Duration {
        let (wanted, mut so_far) = (count.saturating_mul(percent).div_ceil(100).max(1), 0);
        let found = self.counts.iter().position(|count| {
            so_far += count;
            so_far >= wanted
        });
        found.map_or(Duration::ZERO, |index| upper_end(index).min(self.longest))
    }
}

/// The index of the class for this duration.
fn class(wait: Duration) -> usize {
    let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX).clamp(1, (1 << OCTAVES) - 1);
    let octave = micros.ilog2();
    let step = ((micros - (1 << octave)) * u64::from(STEPS)) >> octave;
    usize::try_from(u64::from(octave * STEPS) + step).unwrap_or(LENGTHS).min(LENGTHS - 1)
}

/// The upper end of a class.
fn upper_end(index: usize) -> Duration {
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    let (octave, step) = (index / STEPS, u64::from(index % STEPS));
    Duration::from_micros((1 << octave) + (((step + 1) << octave) / u64::from(STEPS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The oracle is a sorted list of durations.
    #[test]
    fn percentiles_are_those_of_a_sorted_list_to_within_an_eighth() {
        let mut counts = WaitCounts::new();
        assert_eq!(counts.summary(), PageWaits::default());
        let mut waits: Vec<_> =
            (1..=1000_u64).map(|number| Duration::from_micros(number * number * 7 % 60_000)).collect();
        waits.iter().for_each(|wait| counts.add(*wait));
        waits.sort();
        let summary = counts.summary();
        assert_eq!((summary.count, summary.longest), (1000, waits[999]));
        for (found, exact) in [(summary.median, waits[499]), (summary.p99, waits[989])] {
            assert!(found >= exact && found <= exact + exact / 8 + Duration::from_micros(1), "{found:?}, {exact:?}");
        }
        counts.add(Duration::MAX);
        assert_eq!(counts.summary().longest, Duration::MAX);
    }
}
