//! Guest memory as page counts: how many pages are pending, and how many of the sent ones are written again.
//!
//! A page that is written at random times, `r` times a second on average, is still unwritten after `t` seconds with probability
//! `exp(-r t)`. So of `C` pages among `W` pages that share `w` writes a second, `C exp(-w t / W)` are left, whatever their
//! number: time and work of a step do not depend on the size of memory.

use std::time::Duration;

use super::writes::{Moment, Writing};
use super::{Scenario, Writes};
use crate::ram::{NORMAL_RECORD, PAGE_SIZE, PageCount, ZERO_RECORD};

/// How fast a source detects zero pages. A core reads memory at some 10 GB/s.
const SCANNED_BYTES_PER_SECOND: f64 = 1e10;
/// Counts below this are zero.
const NO_PAGE: f64 = 0.5;

/// Pages that are written at the same rate. Pages that are neither pending, waiting nor dirty were sent and not written since.
#[derive(Clone, Debug)]
struct Region {
    pages: f64,
    /// Pages to be sent in this round, and not handed to the wire yet.
    pending: f64,
    /// Pages handed to the wire that it has not accepted yet. They are read when it does.
    waiting: f64,
    /// Pages written since they were sent, and so in the log.
    dirty: f64,
}

impl Region {
    fn new(pages: f64) -> Self {
        Self { pages, pending: pages, waiting: 0.0, dirty: 0.0 }
    }

    fn take(&mut self, share: f64) {
        let taken = self.pending * share;
        self.pending -= taken;
        self.waiting += taken;
    }

    /// Lets `seconds` pass, in which the wire evenly accepts `taken` of the waiting pages, and the guest makes this many writes a
    /// second.
    fn pass(&mut self, seconds: f64, taken: f64, writes_per_second: f64) {
        let clean = (self.pages - self.pending - self.waiting - self.dirty).max(0.0);
        self.waiting -= taken;
        let rate = if self.pages > 0.0 { writes_per_second / self.pages } else { 0.0 };
        let left = if rate * seconds > 0.0 {
            let fresh = -(-rate * seconds).exp_m1() / (rate * seconds);
            clean * (-rate * seconds).exp() + taken * fresh
        } else {
            clean + taken
        };
        self.dirty += clean + taken - left;
    }
}

/// The contents of a chunk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    /// Bytes in the stream.
    pub(super) bytes: u64,
    /// Time to check for zeros.
    pub(super) scan: Duration,
}

/// All pages of a guest.
#[derive(Debug)]
pub(super) struct Memory {
    /// Pages with contents: grouped by how they are written, with the never written ones last.
    regions: Vec<Region>,
    /// Zero pages, which are never written, that are still to be sent. They are sent after all others.
    zero: f64,
    writing: Writing,
    sent: (f64, f64),
}

impl Memory {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let pages = |bytes: u64| (bytes / PAGE_SIZE) as f64;
        let (all, zero) = (pages(scenario.memory), pages(scenario.zero.min(scenario.memory)));
        let Writes { working_set, .. } = scenario.writes;
        let (writing, places) = Writing::new(scenario, pages(working_set).min(all - zero), all - zero);
        let still = all - zero - places.iter().sum::<f64>();
        let regions = places.into_iter().chain([still.max(0.0)]).map(Region::new).collect();
        Self { regions, zero, writing, sent: (0.0, 0.0) }
    }

    fn normal(&self) -> f64 {
        self.regions.iter().map(|region| region.pending).sum()
    }

    /// Expected bytes of the pending pages.
    pub(super) fn pending_bytes(&self) -> f64 {
        self.normal() * NORMAL_RECORD as f64 + self.zero * ZERO_RECORD as f64
    }

    /// Pages that are pending.
    pub(super) fn pending_pages(&self) -> u64 {
        super::round_down((self.normal() + self.zero).round())
    }

    /// Pages that were sent.
    pub(super) fn sent(&self) -> PageCount {
        PageCount { normal: super::round_down(self.sent.0.round()), zero: super::round_down(self.sent.1.round()) }
    }

    /// Hands about `budget` bytes to the wire, one page at least; returns also whether the round is complete.
    pub(super) fn take(&mut self, budget: u64) -> (Taken, bool) {
        let normal = self.normal();
        let mut taken = Taken::default();
        if normal >= NO_PAGE {
            let wanted = (budget as f64 / NORMAL_RECORD as f64).max(1.0);
            let share = if wanted > normal - NO_PAGE { 1.0 } else { wanted / normal };
            self.regions.iter_mut().for_each(|region| region.take(share));
            self.sent.0 += normal * share;
            taken.bytes = super::round_down((normal * share * NORMAL_RECORD as f64).round()).max(1);
        } else if self.zero > 0.0 {
            let most = SCANNED_BYTES_PER_SECOND / 10.0 / PAGE_SIZE as f64;
            let pages = (budget as f64 / ZERO_RECORD as f64).clamp(1.0, most).min(self.zero);
            self.zero -= pages;
            self.sent.1 += pages;
            taken.bytes = super::round_down(pages * ZERO_RECORD as f64);
            taken.scan = Duration::from_secs_f64(pages * PAGE_SIZE as f64 / SCANNED_BYTES_PER_SECOND);
        }
        (taken, self.normal() < NO_PAGE && self.zero < NO_PAGE)
    }

    /// Lets `time` pass from `now` on, in which the wire accepts this `share` of the waiting pages; the guest runs for `running`
    /// of it.
    pub(super) fn pass(&mut self, now: Duration, time: Duration, share: f64, running: f64) {
        let taken: Vec<f64> = self.regions.iter().map(|region| region.waiting * share).collect();
        let (end, whole) = (now.saturating_add(time), time.as_secs_f64());
        let mut at = now;
        loop {
            let Moment { until, writes_per_second } = self.writing.at(at);
            let next = until.min(end);
            let seconds = next.saturating_sub(at).as_secs_f64();
            let part = if whole > 0.0 { seconds / whole } else { 1.0 };
            let rates = writes_per_second.iter().copied().chain([0.0]);
            for ((region, taken), rate) in self.regions.iter_mut().zip(&taken).zip(rates) {
                region.pass(seconds, taken * part, rate * running);
            }
            if next >= end {
                return;
            }
            at = next;
        }
    }

    /// Begins a round: the dirty pages become pending. Returns their number.
    pub(super) fn sync(&mut self) -> f64 {
        let mut dirtied = 0.0;
        for region in &mut self.regions {
            dirtied += region.dirty;
            region.pending += std::mem::take(&mut region.dirty);
        }
        dirtied
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A simulation page by page, with random writes.
    fn drawn(pages: usize, writes_per_second: f64, seconds: f64, sends_all: bool) -> f64 {
        let (steps, mut seed) = (1000, 1_u64);
        let mut dirty = vec![false; pages];
        for step in 0..steps {
            let sent = if sends_all { step * pages / steps } else { pages };
            for _ in 0..(writes_per_second * seconds / steps as f64).round() as usize {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let page = (seed >> 33) as usize % pages;
                // A page written before it is sent is sent with the new contents.
                dirty[page] |= page < sent;
            }
        }
        dirty.iter().filter(|&&dirty| dirty).count() as f64
    }

    #[test]
    fn what_is_written_again_is_what_random_writes_leave_dirty() {
        for (writes_per_second, seconds) in [(1e4, 0.1), (1e5, 0.3), (1e6, 0.1)] {
            for sends_all in [false, true] {
                let mut region = Region::new(20_000.0);
                region.take(1.0);
                let mut at_once = region.clone();
                if !sends_all {
                    at_once.pass(0.0, 20_000.0, 0.0);
                    at_once.pass(seconds, 0.0, writes_per_second);
                } else {
                    at_once.pass(seconds, 20_000.0, writes_per_second);
                }
                let expected = drawn(20_000, writes_per_second, seconds, sends_all);
                let wrong = (at_once.dirty / expected - 1.0).abs();
                assert!(wrong < 0.05, "{} for {expected}: {writes_per_second} {seconds} {sends_all}", at_once.dirty);
                // Many small steps have the same result.
                for _ in 0..100 {
                    let (now, all) = if sends_all { (seconds / 100.0, 200.0) } else { (0.0, 200.0) };
                    region.pass(now, all, writes_per_second);
                }
                if !sends_all {
                    region.pass(seconds, 0.0, writes_per_second);
                }
                assert!((region.dirty / at_once.dirty - 1.0).abs() < 1e-6, "{region:?} {at_once:?}");
            }
        }
    }
}
