//! Dirty bitmap of device writes: a bit for each page of guest RAM, and one for each word of these bits, so that reading it
//! costs no more than there are writes.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use super::PAGE_SIZE;

/// Dirty bitmap of a stretch of guest memory. Bit 0 of word 0 is its first page.
#[derive(Debug, Default)]
pub struct DeviceWrites {
    pages: Vec<AtomicU64>,
    /// Bitmap of the words of `pages` that may have bits.
    words: Vec<AtomicU64>,
}

/// Result of [`DeviceWrites::written`].
pub(super) struct Written {
    /// Bit 0 is the first page.
    pub(super) bits: u64,
    /// Number of pages that the result covers.
    pub(super) pages: u64,
}

impl DeviceWrites {
    /// Clears each word that has bits, and calls `take` with its number and its bits.
    pub(super) fn take(&self, mut take: impl FnMut(usize, u64)) {
        for (group, word) in self.words.iter().enumerate() {
            if word.load(Ordering::SeqCst) == 0 {
                continue;
            }
            // Cleared first: a later writer of a bit marks its word again.
            let mut left = word.swap(0, Ordering::SeqCst);
            while left != 0 {
                let index = group * 64 + left.trailing_zeros() as usize;
                take(index, self.pages[index].swap(0, Ordering::SeqCst));
                left &= left - 1;
            }
        }
    }

    /// Sets the bits of `words` for which there are pages.
    pub(super) fn add(&self, words: &[u64]) {
        words.iter().enumerate().filter(|(_, word)| **word != 0).for_each(|(index, word)| self.set(index, *word));
    }

    /// Returns the written pages from `first` on: at most `most`, and those of one word.
    pub(super) fn written(&self, first: u64, most: u64) -> Written {
        let pages = most.clamp(1, 64 - first % 64);
        let word = self.pages.get((first / 64) as usize).map_or(0, |word| word.load(Ordering::SeqCst));
        Written { bits: word >> (first % 64) & (u64::MAX >> (64 - pages)), pages }
    }

    /// Calls `see` with each word that has bits, and with its number, without clearing it; stops when `see` returns false, and
    /// returns that.
    pub(super) fn see(&self, mut see: impl FnMut(usize, u64) -> bool) -> bool {
        for (group, word) in self.words.iter().enumerate() {
            let mut left = word.load(Ordering::SeqCst);
            while left != 0 {
                let index = group * 64 + left.trailing_zeros() as usize;
                if !see(index, self.pages[index].load(Ordering::SeqCst)) {
                    return false;
                }
                left &= left - 1;
            }
        }
        true
    }

    /// Clears the bitmap.
    pub fn reset(&self) {
        self.take(|_, _| {});
    }

    fn set(&self, index: usize, bits: u64) {
        if let Some(word) = self.pages.get(index) {
            word.fetch_or(bits, Ordering::SeqCst);
            // Set after the bit: a word that is taken in between is marked for nothing, and no word stays unmarked.
            self.words[index / 64].fetch_or(1 << (index % 64), Ordering::SeqCst);
        }
    }
}

impl Bitmap for DeviceWrites {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let (mut page, last) = (offset / PAGE_SIZE as usize, offset.saturating_add(len - 1) / PAGE_SIZE as usize);
        while page <= last && page / 64 < self.pages.len() {
            let in_word = (last - page + 1).min(64 - page % 64);
            self.set(page / 64, (u64::MAX >> (64 - in_word)) << (page % 64));
            page += in_word;
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE as usize;
        self.pages.get(page / 64).is_some_and(|word| word.load(Ordering::SeqCst) >> (page % 64) & 1 == 1)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl<'a> WithBitmapSlice<'a> for DeviceWrites {
    type S = RefSlice<'a, Self>;
}

impl NewBitmap for DeviceWrites {
    fn with_len(len: usize) -> Self {
        let zeros = |bits: usize| (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let words = len.div_ceil(PAGE_SIZE as usize).div_ceil(64);
        Self { pages: zeros(words * 64), words: zeros(words) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    const PAGES: usize = 64 * 70 + 5;

    fn pages(index: usize, word: u64) -> impl Iterator<Item = usize> {
        (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
    }

    fn seen(bitmap: &DeviceWrites) -> BTreeSet<usize> {
        let mut seen = BTreeSet::new();
        assert!(bitmap.see(|index, word| {
            seen.extend(pages(index, word));
            true
        }));
        seen
    }

    fn taken(bitmap: &DeviceWrites) -> BTreeSet<usize> {
        let (seen, mut taken) = (seen(bitmap), BTreeSet::new());
        bitmap.take(|index, word| taken.extend(pages(index, word)));
        // A writer may have set bits in between.
        assert!(seen.is_subset(&taken));
        taken
    }

    proptest! {
        #[test]
        fn pages_are_taken_once_and_are_those_of_a_set(
            rounds in prop::collection::vec(prop::collection::vec((0..PAGES * 4096, 0..300_000_usize), 0..8), 1..4),
        ) {
            let bitmap = DeviceWrites::with_len(PAGES * 4096);
            for writes in rounds {
                let mut model = BTreeSet::new();
                for (offset, len) in writes {
                    let len = len.min(PAGES * 4096 - offset);
                    bitmap.mark_dirty(offset, len);
                    model.extend((0..PAGES).filter(|page| page * 4096 < offset + len && (page + 1) * 4096 > offset && len > 0));
                }
                for page in (0..PAGES).step_by(7) {
                    prop_assert_eq!(bitmap.dirty_at(page * 4096 + 17), model.contains(&page));
                }
                prop_assert_eq!(&seen(&bitmap), &model);
                prop_assert_eq!(taken(&bitmap), model);
            }
            prop_assert!(taken(&bitmap).is_empty());
        }
    }

    #[test]
    fn addresses_outside_are_no_page() {
        let bitmap = DeviceWrites::with_len(65 * 4096);
        bitmap.mark_dirty(128 * 4096, 1);
        bitmap.mark_dirty(usize::MAX, 2);
        assert!(taken(&bitmap).is_empty() && !bitmap.dirty_at(usize::MAX));
    }

    #[test]
    fn pages_that_are_added_are_taken_with_those_that_were_written() {
        let bitmap = DeviceWrites::with_len(130 * 4096);
        bitmap.mark_dirty(3 * 4096, 1);
        // Longer than the bitmap, as the words for all of RAM are for the first stretch.
        bitmap.add(&[1 << 63, 0, 0b11, u64::MAX]);
        assert_eq!(taken(&bitmap), BTreeSet::from([3, 63, 128, 129]));
        assert!(taken(&bitmap).is_empty());
    }

    /// A writer marks each page once while a reader takes the marks: each is taken exactly once.
    #[test]
    fn no_page_is_lost_between_a_writer_and_a_reader() {
        let bitmap = DeviceWrites::with_len(PAGES * 4096);
        let done = AtomicBool::new(false);
        let mut seen = vec![0; PAGES];
        let take = |seen: &mut Vec<u32>| taken(&bitmap).into_iter().for_each(|page| seen[page] += 1);
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..PAGES).for_each(|page| bitmap.mark_dirty(page * 4096, 4096));
                done.store(true, Ordering::SeqCst);
            });
            while !done.load(Ordering::SeqCst) {
                take(&mut seen);
            }
        });
        take(&mut seen);
        assert!(seen.iter().all(|&times| times == 1));
    }
}
