//! Figures and settings about guest memory that the RAM section shares with the source, the destination and reports.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::PAGE_SIZE;
use super::heat::HeatMap;
use super::multifd::PageChannels;
use super::page_set::PageSet;
use super::sender::PageCount;
use super::xbzrle::XbzrleCount;
use crate::sync::lock;

/// The figures of a migration's pages so far, for reports.
#[derive(Debug, Default)]
pub(crate) struct PageFigures {
    pub(super) normal: AtomicU64,
    pub(super) zero: AtomicU64,
    pub(super) pending: AtomicU64,
    pub(super) dirtied: AtomicU64,
    pub(super) page_channels: PageChannels,
    pub(super) xbzrle: Mutex<Option<XbzrleCount>>,
    pub(super) heat: Mutex<HeatMap>,
    pub(super) flushes: AtomicBool,
    pub(super) settings: Mutex<RamSettings>,
    /// In post-copy: pages that the destination's guest waits for, by block.
    pub(super) asked: Mutex<Vec<(usize, Range<u64>)>>,
    /// In post-copy, over another connection: the pages that the destination lacks, by block.
    pub(super) resumed: Mutex<Option<Vec<PageSet>>>,
    /// In post-copy: the pages that were pending at the last [`sync`](IterativeSection::sync), by block.
    pub(super) lacking: Mutex<Vec<(usize, Range<u64>)>>,
}

/// Settings for a source's guest memory, effective from the next [`sync`](IterativeSection::sync) on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RamSettings {
    /// XBZRLE, with a cache of this many bytes.
    pub(crate) xbzrle_cache: Option<u64>,
    /// The guest is paused: no page will be sent again.
    pub(crate) is_last_stage: bool,
    /// The guest has switched to post-copy: from now on each page is sent once, and requested pages are sent first.
    pub(crate) is_postcopy: bool,
}

impl PageFigures {
    /// Pages that were sent or received.
    pub(crate) fn moved(&self) -> PageCount {
        let in_stream =
            PageCount { normal: self.normal.load(Ordering::Relaxed), zero: self.zero.load(Ordering::Relaxed) };
        in_stream.and(self.page_channels.pages())
    }

    /// Bytes of the pages still to send, in guest memory.
    pub(crate) fn pending_bytes(&self) -> u64 {
        (self.pending.load(Ordering::Relaxed) + self.page_channels.unsent()).saturating_mul(PAGE_SIZE)
    }

    /// Pages that became pending after the first round had begun.
    pub(crate) fn dirtied(&self) -> u64 {
        self.dirtied.load(Ordering::Relaxed)
    }

    /// The work of XBZRLE, if it is in use.
    pub(crate) fn xbzrle(&self) -> Option<XbzrleCount> {
        *lock(&self.xbzrle)
    }

    /// Pages taken for sending up to the end of the last round, by their place in memory.
    pub(crate) fn heat(&self) -> HeatMap {
        lock(&self.heat).clone()
    }

    /// Changes the source's settings.
    pub(crate) fn set_settings(&self, settings: RamSettings) {
        *lock(&self.settings) = settings;
    }

    /// Records that the destination's guest waits for these pages of a block.
    pub(crate) fn ask(&self, block: usize, pages: Range<u64>) {
        lock(&self.asked).push((block, pages));
    }

    /// In post-copy, over another connection: makes exactly these pages of each block pending. Earlier requests are dropped.
    pub(crate) fn resume(&self, lacking: Vec<PageSet>) {
        lock(&self.asked).clear();
        *lock(&self.resumed) = Some(lacking);
    }

    /// The pages that the destination lacked at the last sync, by block.
    pub(crate) fn lacking(&self) -> Vec<(usize, Range<u64>)> {
        std::mem::take(&mut *lock(&self.lacking))
    }

    /// Sets the numbers of pages that were sent in the stream, and that are pending.
    pub(crate) fn set(&self, sent: PageCount, pending: u64) {
        self.set_moved(sent);
        self.pending.store(pending, Ordering::Relaxed);
    }

    /// Counts this many more pages that have become pending.
    pub(crate) fn add_dirtied(&self, pages: u64) {
        self.dirtied.fetch_add(pages, Ordering::Relaxed);
    }

    /// Makes the next part end with a flush of the page channels, as the last part of a round does anyway.
    pub(crate) fn want_flush(&self) {
        self.flushes.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_moved(&self, PageCount { normal, zero }: PageCount) {
        self.normal.store(normal, Ordering::Relaxed);
        self.zero.store(zero, Ordering::Relaxed);
    }
}
