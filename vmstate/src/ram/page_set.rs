//! A set of pages: one bit for each page, iterated by runs.

use std::ops::Range;

/// The set of some pages of a block. Bit 0 of word 0 is page 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    pages: u64,
}

const BITS: u64 = u64::BITS as u64;

impl PageSet {
    /// Creates the empty set, for a block of `pages` pages.
    pub fn empty(pages: u64) -> Self {
        // A bitmap larger than the address space belongs to a guest that does not fit it either.
        let words = usize::try_from(pages.div_ceil(BITS)).unwrap_or(usize::MAX);
        Self { words: vec![0; words], pages }
    }

    /// Creates the set of all pages.
    pub fn full(pages: u64) -> Self {
        let mut all = Self::empty(pages);
        all.words.fill(u64::MAX);
        all.trim();
        all
    }

    /// Number of pages of the block, in the set or not.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Number of pages in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// True if `page` is in the set.
    pub fn contains(&self, page: u64) -> bool {
        self.word(page / BITS) >> (page % BITS) & 1 == 1
    }

    /// Lets `change` set bits, and clears those past the last page.
    pub fn edit<T>(&mut self, change: impl FnOnce(&mut [u64]) -> T) -> T {
        let result = change(&mut self.words);
        self.trim();
        result
    }

    /// The first run of pages in the set at or after `from`, limited to `longest` pages.
    pub fn run(&self, from: u64, longest: u64) -> Option<Range<u64>> {
        let start = self.next(from, self.pages, 0)?;
        let end = self.pages.min(start.saturating_add(longest));
        Some(start..self.next(start, end, u64::MAX).unwrap_or(end))
    }

    /// Calls `take` with every `stride`th page of the set, after skipping the first `skipped`. Returns how many pages of the next
    /// set must be skipped to keep the stride.
    ///
    /// # Errors
    /// Errors of `take`.
    pub fn every<E>(
        &self,
        mut skipped: u64,
        stride: u64,
        mut take: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<u64, E> {
        for (index, &word) in (0..).zip(&self.words) {
            let here = u64::from(word.count_ones());
            while skipped < here {
                let rest = (0..skipped).fold(word, |word, _| word & (word - 1));
                take(index * BITS + u64::from(rest.trailing_zeros()))?;
                skipped = skipped.saturating_add(stride);
            }
            skipped -= here;
        }
        Ok(skipped)
    }

    /// Adds `page` to the set, if the block has it.
    pub fn insert(&mut self, page: u64) {
        if let Some(word) = usize::try_from(page / BITS).ok().and_then(|index| self.words.get_mut(index)) {
            *word |= 1 << (page % BITS);
        }
        self.trim();
    }

    /// The words with the bits.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Removes pages from the set.
    pub fn remove(&mut self, pages: Range<u64>) {
        self.each_word(pages, |word, ones| *word &= !ones);
    }

    /// Adds pages to the set.
    pub fn add(&mut self, pages: Range<u64>) {
        self.each_word(pages.start..pages.end.min(self.pages), |word, ones| *word |= ones);
    }

    /// The pages of the block that are not in the set.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut others = Self { words: self.words.iter().map(|word| !word).collect(), pages: self.pages };
        others.trim();
        others
    }

    /// Calls `change` with each word that contains some of these pages, and with their bits.
    fn each_word(&mut self, pages: Range<u64>, change: impl Fn(&mut u64, u64)) {
        let mut page = pages.start;
        while page < pages.end {
            let next = (page / BITS + 1).saturating_mul(BITS).min(pages.end);
            let ones = u64::MAX >> (BITS - (next - page));
            if let Some(word) = usize::try_from(page / BITS).ok().and_then(|index| self.words.get_mut(index)) {
                change(word, ones << (page % BITS));
            }
            page = next;
        }
    }

    /// The first page of `from..until` whose bit is set in `word ^ flip`.
    fn next(&self, from: u64, until: u64, flip: u64) -> Option<u64> {
        let place = |index: u64, word: u64| {
            let page = index * BITS + u64::from(word.trailing_zeros());
            (page < until).then_some(page)
        };
        let first = from / BITS;
        let word = (self.word(first) ^ flip) & (u64::MAX << (from % BITS));
        if word != 0 {
            return place(first, word);
        }
        let index = |index: u64| usize::try_from(index).unwrap_or(usize::MAX);
        let rest = self.words.get(index(first + 1)..index(until.div_ceil(BITS)))?;
        let skipped = rest.iter().position(|word| word ^ flip != 0)?;
        place(first + 1 + skipped as u64, rest.get(skipped)? ^ flip)
    }

    fn word(&self, index: u64) -> u64 {
        usize::try_from(index).ok().and_then(|index| self.words.get(index)).copied().unwrap_or(0)
    }

    fn trim(&mut self) {
        let used = self.pages % BITS;
        if used != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= u64::MAX >> (BITS - used);
        }
    }
}
