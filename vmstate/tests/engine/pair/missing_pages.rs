//! The guest's memory at a destination in post-copy, in place of userfaultfd: an access to a missing page waits.

use std::time::Duration;

use vmstate::error::Result;
use vmstate::ram::{PAGE_SIZE, PostcopyMemory};

use super::guest::{Guest, Memory};

/// The byte that fills a dropped page.
const DROPPED: u8 = 0xdd;

#[derive(Debug)]
pub(super) struct MissingPages {
    /// Pages that have arrived; one bool for each page.
    present: Vec<Vec<bool>>,
    listens: bool,
    whole: bool,
    /// The page of the first block that the guest waits for, and since when.
    waits: Option<(u64, Duration)>,
    /// True if that wait was not reported yet.
    unreported: bool,
    waited: Vec<Duration>,
    /// The guest's writes since post-copy began.
    journal: Vec<(usize, u64, u8)>,
}

impl MissingPages {
    pub(super) fn new(present: Vec<Vec<bool>>) -> Self {
        let (waited, journal) = (Vec::new(), Vec::new());
        Self { present, listens: false, whole: false, waits: None, unreported: false, waited, journal }
    }

    pub(super) fn arrived(&mut self, block: usize, offset: u64) {
        assert!(!self.listens, "a page is written in which the guest may run");
        self.present[block][(offset / PAGE_SIZE) as usize] = true;
    }

    pub(super) fn wrote(&mut self, block: usize, offset: u64, byte: u8) {
        if self.listens {
            self.journal.push((block, offset, byte));
        }
    }

    pub(super) fn waits(&self) -> bool {
        self.waits.is_some()
    }

    /// The guest accesses this page of its first block at this moment; true if it has to wait for the page.
    pub(super) fn lacks(&mut self, page: u64, now: Duration) -> bool {
        let lacks = self.listens && !self.present[0][page as usize];
        if lacks {
            (self.waits, self.unreported) = (Some((page, now)), true);
        }
        lacks
    }
}

impl Guest {
    /// How long each wait for a page took.
    pub fn waited(&self) -> Vec<Duration> {
        self.memory.lock().unwrap().missing_pages.waited.clone()
    }

    /// A thread of the machine accesses this page of the first block; true if it has to wait for the page.
    pub fn touches(&self, page: u64) -> bool {
        let now = self.world.now();
        self.memory.lock().unwrap().missing_pages.lacks(page, now)
    }

    /// True while the guest waits for a page.
    pub fn waits(&self) -> bool {
        self.memory.lock().unwrap().missing_pages.waits()
    }

    /// True once the engine has reported that all pages are present.
    pub fn is_whole(&self) -> bool {
        self.memory.lock().unwrap().missing_pages.whole
    }

    /// The expected memory if the guest continued from `memory`: with all writes since then.
    pub fn written_over(&self, mut memory: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        for &(block, offset, byte) in &self.memory.lock().unwrap().missing_pages.journal {
            memory[block][offset as usize] = byte;
        }
        memory
    }
}

impl PostcopyMemory for Guest {
    fn discard(&self, block: usize, offset: u64, len: u64) -> Result<()> {
        let mut memory = self.memory.lock().unwrap();
        assert!(!memory.missing_pages.listens);
        memory.bytes[block][offset as usize..][..len as usize].fill(DROPPED);
        let pages = offset / PAGE_SIZE..(offset + len) / PAGE_SIZE;
        pages.for_each(|page| memory.missing_pages.present[block][page as usize] = false);
        Ok(())
    }

    fn listen(&self) -> Result<()> {
        let mut memory = self.memory.lock().unwrap();
        assert!(!std::mem::replace(&mut memory.missing_pages.listens, true), "twice");
        Ok(())
    }

    fn waited_for(&self, pages: &mut Vec<(usize, u64)>) -> Result<()> {
        let mut memory = self.caught_up();
        if std::mem::take(&mut memory.missing_pages.unreported) {
            pages.extend(memory.missing_pages.waits.map(|(page, _)| (0, page * PAGE_SIZE)));
        }
        Ok(())
    }

    fn put(&self, block: usize, offset: u64, page: Option<&[u8; 4096]>) -> Result<()> {
        let now = self.world.now();
        let mut memory = self.caught_up();
        let number = offset / PAGE_SIZE;
        if std::mem::replace(&mut memory.missing_pages.present[block][number as usize], true) {
            return Ok(());
        }
        memory.bytes[block][offset as usize..][..4096].copy_from_slice(page.unwrap_or(&[0; 4096]));
        if let Some((_, since)) = memory.missing_pages.waits.take_if(|(page, _)| block == 0 && *page == number) {
            memory.missing_pages.waited.push(now - since);
        }
        Ok(())
    }

    /// From now on a missing page reads as zero, and a wait for one is over.
    fn end_waits(&self) -> Result<()> {
        let now = self.world.now();
        let mut memory = self.memory.lock().unwrap();
        let Memory { bytes, missing_pages, .. } = &mut *memory;
        for (bytes, present) in bytes.iter_mut().zip(&mut missing_pages.present) {
            for (page, present) in bytes.chunks_mut(PAGE_SIZE as usize).zip(present) {
                if missing_pages.listens && !std::mem::replace(present, true) {
                    page.fill(0);
                }
            }
        }
        if let Some((_, since)) = missing_pages.waits.take() {
            missing_pages.waited.push(now - since);
        }
        missing_pages.whole = missing_pages.listens;
        Ok(())
    }
}
