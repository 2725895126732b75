//! Memory load: dirties pages throughout a region and keeps track of what each page must hold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Work;
use super::pattern::{PAGE, Page};
use super::waits::Waits;

/// Pages written between two looks at the clock.
const BATCH: u64 = 32;
/// Step to the next page: odd, so that all pages of a power of two are visited, and large, so that consecutive writes
/// are not to neighbouring pages.
const STRIDE: usize = 7919;

#[derive(Debug)]
pub(super) struct Region {
    pages: Vec<Page>,
    generations: Vec<u32>,
    next: usize,
    writes: u64,
    waits: Waits,
}

impl Region {
    fn new(pages: usize) -> Self {
        let mut region = Self {
            pages: vec![Page::ZERO; pages],
            generations: vec![0; pages],
            next: 0,
            writes: 0,
            waits: Waits::default(),
        };
        for (number, page) in region.pages.iter_mut().enumerate() {
            page.fill(number as u64, 0);
        }
        region
    }

    fn write_one(&mut self) {
        let number = self.next;
        self.next = (number + STRIDE) % self.pages.len();
        self.generations[number] += 1;
        let begun = Instant::now();
        self.pages[number].fill(number as u64, u64::from(self.generations[number]));
        self.waits.add(begun.elapsed());
        self.writes += 1;
    }
}

pub(super) fn start(mib: usize, rate: u64) -> Arc<Work<Region>> {
    let mut begun = Instant::now();
    let mut written = 0;
    Work::start(Region::new((mib << 20) / PAGE), move |region| {
        for _ in 0..BATCH {
            region.write_one();
        }
        if rate == 0 {
            return Duration::ZERO;
        }
        written += BATCH;
        let due = Duration::from_millis(written * 1000 / rate);
        // After a pause of the guest, continue at the rate instead of catching up.
        if begun.elapsed() > due + Duration::from_millis(100) {
            (begun, written) = (Instant::now(), 0);
            return Duration::ZERO;
        }
        due.saturating_sub(begun.elapsed())
    })
}

/// The writes since the last call, and those that had to wait for their page.
pub(super) fn mark(region: &mut Region) -> Value {
    let mut waits = region.waits.take();
    waits["writes"] = region.writes.into();
    waits
}

/// Compares every word of every page with what the page must hold.
pub(super) fn verify(region: &mut Region) -> Value {
    let expected = region.generations.iter().enumerate();
    let wrong: Vec<usize> = expected
        .filter(|(number, generation)| !region.pages[*number].holds(*number as u64, u64::from(**generation)))
        .map(|(number, _)| number)
        .collect();
    let first = wrong.first().map(|&number| {
        let words = &region.pages[number].0;
        json!({ "page": number, "generation": region.generations[number], "found": [words[0], words[1]] })
    });
    json!({ "pages": region.pages.len(), "mismatches": wrong.len(), "first": first, "writes": region.writes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_visited_and_a_lost_write_is_found() {
        let mut region = Region::new(64);
        for _ in 0..64 {
            region.write_one();
        }
        assert!(region.generations.iter().all(|generation| *generation == 1));
        assert_eq!(verify(&mut region)["mismatches"], 0);
        region.pages[9].fill(9, 0);
        let verdict = verify(&mut region);
        assert_eq!((&verdict["mismatches"], &verdict["first"]["page"]), (&json!(1), &json!(9)));
    }
}
