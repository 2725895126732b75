//! Dirty bitmap of a disk image: one bit for each granule, set by the writer of the image and cleared by the copier.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the image that share one bit.
pub const GRANULE: u64 = 64 << 10;

/// Granules in a word of the bitmap.
const WORD: u64 = u64::BITS as u64;

/// Changes since they were last [taken](Self::take). A writer marks after its write, and a copier reads the image after it has
/// taken the marks: so the copier reads the write, or finds its mark the next time.
#[derive(Debug)]
pub struct Changes {
    words: Vec<AtomicU64>,
    /// Number of set bits.
    count: AtomicU64,
}

impl Changes {
    /// Makes the bitmap of an unchanged image of `bytes` bytes.
    pub(super) fn new(bytes: u64) -> Self {
        let words = bytes.div_ceil(GRANULE).div_ceil(WORD);
        Self { words: (0..words).map(|_| AtomicU64::new(0)).collect(), count: AtomicU64::new(0) }
    }

    /// Marks the granules of a range of the image.
    pub(super) fn mark(&self, offset: u64, len: u64) {
        let Some(last) = len.checked_sub(1).map(|rest| offset.saturating_add(rest) / GRANULE) else { return };
        for (index, bits) in masks(offset / GRANULE..=last) {
            let Some(word) = self.words.get(index) else { return };
            // Usually set already: a file system writes the same places again and again.
            if word.load(Ordering::SeqCst) & bits != bits {
                let before = word.fetch_or(bits, Ordering::SeqCst);
                self.count.fetch_add(u64::from((bits & !before).count_ones()), Ordering::SeqCst);
            }
        }
    }

    /// Number of marked granules; approximate while a writer marks.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Clears all marks, and adds them to the bitmap `granules`; returns how many are new there.
    pub fn take(&self, granules: &mut [u64]) -> u64 {
        let mut new = 0;
        for (marked, granules) in self.words.iter().zip(granules) {
            if marked.load(Ordering::SeqCst) == 0 {
                continue;
            }
            let taken = marked.swap(0, Ordering::SeqCst);
            // May wrap around for a moment if a writer has marked and not counted yet.
            self.count.fetch_sub(u64::from(taken.count_ones()), Ordering::SeqCst);
            new += u64::from((taken & !*granules).count_ones());
            *granules |= taken;
        }
        new
    }

    /// Number of words in the bitmap of [`take`](Self::take).
    pub fn words(&self) -> usize {
        self.words.len()
    }
}

/// The words of a bitmap that have the given bits: the index of each, and its mask.
pub(super) fn masks(bits: RangeInclusive<u64>) -> impl Iterator<Item = (usize, u64)> {
    let (first, last) = bits.into_inner();
    (first / WORD..=last / WORD).map(move |word| {
        let (from, to) = (first.max(word * WORD) % WORD, last.min(word * WORD + WORD - 1) % WORD);
        (word as usize, u64::MAX << from & u64::MAX >> (WORD - 1 - to))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Barrier;

    use proptest::prelude::*;

    use super::*;

    const BYTES: u64 = 300 * GRANULE + 512;

    fn set(words: &[u64]) -> BTreeSet<u64> {
        (0..words.len() as u64 * WORD).filter(|bit| words[(bit / WORD) as usize] & 1 << (bit % WORD) != 0).collect()
    }

    proptest! {
        /// The model marks the written bytes one by one.
        #[test]
        fn marks_are_those_of_a_set(steps in prop::collection::vec((any::<bool>(), 0..BYTES, 0..5 * GRANULE), 1..40)) {
            let changes = Changes::new(BYTES);
            let (mut marked, mut model, mut taken) = (BTreeSet::new(), BTreeSet::new(), vec![0; changes.words()]);
            for (takes, offset, len) in steps {
                let len = len.min(BYTES - offset);
                changes.mark(offset, len);
                marked.extend((offset..offset + len).step_by(512).chain((offset + len).checked_sub(1).filter(|_| len > 0)).map(|byte| byte / GRANULE));
                prop_assert_eq!(changes.count(), marked.len() as u64);
                if takes {
                    let new = marked.difference(&model).count() as u64;
                    prop_assert_eq!(changes.take(&mut taken), new);
                    model.append(&mut marked);
                    prop_assert_eq!(set(&taken), model.clone());
                    prop_assert_eq!(changes.count(), 0);
                }
            }
        }
    }

    /// A writer and a copier run on a thread each. Each granule is written once in a round, so that no later mark hides a lost
    /// one.
    #[test]
    fn no_write_is_lost_between_a_writer_and_a_copier() {
        const GRANULES: u64 = 1024;
        const ROUNDS: u64 = 400;
        let changes = Changes::new(GRANULES * GRANULE);
        let original: Vec<_> = (0..GRANULES).map(|_| AtomicU64::new(0)).collect();
        let (written, barrier) = (AtomicU64::new(0), Barrier::new(2));
        let (mut copy, mut losses) = (vec![0; GRANULES as usize], Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    barrier.wait();
                    for (granule, value) in (0..).zip(&original) {
                        value.store(round, Ordering::Relaxed);
                        changes.mark(granule * GRANULE + granule % GRANULE, 1);
                    }
                    written.store(round, Ordering::SeqCst);
                }
            });
            for round in 1..=ROUNDS {
                barrier.wait();
                let mut is_last = false;
                while !is_last {
                    is_last = written.load(Ordering::SeqCst) == round;
                    let mut taken = vec![0; changes.words()];
                    changes.take(&mut taken);
                    for granule in set(&taken) {
                        copy[granule as usize] = original[granule as usize].load(Ordering::Relaxed);
                    }
                }
                // Checked at the end: a panic here would leave the writer waiting at the barrier.
                losses.push(copy.iter().filter(|value| **value != round).count());
            }
        });
        assert_eq!(changes.count(), 0);
        assert_eq!(losses, vec![0; ROUNDS as usize]);
    }
}
