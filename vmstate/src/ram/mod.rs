//! Guest RAM: blocks, pages, dirty bitmaps, rounds.

mod arrived;
mod cost;
mod gathered;
#[cfg(feature = "vm-memory")]
mod guest_memory;
mod heat;
mod late;
pub(crate) mod mapped;
pub(crate) mod multifd;
pub(crate) mod page_set;
pub(crate) mod received;
pub(crate) mod receiver;
pub(crate) mod record;
mod section;
pub(crate) mod sender;
mod summary;
pub(crate) mod xbzrle;
pub(crate) mod zero;

use std::io;
use std::os::fd::BorrowedFd;

use crate::codec::{Outbox, PageRun};
use crate::error::Result;
use zero::is_zero;

pub use gathered::{copied_in, copied_out};
#[cfg(feature = "vm-memory")]
pub use guest_memory::{DeviceWrites, MemoryRam};
pub use heat::HeatMap;
pub use late::LateMemory;
pub(crate) use receiver::RamRecord;
pub(crate) use record::{NORMAL_RECORD, RAM_IDSTR, ZERO_RECORD};
pub(crate) use section::{EngineSection, PageFigures, RamSection, Wishes};
pub use sender::PageCount;
pub use summary::{BlockSummary, RamSummary};
pub use xbzrle::XbzrleCount;

/// Bytes of a page, the unit of the dirty bitmap and of a page record (QEMU's `TARGET_PAGE_SIZE` on x86).
pub const PAGE_SIZE: u64 = PAGE as u64;

/// Pages that the engine clears by one call of [`DirtyLog::clear`], 16 MiB. A page cleared early and written again before its turn
/// is sent twice; a call for each page would cost more.
pub const CLEAR_PAGES: u64 = 4096;

/// [`PAGE_SIZE`], as a length of what is in this process.
pub(crate) const PAGE: usize = 4096;

/// A named stretch of guest RAM; both sides must know the same names with the same lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamBlock {
    /// Name, as `microvm.ram`; at most 255 bytes.
    pub name: String,
    /// Length in bytes, a multiple of [`PAGE_SIZE`].
    pub len: u64,
}

/// The embedder's guest memory. Offsets are in bytes from the start of a block; `block` is an index into
/// [`blocks`](Self::blocks). Threads of one migration share it.
pub trait GuestRam: Sync {
    /// The blocks that are there before any migration; the same at every call.
    fn blocks(&self) -> &[RamBlock];

    /// Destination: the source has a block that is not among [`blocks`](Self::blocks), as a QEMU has for its firmware. `true`: it is
    /// kept here, behind all blocks so far, and its pages come to [`write`](Self::write) and [`zero_page`](Self::zero_page) under
    /// the next index. Name and length are the peer's: keep what is known, and no more of it than is known.
    ///
    /// # Errors
    /// What is wrong with that block.
    fn adopt(&self, name: &str, len: u64) -> Result<bool> {
        let _ = (name, len);
        Ok(false)
    }

    /// The guest-physical address of a block whose memory the other side has mapped, too: its pages are not sent, and a destination
    /// takes none (QEMU's capability `x-ignore-shared`, migration/ram.c). Both sides must say the same of each block. `None`: the
    /// pages are sent.
    fn shared_at(&self, block: usize) -> Option<u64> {
        let _ = block;
        None
    }

    /// Destination: the same memory as one in which a guest can run before all of its pages are there; `None` if it cannot.
    fn late(&self) -> Option<&dyn LateMemory> {
        None
    }

    /// Copies out `into.len()` bytes: whole pages. The guest may write them meanwhile: its log then says so.
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()>;

    /// Which of `pages` pages, at most 64, from `offset` on are zero; bit 0 is the first. The guest may write a page meanwhile, which is
    /// found to be either then: the log has the write.
    ///
    /// As it stands here, pages are copied with [`read`](Self::read), one by one.
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn zero_pages(&self, block: usize, offset: u64, pages: u32) -> Result<u64> {
        let mut zero = 0;
        let mut page = [0; PAGE];
        for index in 0..pages {
            self.read(block, offset.saturating_add(u64::from(index) * PAGE_SIZE), &mut page)?;
            zero |= u64::from(is_zero(&page)) << index;
        }
        Ok(zero)
    }

    /// Sets a bit for each page from `offset` on, at most as many as `words` has bits, that reads as zero because nobody has ever
    /// written or read it: the source sends it as zero and does not touch it. The guest may write it meanwhile: the log has the
    /// write. As it stands here, no page is known to be so.
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn untouched(&self, block: usize, offset: u64, words: &mut [u64]) -> Result<()> {
        let _ = (block, offset, words);
        Ok(())
    }

    /// Destination: all pages of `block` are in `file`, page `n` at `offset + n *` [`PAGE_SIZE`] if bit `n % 64` of word `n / 64` is set.
    /// Pages whose bit is clear are zero, whatever the file has there. `true`: memory has them now, as by mapping the file privately.
    /// `false`, as it stands here: they are [received](Self::receive) one after the other.
    ///
    /// # Errors
    /// What the system refuses.
    fn map(&self, block: usize, file: BorrowedFd<'_>, offset: u64, words: &[u64]) -> Result<bool> {
        let _ = (block, file, offset, words);
        Ok(false)
    }

    /// Copies in: whole pages.
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()>;

    /// Copies in whole pages that have arrived: of each, where it begins in the block, and its bytes. Of two for the same place the later
    /// one stays. As it stands here, each is one [`write`](Self::write).
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn write_pages(&self, block: usize, pages: &[(u64, &[u8])]) -> Result<()> {
        pages.iter().try_for_each(|&(offset, bytes)| self.write(block, offset, bytes))
    }

    /// Makes a page zero; need not touch memory that already is.
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn zero_page(&self, block: usize, offset: u64) -> Result<()>;

    /// Makes `pages` pages that follow each other zero. As it stands here, each is one [`zero_page`](Self::zero_page).
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn zero_run(&self, block: usize, offset: u64, pages: u64) -> Result<()> {
        (0..pages).try_for_each(|page| self.zero_page(block, offset.saturating_add(page.saturating_mul(PAGE_SIZE))))
    }

    /// In which bytes two copies of a page differ, for XBZRLE: bit `n % 64` of word `n / 64` is set if byte `n` does. As it stands here,
    /// portable code looks; instructions that not each processor has are faster where they are there.
    fn changed_bytes(&self, old: &[u8; 4096], new: &[u8; 4096]) -> [u64; 64] {
        xbzrle::changed_bytes(old, new)
    }

    /// Writes the first bytes of `outbox` to a socket or a file, the pages as they are now, and returns how many; at least one if the
    /// outbox is not empty. A descriptor that does not block is not waited for.
    ///
    /// As it stands here, pages are copied with [`read`](Self::read). Memory that the system can reach needs no copy: one gathering
    /// call (`writev`) of bytes and pages as they alternate does it.
    ///
    /// # Errors
    /// Those of `write`; what memory refuses, as the error within.
    fn send(&self, to: BorrowedFd<'_>, outbox: &Outbox) -> io::Result<usize> {
        copied_out(self, outbox, |bytes| Ok(nix::unistd::write(to, bytes)?))
    }

    /// Destination: reads from a socket or a file into the first bytes of `runs`, which are inside of their blocks, and returns how
    /// many; at least one if the runs have any, 0 if the peer closed its side. A descriptor that does not block is not waited for.
    ///
    /// As it stands here, pages are copied with [`write`](Self::write). Memory that the system can reach needs no copy (`readv`);
    /// what comes so counts as written, as [`write`](Self::write)'s does.
    ///
    /// # Errors
    /// Those of `read`; what memory refuses, as the error within.
    fn receive(&self, from: BorrowedFd<'_>, runs: &[PageRun]) -> io::Result<usize> {
        copied_in(self, runs, |into| Ok(nix::unistd::read(from, into)?))
    }
}

/// True if there is a block that both sides have mapped.
pub(crate) fn shares_memory(ram: &dyn GuestRam) -> bool {
    (0..ram.blocks().len()).any(|index| ram.shared_at(index).is_some())
}

/// The embedder's record of pages written since they were last cleared: vCPUs and devices together.
pub trait DirtyLog {
    /// Begins to record; all pages count as dirty from the engine's side.
    ///
    /// # Errors
    /// What the hypervisor refuses.
    fn start(&mut self) -> Result<()>;

    /// ORs the pages of `block` written since the last call into `words` (bit 0 of word 0 is page 0).
    ///
    /// # Errors
    /// What the hypervisor refuses.
    fn sync(&mut self, block: usize, words: &mut [u64]) -> Result<()>;

    /// Called before pages of `first..first + count` of `block` are read for sending, in page order: a hypervisor that
    /// write-protects late (`KVM_CLEAR_DIRTY_LOG`) does it here. It may clear only what [`sync`](Self::sync) has
    /// reported: a page written since then and cleared unreported would be lost.
    ///
    /// # Errors
    /// What the hypervisor refuses.
    fn clear(&mut self, block: usize, first: u64, count: u64) -> Result<()>;

    /// Ends recording. Must not fail: it runs on the way out of a failed migration.
    fn stop(&mut self);
}

/// The union of two logs, so that no write is lost between them: the hypervisor's of vCPUs, and one of devices.
impl<A: DirtyLog, B: DirtyLog> DirtyLog for (A, B) {
    fn start(&mut self) -> Result<()> {
        self.0.start()?;
        self.1.start().inspect_err(|_| self.0.stop())
    }

    fn sync(&mut self, block: usize, words: &mut [u64]) -> Result<()> {
        self.0.sync(block, words)?;
        self.1.sync(block, words)
    }

    fn clear(&mut self, block: usize, first: u64, count: u64) -> Result<()> {
        self.0.clear(block, first, count)?;
        self.1.clear(block, first, count)
    }

    fn stop(&mut self) {
        self.0.stop();
        self.1.stop();
    }
}
