//! The guest's writes: how often and where, over time.

use std::time::Duration;

use super::{Pattern, Scenario};
use crate::ram::PAGE_SIZE;

/// A vCPU of a bursty guest writes for this part of the time, at the inverse multiple of its average rate.
const BURST: f64 = 0.2;
/// How long a burst, or the pause between two, lasts.
const BURST_LASTS: Duration = Duration::from_millis(200);
/// Duration of a phase of a phased guest.
const PHASE: Duration = Duration::from_secs(10);
/// The rates of the two phases, as parts of the average.
const PHASES: (f64, f64) = (1.75, 0.25);
/// The hot part of a working set, and the share of writes to it.
const HOT: (f64, f64) = (0.1, 0.9);

/// The writes during some time.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub(super) until: Duration,
    /// Writes a second to each place.
    pub(super) writes_per_second: Vec<f64>,
}

/// The guest's writes over time.
#[derive(Debug)]
pub(super) struct Writing {
    pattern: Pattern,
    vcpus: u32,
    /// Average writes a second to each place.
    average: Vec<f64>,
    now: Moment,
    random: Random,
}

impl Writing {
    /// Creates the writes to a working set of `pages` of the `all` pages with contents; also returns the sizes of the places that
    /// are written, in pages.
    pub(super) fn new(scenario: &Scenario, pages: f64, all: f64) -> (Self, Vec<f64>) {
        let writes = scenario.writes.bytes_per_second as f64 / PAGE_SIZE as f64;
        let pattern = scenario.writes.pattern;
        let (places, average) = match pattern {
            Pattern::Steady | Pattern::Bursty => (vec![pages], vec![writes]),
            Pattern::HotSpot => {
                (vec![pages * HOT.0, pages * (1.0 - HOT.0)], vec![writes * HOT.1, writes * (1.0 - HOT.1)])
            }
            // The second phase has a place of its own, if there is room.
            Pattern::Phased => (vec![pages, pages.min(all - pages)], vec![writes; 2]),
        };
        let now = Moment { until: Duration::ZERO, writes_per_second: Vec::new() };
        let vcpus = scenario.vcpus.max(1);
        (Self { pattern, vcpus, average, now, random: Random(scenario.seed) }, places)
    }

    /// The writes at `now`, which never decreases.
    pub(super) fn at(&mut self, now: Duration) -> Moment {
        while self.now.until <= now {
            self.now = self.after(self.now.until);
        }
        self.now.clone()
    }

    fn after(&mut self, from: Duration) -> Moment {
        let average = &self.average;
        match self.pattern {
            Pattern::Steady | Pattern::HotSpot => Moment { until: Duration::MAX, writes_per_second: average.clone() },
            Pattern::Bursty => {
                let random = &mut self.random;
                let writers = (0..self.vcpus).filter(|_| random.next() < BURST).count();
                let factor = writers as f64 / (f64::from(self.vcpus) * BURST);
                let writes_per_second = average.iter().map(|writes| writes * factor).collect();
                Moment { until: from.saturating_add(BURST_LASTS), writes_per_second }
            }
            Pattern::Phased => {
                let second = from.as_secs() / PHASE.as_secs() % 2 == 1;
                let (factor, place) = if second { (PHASES.1, 1) } else { (PHASES.0, 0) };
                let there = |(at, writes): (usize, &f64)| if at == place { writes * factor } else { 0.0 };
                let writes_per_second = average.iter().enumerate().map(there).collect();
                Moment { until: from.saturating_add(PHASE), writes_per_second }
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers for the same seed, in each release.
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    /// A number from 0 to below 1.
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
