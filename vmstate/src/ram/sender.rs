//! The source's side of RAM: the pages that are still to be sent, and their records.
//!
//! A page leaves the set of pending pages only when its record is written, and its dirty log is cleared before the page is
//! checked for zeros and read for sending: a later write is in the next report of the log. So a page whose newest bytes are not
//! on the wire is always either pending or in the log.

mod asked;

use std::ops::Range;

use super::heat::HeatMap;
use super::mapped::write::PlacedPages;
use super::multifd::Senders;
use super::multifd::batch::{Batch, put_pages};
use super::page_set::PageSet;
use super::record::{NORMAL_RECORD, ZERO_RECORD, flag, put_end_of_section, put_flush, put_runs, put_total};
use super::xbzrle::{Delta, Page, XbzrleCount, XbzrleSource};
use super::zero::is_zero;
use super::{CLEAR_PAGES, DirtyLog, GuestRam, PAGE, PAGE_SIZE, RamBlock, announces_shared};
use crate::codec::{Outbox, PageRun, put_name};
use crate::error::{Error, ErrorKind, Result};

/// Pages that are processed at once: one bit each in a word, and few enough to stay in the second-level cache until they are
/// sent.
const RUN: u64 = 64;
/// Bytes charged for a page that was read and found to be zero, so that a call ends in bounded time: meanwhile the channel is
/// idle, and the destination has nothing to read.
const LOOKED_AT: u64 = PAGE_SIZE / 32;
/// Number of words with one bit for each of [`CLEAR_PAGES`] pages.
const WINDOW: usize = 64;
const _: () = assert!(WINDOW as u64 * RUN == CLEAR_PAGES);

/// Numbers of pages, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCount {
    /// Pages sent with contents: whole, or as differences (XBZRLE).
    pub normal: u64,
    /// Pages sent as zero.
    pub zero: u64,
}

impl PageCount {
    /// The number of pages of both kinds.
    pub fn total(self) -> u64 {
        self.normal + self.zero
    }

    /// The sum of two counts.
    #[must_use]
    pub fn and(self, Self { normal, zero }: Self) -> Self {
        Self { normal: self.normal.saturating_add(normal), zero: self.zero.saturating_add(zero) }
    }

    /// The difference to an `earlier` count.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let Self { normal, zero } = earlier;
        Self { normal: self.normal.saturating_sub(normal), zero: self.zero.saturating_sub(zero) }
    }
}

/// The pages of a guest that are being sent. Stops the log when dropped.
pub struct RamSender<'a> {
    ram: &'a dyn GuestRam,
    log: &'a mut dyn DirtyLog,
    pending: Vec<PageSet>,
    pending_pages: u64,
    /// The position of the round: a block, and its first page that was not processed.
    block: usize,
    page: u64,
    /// The log of the block is cleared up to this page.
    cleared: u64,
    /// Which of the [`CLEAR_PAGES`] pages around the position were never touched. Not determined once all pages were processed.
    untouched: [u64; WINDOW],
    all_seen: bool,
    sent: PageCount,
    heat: HeatMap,
    /// The page channels, if they send the pages instead of the main channel.
    senders: Option<Senders>,
    /// True if page channels were given pages since the last flush.
    is_flush_due: bool,
    /// True if page channels were given pages before the round without a flush: the round may send the same pages again.
    copies_may_cross: bool,
    xbzrle: Option<XbzrleSource>,
    /// Copy of a page for which XBZRLE is tried.
    page_copy: Box<Page>,
    /// True if the guest is paused: no page is sent again.
    is_last_stage: bool,
}

impl<'a> RamSender<'a> {
    /// Starts the log; all pages are pending, except those of memory that both sides share.
    ///
    /// # Errors
    /// `Misuse` if a block's name does not fit the wire or the block does not consist of whole pages; errors of the log.
    pub fn start(ram: &'a dyn GuestRam, log: &'a mut dyn DirtyLog) -> Result<Self> {
        for block in ram.blocks() {
            check_block(block)?;
        }
        log.start()?;
        let pending = ram.blocks().iter().enumerate().map(|(index, block)| match ram.shared_at(index) {
            Some(_) => PageSet::empty(block.len / PAGE_SIZE),
            None => PageSet::full(block.len / PAGE_SIZE),
        });
        let pending: Vec<_> = pending.collect();
        let pending_pages = pending.iter().map(PageSet::count).sum();
        let sent = PageCount::default();
        let page_copy = Box::new([0; PAGE]);
        Ok(Self {
            ram,
            log,
            pending,
            pending_pages,
            block: 0,
            page: 0,
            cleared: 0,
            untouched: [0; WINDOW],
            all_seen: false,
            sent,
            heat: HeatMap::new(ram.blocks()),
            senders: None,
            is_flush_due: false,
            copies_may_cross: false,
            xbzrle: None,
            page_copy,
            is_last_stage: false,
        })
    }

    /// Sends the pages over page channels.
    #[must_use]
    pub fn with(mut self, senders: Option<Senders>) -> Self {
        self.senders = senders;
        self
    }

    /// Appends the body of the START section: total length, then name and length of each block, and its address if the stream
    /// says that memory is shared.
    pub fn put_blocks(&self, out: &mut Outbox) {
        let blocks = self.ram.blocks();
        put_total(out.bytes_mut(), blocks);
        let has_addresses = announces_shared(self.ram);
        for (index, block) in blocks.iter().enumerate() {
            put_name(out.bytes_mut(), &block.name);
            out.put(&block.len.to_be_bytes());
            if has_addresses {
                out.put(&self.ram.shared_at(index).unwrap_or_default().to_be_bytes());
            }
        }
        if let Some(senders) = &self.senders {
            senders.begin_flush();
            put_flush(out);
        }
        put_end_of_section(out);
    }

    /// Appends a flush if page channels were given pages since the last one: these pages arrive before all that the channels are
    /// given later.
    pub fn put_flush(&mut self, out: &mut Outbox) {
        if let Some(senders) = self.senders.as_ref().filter(|_| self.is_flush_due) {
            senders.begin_flush();
            put_flush(out);
        }
        (self.is_flush_due, self.copies_may_cross) = (false, false);
    }

    /// Reads the log, and begins a round from the first page. Returns how many more pages have become pending.
    ///
    /// # Errors
    /// Errors of the log.
    pub fn sync(&mut self) -> Result<u64> {
        let before = self.pending_pages;
        for (index, pending) in self.pending.iter_mut().enumerate() {
            if self.ram.shared_at(index).is_none() {
                pending.edit(|words| self.log.sync(index, words))?;
            }
        }
        if let Some(xbzrle) = &mut self.xbzrle {
            xbzrle.begin_round();
        }
        (self.block, self.page, self.cleared) = (0, 0, 0);
        self.copies_may_cross = self.is_flush_due;
        self.pending_pages = self.pending.iter().map(PageSet::count).sum();
        Ok(self.pending_pages - before)
    }

    /// Uses XBZRLE with a cache of this many bytes, or not at all, from the next round on. XBZRLE's first round is the one after
    /// that.
    pub fn use_xbzrle(&mut self, cache_bytes: Option<u64>) {
        match (&mut self.xbzrle, cache_bytes) {
            (Some(xbzrle), Some(bytes)) => xbzrle.resize(bytes),
            (xbzrle, _) => *xbzrle = cache_bytes.map(XbzrleSource::new),
        }
    }

    /// The work of XBZRLE, if it is in use.
    pub fn xbzrle(&self) -> Option<XbzrleCount> {
        self.xbzrle.as_ref().map(XbzrleSource::count)
    }

    /// Size of the record of a page with contents, on average of XBZRLE's last round.
    pub(crate) fn expected_record(&self) -> f64 {
        let spared = self.xbzrle.as_ref().map_or(0.0, XbzrleSource::spared);
        NORMAL_RECORD as f64 - spared * PAGE_SIZE as f64
    }

    /// Begins the last stage: the guest is paused, and no page will be sent again.
    pub fn begin_last_stage(&mut self) {
        self.is_last_stage = true;
    }

    /// Pages that are still to be sent, including those that page channels were given and have not sent.
    pub fn unsent_pages(&self) -> u64 {
        self.pending_pages + self.senders.as_ref().map_or(0, Senders::unsent)
    }

    /// Pages that are not yet sent nor given to a page channel.
    pub fn pending_pages(&self) -> u64 {
        self.pending_pages
    }

    /// Samples about `wanted` of the pending pages, evenly spread, and counts how they would be sent now. The guest may write
    /// them again before they are sent.
    ///
    /// # Errors
    /// Errors of guest memory.
    pub fn look(&mut self, wanted: u64) -> Result<PageCount> {
        let stride = self.pending_pages.div_ceil(wanted.max(1)).max(1);
        let mut looked_at = PageCount::default();
        let mut skipped = stride / 2;
        for (block, pending) in self.pending.iter().enumerate() {
            skipped = pending.every(skipped, stride, |page| {
                let mut untouched = [0];
                self.ram.untouched(block, page * PAGE_SIZE, &mut untouched)?;
                let zero = untouched[0] & 1 == 1 || self.ram.zero_pages(block, page * PAGE_SIZE, 1)? == 1;
                *(if zero { &mut looked_at.zero } else { &mut looked_at.normal }) += 1;
                Ok::<_, Error>(())
            })?;
        }
        Ok(looked_at)
    }

    /// Pages sent in the stream itself since the start.
    pub fn sent_in_stream(&self) -> PageCount {
        self.sent
    }

    /// Pages sent since the start.
    pub fn sent(&self) -> PageCount {
        self.senders.as_ref().map_or(self.sent, |senders| self.sent.and(senders.sent()))
    }

    /// Pages taken for sending since the start, by their place in memory.
    pub fn heat(&self) -> &HeatMap {
        &self.heat
    }

    /// Appends records until `out` has about `wanted` bytes or the round is complete; true if it is complete. At least one page
    /// is sent, however small `wanted` is. The records of one call belong to one section: its first record names its block. If
    /// there are page channels, they are given about `wanted` bytes of pages instead.
    ///
    /// # Errors
    /// Errors of guest memory and of the log.
    pub fn put_pages(&mut self, out: &mut Outbox, wanted: u64) -> Result<bool> {
        if let Some(senders) = self.senders.clone() {
            let pages = wanted.saturating_sub(out.len()).div_ceil(NORMAL_RECORD).max(1);
            if self.copies_may_cross {
                self.put_flush(out);
            }
            return self.hand_over(&senders, pages);
        }
        let mut named = None;
        // Charges for work that adds few bytes or none.
        let mut unsent = 0;
        loop {
            let room = wanted.saturating_sub(out.len()).div_ceil(NORMAL_RECORD);
            let Some(run) = self.next_run(room.clamp(1, RUN)) else { return Ok(true) };
            if (named.is_some() || unsent > 0) && out.len() + unsent >= wanted {
                return Ok(false);
            }
            let number = self.number(0);
            let (is_tried, until) =
                self.xbzrle.as_ref().map_or((false, u64::MAX), |xbzrle| xbzrle.stretch(number + run.start));
            let run = run.start..run.end.min(until.saturating_sub(number));
            self.take(&run)?;
            if is_tried {
                unsent += self.put_deltas(out, run, &mut named)? * ZERO_RECORD;
            } else {
                unsent += self.put_run(out, run.start, run.end, &mut named)? * LOOKED_AT;
            }
        }
    }

    /// Writes this many pages to their places in `file`, unless the round ends before; true if all of the round are written.
    ///
    /// # Errors
    /// Errors of guest memory, of the log and of the file.
    pub(crate) fn put_in_place(&mut self, file: &mut PlacedPages, mut pages: u64) -> Result<bool> {
        while pages > 0 {
            // The threads of the file write while the next pages are taken.
            let portion = pages.min(CLEAR_PAGES);
            let (batches, over) = self.take_batches(portion)?;
            self.sent = self.sent.and(file.put(self.ram, batches)?);
            if over {
                self.sent = self.sent.and(file.await_written()?);
                return Ok(true);
            }
            pages -= portion;
        }
        Ok(false)
    }

    /// Gives this many pages to page channels, unless the round ends before; true if the round is complete.
    fn hand_over(&mut self, senders: &Senders, pages: u64) -> Result<bool> {
        let (batches, over) = self.take_batches(pages)?;
        self.is_flush_due |= !batches.is_empty();
        senders.push(batches);
        Ok(over)
    }

    /// Takes this many pages, unless the round ends before; true if the round is complete.
    fn take_batches(&mut self, mut pages: u64) -> Result<(Vec<Batch>, bool)> {
        let mut batches = Vec::new();
        let over = loop {
            let Some(run) = self.next_run(pages.clamp(1, RUN)) else { break true };
            if pages == 0 {
                break false;
            }
            self.take(&run)?;
            pages -= run.end - run.start;
            let untouched = self.untouched(run.start);
            let mut first = run.start;
            while first < run.end {
                let left = untouched >> (first - run.start);
                let is_untouched = left & 1 == 1;
                let same = if is_untouched { left.trailing_ones() } else { left.trailing_zeros() };
                let end = run.end.min(first + u64::from(same));
                put_pages(&mut batches, self.block, first..end, is_untouched);
                first = end;
            }
        };
        Ok((batches, over))
    }

    /// The next adjacent pages of the round, all of one word and at most this many. `None` if the round is complete.
    fn next_run(&mut self, longest: u64) -> Option<Range<u64>> {
        while let Some(pending) = self.pending.get(self.block) {
            if let Some(run) = pending.run(self.page, longest) {
                return Some(run.start..run.end.min((run.start / RUN + 1) * RUN));
            }
            (self.block, self.page, self.cleared) = (self.block + 1, 0, 0);
        }
        // In post-copy, the end is reached before the pages in front of a requested one were processed.
        self.all_seen |= !self.is_last_stage;
        None
    }

    /// Marks pages as no longer pending. The log is cleared before any of them is read.
    fn take(&mut self, run: &Range<u64>) -> Result<()> {
        let number = self.number(run.start);
        let Some(pending) = self.pending.get_mut(self.block) else { return Ok(()) };
        if run.end > self.cleared {
            let window = run.start / CLEAR_PAGES * CLEAR_PAGES;
            let end = (window + CLEAR_PAGES).min(pending.pages());
            // The paused guest writes nothing that the log would have to record.
            if !self.is_last_stage {
                self.log.clear(self.block, window, end - window)?;
            }
            self.cleared = end;
            self.untouched = [0; WINDOW];
            // After the log was cleared: pages that are touched from now on are in the log.
            if !self.all_seen {
                let words = usize::try_from((end - window).div_ceil(RUN)).unwrap_or(WINDOW);
                let untouched = self.untouched.get_mut(..words).unwrap_or_default();
                self.ram.untouched(self.block, window * PAGE_SIZE, untouched)?;
            }
        }
        pending.remove(run.clone());
        self.heat.add(number, run.end - run.start);
        self.page = run.end;
        self.pending_pages -= run.end - run.start;
        Ok(())
    }

    /// Which pages of a run, all of one word, were never touched; bit 0 is the first.
    fn untouched(&self, first: u64) -> u64 {
        let word = usize::try_from(first % CLEAR_PAGES / RUN).ok().and_then(|word| self.untouched.get(word));
        word.copied().unwrap_or_default() >> (first % RUN)
    }

    /// Appends the pages of a run, all of one word. Only touched pages are read; returns how many of these are zero.
    fn put_run(&mut self, out: &mut Outbox, first: u64, end: u64, named: &mut Option<usize>) -> Result<u64> {
        let (zeros, looked_at) = self.zeros(&(first..end))?;
        for (bit, page) in (first..end).enumerate() {
            let offset = page * PAGE_SIZE;
            if zeros >> bit & 1 == 0 {
                put_head(out, offset | flag::PAGE, self.ram.blocks(), self.block, named);
                out.put_pages(PageRun { block: self.block, offset, len: PAGE_SIZE });
            } else if *named == Some(self.block) {
                let [a, b, c, d, e, f, g, h] = (offset | flag::ZERO | flag::CONTINUE).to_be_bytes();
                out.put(&[a, b, c, d, e, f, g, h, 0]);
            } else {
                put_head(out, offset | flag::ZERO, self.ram.blocks(), self.block, named);
                out.put(&[0]);
            }
        }
        let zero = u64::from(zeros.count_ones());
        self.sent = self.sent.and(PageCount { normal: end - first - zero, zero });
        Ok(looked_at.count_ones().into())
    }

    /// Which pages of a run, all of one word, are zero, and which of these were read; bit 0 is the first.
    fn zeros(&self, run: &Range<u64>) -> Result<(u64, u64)> {
        let ones = |count: u64| u64::MAX >> (u64::from(u64::BITS) - count.clamp(1, RUN));
        let (untouched, all) = (self.untouched(run.start), ones(run.end - run.start));
        let (mut looked_at, mut left) = (0, !untouched & all);
        while left != 0 {
            let start = left.trailing_zeros();
            let count = (left >> start).trailing_ones();
            let offset = (run.start + u64::from(start)) * PAGE_SIZE;
            looked_at |= self.ram.zero_pages(self.block, offset, count)? << start;
            left &= !(ones(count.into()) << start);
        }
        Ok(((looked_at | untouched) & all, looked_at))
    }

    /// As for [`put_run`](Self::put_run), for pages for which XBZRLE is tried: each is copied once, and that copy is checked,
    /// compared, cached and sent. Returns how many pages are unchanged since they were sent, for which nothing is appended.
    fn put_deltas(&mut self, out: &mut Outbox, run: Range<u64>, named: &mut Option<usize>) -> Result<u64> {
        let (number, blocks) = (self.number(0), self.ram.blocks());
        let Some(xbzrle) = &mut self.xbzrle else { return Ok(0) };
        let mut unchanged = 0;
        for page in run {
            let offset = page * PAGE_SIZE;
            self.ram.read(self.block, offset, self.page_copy.as_mut())?;
            if is_zero(self.page_copy.as_ref()) {
                xbzrle.zero(number + page);
                put_head(out, offset | flag::ZERO, blocks, self.block, named);
                out.put(&[0]);
                self.sent.zero += 1;
                continue;
            }
            let compare = |old: &_, new: &_| self.ram.changed_bytes(old, new);
            let delta = xbzrle.delta(number + page, &self.page_copy, self.is_last_stage, compare);
            let kind = match delta {
                Delta::Nothing => {
                    unchanged += 1;
                    continue;
                }
                Delta::Runs(_) => flag::XBZRLE,
                Delta::Kept | Delta::Whole => flag::PAGE,
            };
            put_head(out, offset | kind, blocks, self.block, named);
            match delta {
                Delta::Runs(runs) => put_runs(out, runs),
                Delta::Whole => out.put_pages(PageRun { block: self.block, offset, len: PAGE_SIZE }),
                Delta::Nothing | Delta::Kept => out.put(self.page_copy.as_ref()),
            }
            self.sent.normal += 1;
        }
        Ok(unchanged)
    }

    /// The number among all pages of a page of the round's current block.
    fn number(&self, page: u64) -> u64 {
        self.pending.iter().take(self.block).map(PageSet::pages).sum::<u64>() + page
    }
}

/// Appends the first word of a page's record, and the name of its block unless that block was `named` last.
fn put_head(out: &mut Outbox, word: u64, blocks: &[RamBlock], block: usize, named: &mut Option<usize>) {
    let is_named = named.replace(block) == Some(block);
    out.put(&(word | if is_named { flag::CONTINUE } else { 0 }).to_be_bytes());
    if let (false, Some(block)) = (is_named, blocks.get(block)) {
        put_name(out.bytes_mut(), &block.name);
    }
}

impl Drop for RamSender<'_> {
    fn drop(&mut self) {
        self.log.stop();
    }
}

impl std::fmt::Debug for RamSender<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RamSender").field("pending", &self.pending_pages()).field("sent", &self.sent).finish()
    }
}

fn check_block(block: &RamBlock) -> Result<()> {
    let misuse = |message: &str| Err(Error::new(ErrorKind::Misuse, format!("RAM block {:?} {message}", block.name)));
    if block.name.is_empty() || block.name.len() > usize::from(u8::MAX) {
        return misuse("needs a name of 1 to 255 bytes");
    }
    if !block.len.is_multiple_of(PAGE_SIZE) {
        return misuse("is not made of whole pages");
    }
    Ok(())
}
