//! What post-copy asks of who sends the pages: which ones lack, to go on at one that somebody waits for, and to go on over another connection.

use std::ops::Range;

use super::RamSender;
use crate::ram::page_set::PageSet;

impl RamSender<'_> {
    /// In post-copy: the round goes on at this page of a block, if it is pending; false if not.
    pub fn go_to(&mut self, block: usize, page: u64) -> bool {
        let is_pending = self.pending.get(block).is_some_and(|pending| pending.contains(page));
        if is_pending {
            // What was found untouched is of other pages.
            (self.block, self.page, self.cleared) = (block, page, 0);
        }
        is_pending
    }

    /// In post-copy: the round goes on at the first page of all.
    pub fn go_to_first(&mut self) {
        (self.block, self.page, self.cleared) = (0, 0, 0);
    }

    /// Over another connection: these pages of each block are pending, and no others, whatever was sent over the one before.
    pub fn resume(&mut self, lacking: Vec<PageSet>) {
        self.pending = lacking;
        self.pending_pages = self.pending.iter().map(PageSet::count).sum();
        self.go_to_first();
    }

    /// The pending pages of each block, by runs.
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
