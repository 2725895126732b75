//! Guest memory of a destination whose guest runs before all of its pages have arrived (post-copy): tracks which pages are
//! missing, and which of them were requested. The reader of the stream uses it like any guest memory.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::waits::{PageWaits, WaitCounts};
use crate::codec::{Outbox, PageRun};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::page_set::PageSet;
use crate::ram::{GuestRam, PAGE, PAGE_SIZE, PostcopyMemory, RamBlock};
use crate::stream::{Discard, PageRequest, PageSizes};
use crate::sync::lock;

/// Size of a request in bytes: one page.
const PAGE_LEN: u32 = 4096;

/// The embedder's memory. Without post-copy, every call is passed on unchanged.
pub(crate) struct PostcopyRam<'a> {
    ram: &'a dyn GuestRam,
    /// The time of the last call of `set_time`, in nanoseconds of the engine's clock.
    now: AtomicU64,
    lacking: Mutex<Option<Lacking>>,
    /// Blocks that memory has adopted from a QEMU source, after its own. They may be part of the guest's memory.
    adopted: Mutex<Vec<RamBlock>>,
}

/// The missing pages, from the announcement of post-copy on.
struct Lacking {
    /// Pages whose newest contents have not arrived, by block.
    pages: Vec<PageSet>,
    /// The missing pages that were not requested.
    unasked: Vec<PageSet>,
    /// Zero pages that have arrived and are not stored, because `PostcopyMemory::end_waits` lets them read as zero.
    zeros: Vec<PageSet>,
    listens: bool,
    /// The block of the last request.
    named: Option<usize>,
    /// When each page that was requested and has not arrived was requested.
    since: HashMap<(usize, u64), Duration>,
    waits: WaitCounts,
}

impl<'a> PostcopyRam<'a> {
    pub(crate) fn new(ram: &'a dyn GuestRam) -> Self {
        Self { ram, now: AtomicU64::new(0), lacking: Mutex::new(None), adopted: Mutex::default() }
    }

    /// Called when the source announces that it may switch to post-copy.
    ///
    /// # Errors
    /// `Incompatible` if this side cannot do that.
    pub(crate) fn advise(&self, sizes: Option<PageSizes>) -> Result<()> {
        let refused = |what: &str| {
            let message = format!("post-copy: {what}: turn capability postcopy-ram off at the source");
            Err(Error::new(ErrorKind::Incompatible, message))
        };
        let Some(memory) = self.ram.postcopy() else {
            return refused("a guest cannot run in this side's memory before all of it is there");
        };
        if (0..self.ram.blocks().len()).any(|block| self.ram.shared_at(block).is_some()) {
            return refused("both sides share memory");
        }
        // Without page sizes, post-copy is for the dirty bitmaps of disks only.
        if sizes.is_some_and(|sizes| sizes != PageSizes { summary: PAGE_SIZE, target: PAGE_SIZE }) {
            return refused("the source's memory is not made of pages of 4096 bytes");
        }
        if let Err(error) = memory.prepare() {
            return refused(&error.to_string());
        }
        // Lock order: the missing pages, then the adopted blocks.
        let mut lacking = self.lacking();
        let adopted = self.adopted();
        let blocks = self.ram.blocks().iter().chain(&*adopted);
        let all: Vec<_> = blocks.map(|block| PageSet::full(block.len / PAGE_SIZE)).collect();
        *lacking = Some(Lacking {
            zeros: all.iter().map(PageSet::complement).collect(),
            pages: all.clone(),
            unasked: all,
            listens: false,
            named: None,
            since: HashMap::new(),
            waits: WaitCounts::new(),
        });
        Ok(())
    }

    /// Drops the pages that the guest has written since the source sent them, which the source lists in discard commands.
    ///
    /// # Errors
    /// `Malformed` for ranges that are not pages of this memory, or at a time when none are allowed.
    pub(crate) fn discard(&self, Discard { block: name, stretches }: &Discard) -> Result<()> {
        let malformed = |message: String| Error::new(ErrorKind::Malformed, message);
        let mut lacking = self.lacking();
        let Some(lacking) = lacking.as_mut().filter(|lacking| !lacking.listens) else {
            return Err(malformed(
                "a discard is allowed only between the announcement of post-copy and its beginning".to_owned(),
            ));
        };
        let adopted = self.adopted();
        let mut blocks = self.ram.blocks().iter().chain(&*adopted).enumerate();
        let found = blocks.find(|(_, block)| block.name == *name);
        let Some((index, len)) = found.map(|(index, block)| (index, block.len)) else {
            return Err(malformed(format!("discard of RAM block {name}, which does not exist here")));
        };
        for stretch in stretches {
            let end = stretch.start.checked_add(stretch.len).filter(|end| *end <= len);
            let aligned = stretch.start.is_multiple_of(PAGE_SIZE) && stretch.len.is_multiple_of(PAGE_SIZE);
            let Some(end) = end.filter(|_| aligned) else {
                let (start, bytes) = (stretch.start, stretch.len);
                return Err(malformed(format!(
                    "discard of {bytes:#x} bytes at {start:#x} of RAM block {name}: these are not whole pages inside of the block"
                )));
            };
            if let Some(memory) = self.ram.postcopy() {
                memory.discard(index, stretch.start, stretch.len)?;
            }
            let discarded = stretch.start / PAGE_SIZE..end / PAGE_SIZE;
            for pages in [&mut lacking.pages, &mut lacking.unasked] {
                if let Some(pages) = pages.get_mut(index) {
                    pages.add(discarded.clone());
                }
            }
            if let Some(zeros) = lacking.zeros.get_mut(index) {
                zeros.remove(discarded);
            }
        }
        Ok(())
    }

    /// From now on, every access to a missing page waits for it.
    ///
    /// # Errors
    /// `Malformed` without an announcement; errors of guest memory.
    pub(crate) fn listen(&self) -> Result<()> {
        let mut lacking = self.lacking();
        let (Some(lacking), Some(memory)) = (lacking.as_mut(), self.ram.postcopy()) else {
            return Err(Error::new(ErrorKind::Malformed, "post-copy begins without having been announced"));
        };
        memory.listen()?;
        lacking.listens = true;
        Ok(())
    }

    /// True if accesses may wait for pages.
    pub(crate) fn listens(&self) -> bool {
        self.lacking().as_ref().is_some_and(|lacking| lacking.listens)
    }

    /// Descriptor that becomes readable when a thread begins to wait for a page.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.ram.postcopy().and_then(PostcopyMemory::descriptor)
    }

    /// All blocks, own and adopted, in the order of their indices.
    pub(crate) fn all_blocks(&self) -> Vec<RamBlock> {
        self.ram.blocks().iter().chain(&*self.adopted()).cloned().collect()
    }

    /// At least one page is missing.
    pub(crate) fn lacks(&self) -> bool {
        self.lacking().as_ref().is_some_and(|lacking| lacking.pages.iter().any(|pages| pages.run(0, 1).is_some()))
    }

    /// Appends a request for each page that an access waits for and that was not requested.
    ///
    /// # Errors
    /// Errors of guest memory.
    pub(crate) fn put_requests(&self, out: &mut Vec<u8>) -> Result<()> {
        let mut lacking = self.lacking();
        let (Some(lacking), Some(memory)) = (lacking.as_mut().filter(|lacking| lacking.listens), self.ram.postcopy())
        else {
            return Ok(());
        };
        let mut waited_for = Vec::new();
        memory.waited_for(&mut waited_for)?;
        for (index, offset) in waited_for {
            let page = offset / PAGE_SIZE;
            if !lacking.pages.get(index).is_some_and(|pages| pages.contains(page)) {
                // The page has arrived: as a zero page, for which nothing was stored, or since the wait began.
                memory.put(index, offset, None)?;
                if let Some(zeros) = lacking.zeros.get_mut(index) {
                    zeros.remove(page..page + 1);
                }
                continue;
            }
            let adopted = self.adopted();
            let block = self.ram.blocks().iter().chain(&*adopted).nth(index);
            let (Some(unasked), Some(block)) = (lacking.unasked.get_mut(index), block) else { continue };
            if !unasked.contains(page) {
                continue;
            }
            unasked.remove(page..page + 1);
            lacking.since.insert((index, page), self.now());
            request(&mut lacking.named, index, block, page).write(out);
        }
        Ok(())
    }

    /// Stores the zero pages that have arrived. Called when the connection breaks: the engine notices no wait until there is another
    /// connection, and the guest shall wait only for pages that have not arrived.
    ///
    /// # Errors
    /// Errors of guest memory.
    pub(crate) fn store_zeros(&self) -> Result<()> {
        let mut lacking = self.lacking();
        let (Some(lacking), Some(memory)) = (lacking.as_mut().filter(|lacking| lacking.listens), self.ram.postcopy())
        else {
            return Ok(());
        };
        for (block, zeros) in lacking.zeros.iter_mut().enumerate() {
            while let Some(run) = zeros.run(0, u64::MAX) {
                memory.put_zeros(block, run.start * PAGE_SIZE, run.end - run.start)?;
                zeros.remove(run);
            }
        }
        Ok(())
    }

    /// Appends a request for each page that was requested and has not arrived: the source may not have received the request.
    ///
    /// # Errors
    /// As for [`put_requests`](Self::put_requests).
    pub(crate) fn ask_again(&self, out: &mut Vec<u8>) -> Result<()> {
        let mut lacking = self.lacking();
        let Some(lacking) = lacking.as_mut() else { return Ok(()) };
        lacking.named = None;
        let adopted = self.adopted();
        let blocks = self.ram.blocks().iter().chain(&*adopted).enumerate();
        for ((index, block), (pages, unasked)) in blocks.zip(lacking.pages.iter().zip(&lacking.unasked)) {
            let mut from = 0;
            while let Some(page) = pages.run(from, 1).map(|run| run.start) {
                from = page + 1;
                if !unasked.contains(page) {
                    request(&mut lacking.named, index, block, page).write(out);
                }
            }
        }
        Ok(())
    }

    /// Which pages of the block of this name have arrived.
    ///
    /// # Errors
    /// `Malformed` if there is no such block, or outside of post-copy.
    pub(crate) fn received(&self, name: &str) -> Result<PageSet> {
        let malformed = |message: String| Err(Error::new(ErrorKind::Malformed, message));
        let lacking = self.lacking();
        let Some(lacking) = lacking.as_ref() else {
            return malformed("received pages are requested outside of post-copy".to_owned());
        };
        let adopted = self.adopted();
        let found = self.ram.blocks().iter().chain(&*adopted).position(|block| block.name == name);
        match found.and_then(|index| lacking.pages.get(index)) {
            Some(pages) => Ok(pages.complement()),
            None => malformed(format!("the received pages of RAM block {name}, which does not exist here")),
        }
    }

    /// How long the guest has waited for pages; `None` outside of post-copy.
    pub(crate) fn waits(&self) -> Option<PageWaits> {
        let lacking = self.lacking();
        lacking.as_ref().filter(|lacking| lacking.listens).map(|lacking| lacking.waits.summary())
    }

    /// Called when the source has sent everything.
    ///
    /// # Errors
    /// `Malformed` if a page is missing; errors of guest memory.
    pub(crate) fn end(&self) -> Result<()> {
        let lacking = self.lacking();
        let Some(lacking) = lacking.as_ref().filter(|lacking| lacking.listens) else { return Ok(()) };
        let pages: u64 = lacking.pages.iter().map(PageSet::count).sum();
        if pages > 0 {
            return Err(Error::new(ErrorKind::Malformed, format!("{pages} pages of the guest did not arrive")));
        }
        self.ram.postcopy().map_or(Ok(()), PostcopyMemory::end_waits)
    }

    /// Ends post-copy without the missing pages, when the guest does not run here: waiting accesses read zeros, and memory can be
    /// cleared for the next source.
    pub(crate) fn give_up(&self) {
        if let (true, Some(memory)) = (self.listens(), self.ram.postcopy())
            && let Err(error) = memory.end_waits()
        {
            // The failure of the migration was already reported.
            tracing::warn!("accesses still wait for missing pages: {error}");
        }
    }

    /// Sets the time of requests and arrivals until the next call.
    pub(crate) fn set_time(&self, now: Duration) {
        self.now.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.now.load(Ordering::Relaxed))
    }

    fn lacking(&self) -> MutexGuard<'_, Option<Lacking>> {
        lock(&self.lacking)
    }

    fn adopted(&self) -> MutexGuard<'_, Vec<RamBlock>> {
        lock(&self.adopted)
    }

    /// Marks `count` pages of a block as arrived, and stores them. If the guest may be running in the memory, only missing pages are
    /// stored, and zero pages only if an access waits for them ([`zeros`](Lacking::zeros)).
    fn arrive(&self, block: usize, first: u64, count: u64, contents: Contents<'_>) -> Result<()> {
        let write = || match contents {
            Contents::Zero => self.ram.zero_run(block, first * PAGE_SIZE, count),
            Contents::Bytes(bytes) => self.ram.write(block, first * PAGE_SIZE, bytes),
        };
        let mut lacking = self.lacking();
        // Without post-copy, memory is written directly.
        let Some(Lacking { pages, zeros, listens, since, waits, .. }) = lacking.as_mut() else { return write() };
        let (Some(pages), Some(zeros)) = (pages.get_mut(block), zeros.get_mut(block)) else { return write() };
        let span = first..first.saturating_add(count).min(pages.pages());
        match self.ram.postcopy().filter(|_| *listens) {
            None => {
                write()?;
                match contents {
                    Contents::Zero => zeros.add(span.clone()),
                    Contents::Bytes(_) => zeros.remove(span.clone()),
                }
            }
            Some(memory) => {
                let mut from = span.start;
                while let Some(run) = pages.run(from, span.end.saturating_sub(from)).filter(|run| run.start < span.end)
                {
                    from = run.end.min(span.end);
                    let mut run = run.start..from;
                    match contents {
                        Contents::Zero => {
                            zeros.add(run.clone());
                            let asked = since.keys().filter(|(index, page)| *index == block && run.contains(page));
                            for &(_, page) in asked {
                                memory.put(block, page * PAGE_SIZE, None)?;
                                zeros.remove(page..page + 1);
                            }
                        }
                        Contents::Bytes(bytes) => run.try_for_each(|page| {
                            let at = usize::try_from(page.saturating_sub(first)).unwrap_or(usize::MAX);
                            let (chunks, _) = bytes.as_chunks::<PAGE>();
                            memory.put(block, page * PAGE_SIZE, Some(chunks.get(at).unwrap_or(&[0; PAGE])))
                        })?,
                    }
                }
            }
        }
        pages.remove(span.clone());
        if !since.is_empty() {
            let now = self.now();
            for asked in span.filter_map(|page| since.remove(&(block, page))) {
                waits.add(now.saturating_sub(asked));
            }
        }
        Ok(())
    }
}

/// The contents of pages that arrive.
#[derive(Clone, Copy)]
enum Contents<'b> {
    Zero,
    /// Whole pages.
    Bytes(&'b [u8]),
}

/// A request for a page of the block with this index; `named` is the block of the previous request.
fn request(named: &mut Option<usize>, index: usize, block: &RamBlock, page: u64) -> PageRequest {
    let is_named = named.replace(index) == Some(index);
    let block = (!is_named).then(|| block.name.clone());
    PageRequest { block, start: page * PAGE_SIZE, len: PAGE_LEN }
}

impl GuestRam for PostcopyRam<'_> {
    fn blocks(&self) -> &[RamBlock] {
        self.ram.blocks()
    }

    fn adopt(&self, name: &str, len: u64) -> Result<bool> {
        let is_adopted = self.ram.adopt(name, len)?;
        if is_adopted {
            self.adopted().push(RamBlock { name: name.to_owned(), len });
            if let Some(Lacking { pages, unasked, zeros, .. }) = self.lacking().as_mut() {
                let all = PageSet::full(len / PAGE_SIZE);
                zeros.push(all.complement());
                [pages, unasked].into_iter().for_each(|set| set.push(all.clone()));
            }
        }
        Ok(is_adopted)
    }

    fn shared_at(&self, block: usize) -> Option<u64> {
        self.ram.shared_at(block)
    }

    fn announces_shared(&self) -> bool {
        self.ram.announces_shared()
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        // Only XBZRLE reads a page in order to change it. If the page were missing, this thread would wait for itself, because only
        // this thread stores pages.
        if self.listens() {
            return Err(Error::new(ErrorKind::Malformed, "an XBZRLE page in post-copy, where each page is sent once"));
        }
        self.ram.read(block, offset, into)
    }

    /// A file contains all pages, so a migration from it has no post-copy.
    fn map(&self, block: usize, file: BorrowedFd<'_>, offset: u64, words: &[u64]) -> Result<bool> {
        if self.lacking().is_some() { Ok(false) } else { self.ram.map(block, file, offset, words) }
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.write_pages(block, &[(offset, from)])
    }

    fn write_pages(&self, block: usize, pages: &[(u64, &[u8])]) -> Result<()> {
        if self.lacking().is_none() {
            return self.ram.write_pages(block, pages);
        }
        pages.iter().try_for_each(|&(offset, bytes)| {
            self.arrive(block, offset / PAGE_SIZE, bytes.len() as u64 / PAGE_SIZE, Contents::Bytes(bytes))
        })
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.zero_run(block, offset, 1)
    }

    fn zero_run(&self, block: usize, offset: u64, pages: u64) -> Result<()> {
        self.arrive(block, offset / PAGE_SIZE, pages, Contents::Zero)
    }

    fn changed_bytes(&self, old: &[u8; 4096], new: &[u8; 4096]) -> [u64; 64] {
        self.ram.changed_bytes(old, new)
    }

    fn send(&self, to: BorrowedFd<'_>, outbox: &Outbox) -> io::Result<usize> {
        self.ram.send(to, outbox)
    }

    fn receive(&self, from: BorrowedFd<'_>, runs: &[PageRun]) -> io::Result<usize> {
        self.ram.receive(from, runs)
    }

    /// A file contains all pages, so a migration from it has no post-copy.
    fn receive_at(&self, file: &File, offset: u64, run: PageRun) -> io::Result<usize> {
        self.ram.receive_at(file, offset, run)
    }
}

#[cfg(test)]
mod tests;
