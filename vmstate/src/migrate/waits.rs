//! How long a guest in post-copy has waited for pages, at its destination: a count for each length, in bounded memory.

use std::time::Duration;

/// Lengths to a factor of two that are told apart: within an eighth.
const STEPS: u32 = 8;
/// From 1 µs to more than an hour.
const OCTAVES: u32 = 33;
const LENGTHS: usize = (OCTAVES * STEPS) as usize;

/// What a guest in post-copy has waited for pages that its destination asked for, each from when the wait was noticed until the page was
/// there. Who waits may be a vCPU, a device's thread or the hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageWaits {
    /// Pages that were asked for and have come.
    pub count: u64,
    /// Half of them took no longer, to within an eighth.
    pub median: Duration,
    /// 99 of 100 took no longer, to within an eighth.
    pub p99: Duration,
    /// The longest.
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

    /// A page that was asked for has come after so long.
    pub(crate) fn add(&mut self, wait: Duration) {
        if let Some(count) = self.counts.get_mut(place(wait)) {
            *count += 1;
        }
        self.longest = self.longest.max(wait);
    }

    pub(crate) fn summary(&self) -> PageWaits {
        let count = self.counts.iter().sum();
        PageWaits { count, median: self.percentile(count, 50), p99: self.percentile(count, 99), longest: self.longest }
    }

    /// The end of the first span of lengths up to which there are so many percent of all.
    fn percentile(&self, count: u64, percent: u64) -> Duration {
        let (wanted, mut so_far) = (count.saturating_mul(percent).div_ceil(100).max(1), 0);
        let found = self.counts.iter().position(|count| {
            so_far += count;
            so_far >= wanted
        });
        found.map_or(Duration::ZERO, |index| end(index).min(self.longest))
    }
}

/// The span of lengths that this one is in.
fn place(wait: Duration) -> usize {
    let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX).clamp(1, (1 << OCTAVES) - 1);
    let octave = micros.ilog2();
    let step = ((micros - (1 << octave)) * u64::from(STEPS)) >> octave;
    usize::try_from(u64::from(octave * STEPS) + step).unwrap_or(LENGTHS).min(LENGTHS - 1)
}

/// Where a span of lengths ends.
fn end(index: usize) -> Duration {
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    let (octave, step) = (index / STEPS, u64::from(index % STEPS));
    Duration::from_micros((1 << octave) + (((step + 1) << octave) / u64::from(STEPS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sorted lengths are the oracle.
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
