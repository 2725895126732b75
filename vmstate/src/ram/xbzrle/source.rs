//! The source's use of XBZRLE: for which pages it is tried, what is cached, and its results.
//!
//! A cached page equals the page as it was last sent: it is copied out of guest memory once, then compared, cached and sent from
//! that copy. A page for which XBZRLE is not tried is not cached.

use super::{ChangedBytes, Encoded, Encoder, HEAD, PAGE, Page, PageCache};

/// Before this round there is nothing to compare with (`xbzrle_started`, migration/ram.c).
const FIRST_ROUND: u64 = 2;
/// A cache is filled in one round and used in the next: only the second round shows its benefit.
const ROUNDS_TO_TELL: u64 = 2;
/// XBZRLE is worth its copies and comparisons if it saves one byte in eight: smaller savings are within the variation of a link's
/// speed.
const LEAST_GAIN: f64 = 0.125;
/// If XBZRLE is not worth it, it is still tried for one stretch of pages in this many, to notice when the guest's writes change.
const SAMPLED: u64 = 16;
/// Pages of a stretch: long compared with the work for a record, short compared with the pages that a guest dirties.
const STRETCH: u64 = 16;
/// The fewest pages on which a decision is based.
const LEAST_PAGES: u64 = 64;

/// The results of XBZRLE in a migration.
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
    /// In the last round: the share of the pages looked up that were not found.
    pub cache_miss_rate: f64,
    /// In the last round: the size of the pages found, divided by the size of what was sent for them. 0 if none was sent.
    pub encoding_rate: f64,
}

/// The pages for which XBZRLE is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    Never,
    Sample,
    All,
}

/// The form in which a page is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delta<'a> {
    /// Not at all: the page is unchanged since it was sent.
    Nothing,
    /// As these runs.
    Runs(&'a [u8]),
    /// As the whole page, with exactly these bytes: they are cached.
    Kept,
    /// As the whole page, with its contents at the time of sending.
    Whole,
}

/// Decides in which form to send each page.
#[derive(Debug)]
pub struct XbzrleSource {
    cache: PageCache,
    encoder: Encoder,
    tried: Tried,
    /// Number of rounds begun.
    round: u64,
    /// From this round on, each round begins with a decision for which pages XBZRLE is tried.
    decides: u64,
    /// The share of bytes saved in the last round with enough pages.
    spared: f64,
    count: XbzrleCount,
    /// The counts before this round.
    before: XbzrleCount,
}

impl XbzrleSource {
    /// Creates the state with a cache of this many bytes, whose memory is allocated on demand.
    pub fn new(cache_bytes: u64) -> Self {
        let count = XbzrleCount { cache_bytes, ..XbzrleCount::default() };
        let (cache, encoder) = (PageCache::new(cache_bytes), Encoder::default());
        Self { cache, encoder, tried: Tried::Never, round: 0, decides: 0, spared: 0.0, count, before: count }
    }

    /// The results so far.
    pub fn count(&self) -> XbzrleCount {
        self.count
    }

    /// Changes the size of the cache from the next round on. A cache of another size begins empty.
    pub fn resize(&mut self, cache_bytes: u64) {
        if cache_bytes != self.count.cache_bytes {
            self.cache = PageCache::new(cache_bytes);
            self.count.cache_bytes = cache_bytes;
            self.decides = self.round + 1 + ROUNDS_TO_TELL;
        }
    }

    /// Begins a round.
    pub fn begin_round(&mut self) {
        self.round += 1;
        let measured = self.last_round();
        self.spared = measured.unwrap_or(self.spared);
        let gains = measured.filter(|_| self.round >= self.decides).map(|spared| spared >= LEAST_GAIN);
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

    /// The share of bytes that XBZRLE saved in the last round, of the pages for which it was tried; `None` if there were too few.
    /// Updates the rates.
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

    /// The share of the bytes of page contents that XBZRLE is expected to save, from the last round.
    pub fn spared(&self) -> f64 {
        if self.tried == Tried::All { self.spared } else { 0.0 }
    }

    /// Whether the pages from `page` on go through [`delta`](Self::delta), and the end of the stretch to which this applies.
    pub fn stretch(&self, page: u64) -> (bool, u64) {
        match self.tried {
            Tried::Never => (false, u64::MAX),
            Tried::All => (true, u64::MAX),
            Tried::Sample => (is_sampled(page), (page / STRETCH + 1) * STRETCH),
        }
    }

    /// Decides in which form to send a page that is not zero; `compare` determines its changed bytes. In the `last_stage`, no
    /// page is sent again, and none is cached.
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

    /// Called when a page is sent as zero. Such a page seldom stays zero, so it is cached for comparison
    /// (`xbzrle_cache_zero_page`).
    pub fn zero(&mut self, page: u64) {
        self.cache.insert(page, self.round, &[0; PAGE]);
    }
}

fn is_sampled(page: u64) -> bool {
    (page / STRETCH).is_multiple_of(SAMPLED)
}
