//! Measures how fast the guest dirties its memory outside of a migration: a thread compares sampled pages after some time, as
//! QEMU's `page-sampling` does (migration/dirtyrate.c).
//!
//! Only pages with changed content count: rewriting the same content does not.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::memory::{PAGE_SIZE, Ram};
use crate::sandbox::{self, Kind};
use crate::vm::published::Published;

/// Least number of pages in a sample, for small machines.
const SAMPLE_MIN: u64 = 128;

/// State of the measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum DirtyRate {
    /// No measurement was begun.
    #[default]
    Unstarted,
    /// A measurement is running.
    Measuring(Sampling),
    /// The last measurement, and the bytes that the guest dirties a second.
    Measured(Sampling, u64),
}

/// Parameters of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Time between the two readings of a page.
    pub time: Duration,
    /// Pages sampled in each GiB of memory.
    pub pages_per_gib: u64,
    /// Start of the measurement, since 1970.
    pub begun: Duration,
}

impl Sampling {
    /// Makes a measurement that begins now.
    pub fn now(time: Duration, pages_per_gib: u64) -> Self {
        Self { time, pages_per_gib, begun: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
    }
}

/// Begins a measurement, whose result is published.
///
/// # Errors
/// The thread cannot be spawned.
pub(super) fn measure(sampling: Sampling, ram: Ram, shared: &Arc<Published>) -> io::Result<()> {
    shared.set_dirty_rate(DirtyRate::Measuring(sampling));
    let published = Arc::downgrade(shared);
    let begun = sandbox::spawn(Kind::Throttle, "dirty-rate", move || {
        let rate = sample(sampling, &ram);
        if let Some(published) = published.upgrade() {
            published.set_dirty_rate(DirtyRate::Measured(sampling, rate));
        }
    });
    if begun.is_err() {
        shared.set_dirty_rate(DirtyRate::Unstarted);
    }
    begun.map(drop)
}

/// Measures the bytes dirtied a second.
fn sample(sampling: Sampling, ram: &Ram) -> u64 {
    let pages = ram.len() / PAGE_SIZE;
    let hasher = RandomState::new();
    let look = |page: u64| {
        let mut bytes = [0; PAGE_SIZE as usize];
        // Cannot fail: all chosen pages are within the memory.
        let _ = ram.read(page * PAGE_SIZE, &mut bytes);
        hasher.hash_one(bytes)
    };
    let begun = Instant::now();
    let wanted = (ram.len() >> 20).saturating_mul(sampling.pages_per_gib) >> 10;
    let chosen = choose(wanted.max(SAMPLE_MIN), pages, |number| hasher.hash_one(number));
    let first: Vec<_> = chosen.iter().map(|&page| (page, look(page))).collect();
    std::thread::sleep(sampling.time.saturating_sub(begun.elapsed()));
    let changed = first.iter().filter(|(page, before)| look(*page) != *before).count() as u64;
    let dirtied = u128::from(ram.len()) * u128::from(changed) / (chosen.len().max(1) as u128);
    let taken = begun.elapsed().max(sampling.time).as_millis().max(1);
    u64::try_from(dirtied * 1000 / taken).unwrap_or(u64::MAX)
}

/// Chooses `wanted` pages, or all if there are fewer: one of each of `wanted` stretches of the same length.
fn choose(wanted: u64, pages: u64, random: impl Fn(u64) -> u64) -> BTreeSet<u64> {
    if wanted >= pages {
        return (0..pages).collect();
    }
    let stretch = pages / wanted;
    (0..wanted).map(|number| number * stretch + random(number) % stretch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_sample_is_spread_over_the_memory() {
        assert_eq!(choose(9, 4, |_| 7), (0..4).collect());
        assert_eq!(choose(3, 11, |number| 3 + number).into_iter().collect::<Vec<_>>(), [0, 4, 8]);
        assert_eq!(choose(128, 1 << 20, |number| number).len(), 128);
    }

    /// Half of the memory is written all the time, the other half never.
    #[test]
    fn the_rate_is_what_of_the_memory_was_written_by_the_time_that_it_took() {
        let ram = Ram::new(16 << 20).unwrap();
        let (ends, memory) = (AtomicBool::new(false), ram.clone());
        let rate = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut word = 1_u64;
                while !ends.load(Ordering::Relaxed) {
                    for page in 0..memory.len() / PAGE_SIZE / 2 {
                        memory.write(page * PAGE_SIZE, &word.to_le_bytes()).unwrap();
                    }
                    word += 1;
                }
            });
            // The time is long enough to write each page again.
            let rate = sample(Sampling::now(Duration::from_millis(300), 1 << 20), &ram);
            ends.store(true, Ordering::Relaxed);
            rate
        });
        // 8 MiB in 0.3 s, or in more on a busy host; and at least one page.
        assert!(rate > 0 && rate <= (8 << 20) * 10 / 3, "{rate}");
        assert_eq!(sample(Sampling::now(Duration::from_millis(1), 1 << 20), &ram), 0, "no page is written any more");
    }
}
