//! The source's use of XBZRLE: for which pages it is tried, what the cache has of them, and what came of it.
//!
//! A page is in the cache exactly as it was last sent: it is copied out of guest memory once, then compared, kept and sent from
//! that copy. A page for which XBZRLE is not tried is not in the cache.

use super::{ChangedBytes, Encoded, Encoder, HEAD, PAGE, Page, PageCache};

/// In the rounds before this one there is nothing to compare with (`xbzrle_started`, migration/ram.c).
const FIRST_ROUND: u64 = 2;
/// A cache is filled in one round, and used in the next: only that one shows what it is good for.
const ROUNDS_TO_TELL: u64 = 2;
/// XBZRLE is worth its copies and comparisons where it spares a byte in eight: the speed of a wire varies by more than less.
const LEAST_GAIN: f64 = 0.125;
/// Where it is not, it is tried on for one stretch of pages in sixteen, so that a guest that begins to write otherwise is noticed.
const SAMPLED: u64 = 16;
/// Pages of a stretch: long against the work of a record, short against what a guest dirties.
const STRETCH: u64 = 16;
/// Fewer pages decide nothing.
const LEAST_PAGES: u64 = 64;

/// What XBZRLE has done in a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct XbzrleCount {
    /// Bytes of pages that the cache may hold.
    pub cache_bytes: u64,
    /// Pages that were found in the cache.
    pub pages: u64,
    /// Pages found in the cache of which only the changed bytes were sent.
    pub encoded: u64,
    /// Pages found in the cache and sent whole, because their changed bytes are as long as a page.
    pub overflow: u64,
    /// Bytes sent for pages that were found in the cache.
    pub bytes: u64,
    /// Pages that were not found in the cache, and sent whole.
    pub cache_miss: u64,
    /// In the last round: pages not found, of all that were looked for.
    pub cache_miss_rate: f64,
    /// In the last round: how many times as long as what was sent the pages are that were found. 0 if none was sent.
    pub encoding_rate: f64,
}

/// For which pages XBZRLE is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    Never,
    Sample,
    All,
}

/// What to send of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delta<'a> {
    /// Nothing: it is as it was sent.
    Nothing,
    /// These runs.
    Runs(&'a [u8]),
    /// All of it, and exactly these bytes: they are in the cache.
    Kept,
    /// All of it, as it is when it is sent.
    Whole,
}

/// Decides what to send of each page.
#[derive(Debug)]
pub struct XbzrleSource {
    cache: PageCache,
    encoder: Encoder,
    tried: Tried,
    /// Rounds begun.
    round: u64,
    /// From this round on it is decided, when a round begins, for which pages XBZRLE is tried.
    decides: u64,
    /// What share of pages the last round that tells has spared.
    spared: f64,
    count: XbzrleCount,
    /// What was counted before this round.
    before: XbzrleCount,
}

impl XbzrleSource {
    /// With a cache of so many bytes, of which the memory is taken as it is needed.
    pub fn new(cache_bytes: u64) -> Self {
        let count = XbzrleCount { cache_bytes, ..XbzrleCount::default() };
        let (cache, encoder) = (PageCache::new(cache_bytes), Encoder::default());
        Self { cache, encoder, tried: Tried::Never, round: 0, decides: 0, spared: 0.0, count, before: count }
    }

    /// What it has done.
    pub fn count(&self) -> XbzrleCount {
        self.count
    }

    /// The cache may hold so many bytes from the next round on. One of another size begins empty.
    pub fn resize(&mut self, cache_bytes: u64) {
        if cache_bytes != self.count.cache_bytes {
            self.cache = PageCache::new(cache_bytes);
            self.count.cache_bytes = cache_bytes;
            self.decides = self.round + 1 + ROUNDS_TO_TELL;
        }
    }

    /// A round begins.
    pub fn begin_round(&mut self) {
        self.round += 1;
        let told = self.last_round();
        self.spared = told.unwrap_or(self.spared);
        let gains = told.filter(|_| self.round >= self.decides).map(|spared| spared >= LEAST_GAIN);
        match (self.tried, gains) {
            (Tried::Never, _) if self.round >= FIRST_ROUND => self.try_all(),
            (Tried::All, Some(false)) => {
                self.tried = Tried::Sample;
                self.cache.retain(is_sampled);
            }
            (Tried::Sample, Some(true)) => self.try_all(),
            _ => {}
        }
        self.before = self.count;
    }

    fn try_all(&mut self) {
        self.tried = Tried::All;
        self.decides = self.round + ROUNDS_TO_TELL;
    }

    /// What share of the pages that it was tried for it has spared in the round that is over; `None` if too few pages tell. Updates
    /// the rates.
    fn last_round(&mut self) -> Option<f64> {
        let found = self.count.pages - self.before.pages;
        let missed = self.count.cache_miss - self.before.cache_miss;
        let sent = self.count.bytes - self.before.bytes;
        let (all, found_bytes) = (found + missed, found * PAGE as u64);
        if all > 0 {
            self.count.cache_miss_rate = missed as f64 / all as f64;
            self.count.encoding_rate = if sent > 0 { found_bytes as f64 / sent as f64 } else { 0.0 };
        }
        (all >= LEAST_PAGES).then(|| found_bytes.saturating_sub(sent) as f64 / (all * PAGE as u64) as f64)
    }

    /// What share of the contents of pages it will spare, as far as the last round tells.
    pub fn spared(&self) -> f64 {
        if self.tried == Tried::All { self.spared } else { 0.0 }
    }

    /// From `page` on, the pages of which all or none go through [`delta`](Self::delta): whether they do, and where they end.
    pub fn stretch(&self, page: u64) -> (bool, u64) {
        match self.tried {
            Tried::Never => (false, u64::MAX),
            Tried::All => (true, u64::MAX),
            Tried::Sample => (is_sampled(page), (page / STRETCH + 1) * STRETCH),
        }
    }

    /// What to send of a page that is not zero, of which `compare` finds what changed. In the `last_stage` no page comes again, and none
    /// is kept.
    pub fn delta(
        &mut self,
        page: u64,
        bytes: &Page,
        last_stage: bool,
        compare: impl Fn(&Page, &Page) -> ChangedBytes,
    ) -> Delta<'_> {
        let Some(known) = self.cache.get(page, self.round) else {
            self.count.cache_miss += 1;
            let kept = !last_stage && self.cache.insert(page, self.round, bytes);
            return if kept { Delta::Kept } else { Delta::Whole };
        };
        self.count.pages += 1;
        let encoded = self.encoder.encode(bytes, &compare(known, bytes));
        if encoded != Encoded::Unchanged && !last_stage {
            *known = *bytes;
        }
        match encoded {
            Encoded::Unchanged => Delta::Nothing,
            Encoded::Runs(runs) => {
                self.count.encoded += 1;
                self.count.bytes += (HEAD + runs.len()) as u64;
                Delta::Runs(runs)
            }
            Encoded::TooLong => {
                self.count.overflow += 1;
                self.count.bytes += PAGE as u64;
                Delta::Kept
            }
        }
    }

    /// A page goes as zero. One that does seldom stays so: it is kept, to be compared with (`xbzrle_cache_zero_page`).
    pub fn zero(&mut self, page: u64) {
        self.cache.insert(page, self.round, &[0; PAGE]);
    }
}

fn is_sampled(page: u64) -> bool {
    (page / STRETCH).is_multiple_of(SAMPLED)
}
