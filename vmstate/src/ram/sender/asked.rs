//! What post-copy needs of the sender: the list of missing pages, a jump to a requested page, and a restart over another
//! connection.

use std::ops::Range;

use super::RamSender;
use crate::ram::CLEAR_PAGES;
use crate::ram::page_set::PageSet;

impl RamSender<'_> {
    /// In post-copy: continues the round at this page of a block, if it is pending; false if not.
    pub fn go_to(&mut self, block: usize, page: u64) -> bool {
        let is_pending = self.pending.get(block).is_some_and(|pending| pending.contains(page));
        if is_pending {
            let first = self.cleared.saturating_sub(1) / CLEAR_PAGES * CLEAR_PAGES;
            if block != self.block || !(first..self.cleared).contains(&page) {
                // The untouched pages that were found belong to another range.
                self.cleared = 0;
            }
            (self.block, self.page) = (block, page);
        }
        is_pending
    }

    /// In post-copy: continues the round at the first page of all.
    pub fn go_to_first(&mut self) {
        (self.block, self.page, self.cleared) = (0, 0, 0);
    }

    /// In post-copy, over another connection: makes exactly these pages of each block pending, whatever was sent before.
    pub fn resume(&mut self, lacking: Vec<PageSet>) {
        self.pending = lacking;
        self.pending_pages = self.pending.iter().map(PageSet::count).sum();
        self.go_to_first();
    }

    /// Calls `take` with the pending pages of each block, as runs.
    pub fn pending_runs(&self, mut take: impl FnMut(usize, Range<u64>)) {
        for (block, pending) in self.pending.iter().enumerate() {
            let mut from = 0;
            while let Some(run) = pending.run(from, u64::MAX) {
                from = run.end;
                take(block, run);
            }
        }
    }
}
