//! The source's side of RAM: which pages are still to send, and their records.
//!
//! A page leaves the set of pending pages only when its record is written, and the log is told before its bytes are
//! read: a write after that is in the next report. So a page whose newest bytes are not on the wire is always
//! either pending or in the log.

use super::bitmap::Bitmap;
use super::history::{ByHistory, History, PageCount};
use super::record::flag;
use super::zero::is_zero;
use super::{DirtyLog, GuestRam, PAGE_SIZE, RamBlock};
use crate::codec::put_name;
use crate::error::{Error, ErrorKind, Result};

/// Pages read at once: the copy stays in the first cache levels until it is looked at and sent.
const RUN: usize = 16;
/// Bytes of a page, and of its record within a run.
const PAGE: usize = 4096;
const NORMAL: usize = 8 + PAGE;
/// Pages that the log is asked to clear at once, 16 MiB. A page cleared early and written again before its turn is sent
/// twice; a call per page would cost more.
const CLEAR: u64 = 4096;

/// All pages of a guest, on their way. Stops the log when dropped.
pub struct RamSender<'a> {
    ram: &'a dyn GuestRam,
    log: &'a mut dyn DirtyLog,
    pending: Vec<Bitmap>,
    histories: Vec<History>,
    pending_pages: ByHistory<u64>,
    /// Where the round is: a block, and the first of its pages not looked at.
    block: usize,
    page: u64,
    /// The log was told up to this page of the block.
    cleared: u64,
    sent: ByHistory<PageCount>,
    copy: Vec<u8>,
}

impl<'a> RamSender<'a> {
    /// Starts the log; all pages are pending.
    ///
    /// # Errors
    /// `Misuse` if a block has no name that fits the wire or is not made of whole pages; what the log refuses.
    pub fn start(ram: &'a dyn GuestRam, log: &'a mut dyn DirtyLog) -> Result<Self> {
        for block in ram.blocks() {
            check_block(block)?;
        }
        log.start()?;
        let pending: Vec<_> = ram.blocks().iter().map(|block| Bitmap::full(block.len / PAGE_SIZE)).collect();
        let histories = ram.blocks().iter().map(|block| History::new(block.len / PAGE_SIZE)).collect();
        let pending_pages = ByHistory { never: pending.iter().map(Bitmap::count).sum(), ..ByHistory::default() };
        let copy = vec![0; RUN * PAGE];
        let sent = ByHistory::default();
        Ok(Self { ram, log, pending, histories, pending_pages, block: 0, page: 0, cleared: 0, sent, copy })
    }

    /// Appends the body of the START section: total length, then name and length of each block.
    pub fn put_blocks(&self, out: &mut Vec<u8>) {
        let blocks = self.ram.blocks();
        let total: u64 = blocks.iter().map(|block| block.len).sum();
        out.extend_from_slice(&(total | flag::MEM_SIZE).to_be_bytes());
        for block in blocks {
            put_name(out, &block.name);
            out.extend_from_slice(&block.len.to_be_bytes());
        }
        super::put_end_of_section(out);
    }

    /// Takes in what the log has, and begins a round from the first page. Returns how many more pages are pending
    /// for it.
    ///
    /// # Errors
    /// What the log refuses.
    pub fn sync(&mut self) -> Result<u64> {
        let before = self.pending_pages();
        for (index, pending) in self.pending.iter_mut().enumerate() {
            pending.edit(|words| self.log.sync(index, words))?;
        }
        (self.block, self.page, self.cleared) = (0, 0, 0);
        self.pending_pages = ByHistory::default();
        for (pending, history) in self.pending.iter().zip(&self.histories) {
            history.count(pending, &mut self.pending_pages);
        }
        Ok(self.pending_pages() - before)
    }

    /// Pages still to send.
    pub fn pending_pages(&self) -> u64 {
        self.pending_pages.total()
    }

    /// Pages still to send, by how they were last sent.
    pub fn pending_by_history(&self) -> ByHistory<u64> {
        self.pending_pages
    }

    /// Pages written to the stream since the start.
    pub fn sent(&self) -> PageCount {
        self.sent.total()
    }

    /// Pages written to the stream since the start, by how they had been sent before.
    pub fn sent_by_history(&self) -> ByHistory<PageCount> {
        self.sent
    }

    /// Appends records until `out` has about `wanted` bytes or the round is over; true if it is over. At least one page
    /// goes, however few bytes are wanted. Records of one call belong into one section: its first names its block.
    ///
    /// # Errors
    /// What memory or log refuse.
    pub fn put_pages(&mut self, out: &mut Vec<u8>, wanted: usize) -> Result<bool> {
        let mut named = None;
        while let Some(pending) = self.pending.get(self.block) {
            let room = wanted.saturating_sub(out.len()).div_ceil(NORMAL);
            let Some(run) = pending.run(self.page, room.clamp(1, RUN) as u64) else {
                (self.block, self.page, self.cleared) = (self.block + 1, 0, 0);
                continue;
            };
            if named.is_some() && out.len() >= wanted {
                return Ok(false);
            }
            if run.end > self.cleared {
                let first = (run.start / CLEAR * CLEAR).max(self.cleared);
                let end = run.end.next_multiple_of(CLEAR).min(pending.pages());
                self.log.clear(self.block, first, end - first)?;
                self.cleared = end;
            }
            self.put_run(out, run.start, run.end, named == Some(self.block))?;
            named = Some(self.block);
            self.page = run.end;
            if let Some(pending) = self.pending.get_mut(self.block) {
                pending.remove(run);
            }
        }
        Ok(true)
    }

    fn put_run(&mut self, out: &mut Vec<u8>, first: u64, end: u64, mut named: bool) -> Result<()> {
        let pages = usize::try_from(end - first).unwrap_or(RUN).min(RUN);
        let copy = self.copy.get_mut(..pages * PAGE).unwrap_or_default();
        self.ram.read(self.block, first * PAGE_SIZE, copy)?;
        out.reserve(pages * NORMAL);
        for (page, bytes) in (first..end).zip(copy.chunks_exact(PAGE)) {
            let zero = is_zero(bytes);
            let kind = if zero { flag::ZERO } else { flag::PAGE };
            let relative = if named { flag::CONTINUE } else { 0 };
            if let Some(history) = self.histories.get_mut(self.block) {
                let last = history.note(page, zero);
                *self.pending_pages.of(last) -= 1;
                let sent = self.sent.of(last);
                *(if zero { &mut sent.zero } else { &mut sent.normal }) += 1;
            }
            out.extend_from_slice(&((page * PAGE_SIZE) | kind | relative).to_be_bytes());
            if let (false, Some(block)) = (named, self.ram.blocks().get(self.block)) {
                put_name(out, &block.name);
                named = true;
            }
            if zero {
                out.push(0);
            } else {
                out.extend_from_slice(bytes);
            }
        }
        Ok(())
    }
}

impl Drop for RamSender<'_> {
    fn drop(&mut self) {
        self.log.stop();
    }
}

impl std::fmt::Debug for RamSender<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RamSender").field("pending", &self.pending_pages()).field("sent", &self.sent()).finish()
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
