//! Guest RAM: blocks, pages, dirty bitmaps, rounds.

mod arrived;
mod cost;
mod figures;
mod gathered;
#[cfg(feature = "vm-memory")]
mod guest_memory;
mod heat;
pub(crate) mod mapped;
pub(crate) mod multifd;
pub(crate) mod page_set;
mod postcopy;
pub(crate) mod received;
pub(crate) mod receiver;
pub(crate) mod record;
mod section;
pub(crate) mod sender;
mod summary;
pub(crate) mod xbzrle;
pub(crate) mod zero;

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use crate::codec::{Outbox, PageRun};
use crate::error::Result;
use zero::is_zero;

pub(crate) use figures::{PageFigures, RamSettings};
pub use gathered::{copied_in, copied_in_at, copied_out, copied_out_at};
pub(crate) use gathered::{write_all_bytes_at, write_bytes_at};
#[cfg(feature = "vm-memory")]
pub use guest_memory::{DeviceWrites, MemoryRam};
pub use heat::HeatMap;
pub use postcopy::PostcopyMemory;
pub(crate) use receiver::RamRecord;
pub(crate) use record::{NORMAL_RECORD, RAM_IDSTR, ZERO_RECORD};
pub(crate) use section::{EngineSection, RamSection};
pub use sender::PageCount;
pub use summary::{BlockSummary, RamSummary};
pub use xbzrle::XbzrleCount;

/// Size of a page in bytes: the unit of the dirty bitmap and of a page record (QEMU's `TARGET_PAGE_SIZE` on x86).
pub const PAGE_SIZE: u64 = PAGE as u64;

/// The most pages that the engine clears with one call of [`DirtyLog::clear`], 16 MiB. A page that is cleared early and written
/// again before it is sent, is sent twice; a call for each page would cost more.
pub const CLEAR_PAGES: u64 = 4096;

/// [`PAGE_SIZE`] as a `usize`.
pub(crate) const PAGE: usize = 4096;

/// A named range of guest RAM; both sides must have the same names with the same lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamBlock {
    /// Name, as `microvm.ram`; at most 255 bytes.
    pub name: String,
    /// Length in bytes, a multiple of [`PAGE_SIZE`].
    pub len: u64,
}

/// The embedder's guest memory. Offsets are in bytes from the start of a block; `block` is an index into
/// [`blocks`](Self::blocks). The threads of one migration share it.
pub trait GuestRam: Sync {
    /// The blocks that exist before any migration; the same at every call.
    fn blocks(&self) -> &[RamBlock];

    /// Destination: called for a block of the source that is not among [`blocks`](Self::blocks), such as a QEMU's firmware.
    /// `true` keeps the block, after all blocks so far, and its pages are passed to [`write`](Self::write) and
    /// [`zero_page`](Self::zero_page) with the next index. Name and length are the peer's and not trusted: keep only blocks that
    /// are expected.
    ///
    /// # Errors
    /// Why the block cannot be kept.
    fn adopt(&self, name: &str, len: u64) -> Result<bool> {
        let _ = (name, len);
        Ok(false)
    }

    /// The guest-physical address of a block whose memory both sides have mapped: the source does not send its pages, and a
    /// destination accepts none (QEMU's capability `x-ignore-shared`, migration/ram.c). Both sides must return the same for each
    /// block. `None`: the pages are sent.
    fn shared_at(&self, block: usize) -> Option<u64> {
        let _ = block;
        None
    }

    /// Whether the stream names the capability `x-ignore-shared` and the address of each block, where blocks are
    /// [shared](Self::shared_at). Both sides must return the same: false where they know of the sharing by another channel, as in
    /// QEMU's mode `cpr-transfer` (`migrate_ram_is_ignored`, migration/ram.c).
    fn announces_shared(&self) -> bool {
        true
    }

    /// Destination: this memory as [`PostcopyMemory`], in which a guest can run before all of its pages have arrived; `None` if it
    /// cannot.
    fn postcopy(&self) -> Option<&dyn PostcopyMemory> {
        None
    }

    /// Copies `into.len()` bytes out: whole pages. The guest may write them at the same time, which the dirty log then reports.
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()>;

    /// Determines which of `pages` pages, at most 64, from `offset` on are zero; bit 0 is the first. If the guest writes a page
    /// at the same time, either answer is allowed: the dirty log has the write.
    ///
    /// The default copies each page with [`read`](Self::read).
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

    /// Sets a bit for each page from `offset` on, at most as many as `words` has bits, that reads as zero because it was never
    /// written or read: the source sends such a page as zero without touching it. The guest may write the page at the same time,
    /// which the dirty log reports. The default reports none.
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn untouched(&self, block: usize, offset: u64, words: &mut [u64]) -> Result<()> {
        let _ = (block, offset, words);
        Ok(())
    }

    /// Destination: all pages of `block` are in `file`, page `n` at `offset + n *` [`PAGE_SIZE`] if bit `n % 64` of word `n / 64`
    /// is set. Pages whose bit is clear are zero, whatever the file contains there. Returns `true` if memory now has the pages,
    /// for example by a private mapping of the file, and `false` if they are to be [received](Self::receive) one after another.
    /// The default returns `false`.
    ///
    /// # Errors
    /// Errors of the system.
    fn map(&self, block: usize, file: BorrowedFd<'_>, offset: u64, words: &[u64]) -> Result<bool> {
        let _ = (block, file, offset, words);
        Ok(false)
    }

    /// Copies bytes in: whole pages.
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()>;

    /// Copies in whole pages that have arrived: the offset of each in the block, and its bytes. Of two pages with the same
    /// offset, the later one stays. The default calls [`write`](Self::write) for each.
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn write_pages(&self, block: usize, pages: &[(u64, &[u8])]) -> Result<()> {
        pages.iter().try_for_each(|&(offset, bytes)| self.write(block, offset, bytes))
    }

    /// Makes a page zero; need not touch memory that is zero already.
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn zero_page(&self, block: usize, offset: u64) -> Result<()>;

    /// Makes `pages` adjacent pages zero. The default calls [`zero_page`](Self::zero_page) for each.
    ///
    /// # Errors
    /// `Misuse` outside the block.
    fn zero_run(&self, block: usize, offset: u64, pages: u64) -> Result<()> {
        (0..pages).try_for_each(|page| self.zero_page(block, offset.saturating_add(page.saturating_mul(PAGE_SIZE))))
    }

    /// Compares two copies of a page for XBZRLE: bit `n % 64` of word `n / 64` is set if byte `n` differs. The default is
    /// portable; an implementation with vector instructions is faster.
    fn changed_bytes(&self, old: &[u8; 4096], new: &[u8; 4096]) -> [u64; 64] {
        xbzrle::changed_bytes(old, new)
    }

    /// Writes the first bytes of `outbox` to a socket or a file, with the present contents of its pages, and returns how many; at
    /// least one if the outbox is not empty. Does not wait for a non-blocking descriptor.
    ///
    /// The default copies pages with [`read`](Self::read). Memory that the system can access needs no copy: one gathering call
    /// (`writev`) sends bytes and pages in their order.
    ///
    /// # Errors
    /// Those of `write`; errors of guest memory, as the inner error.
    fn send(&self, to: BorrowedFd<'_>, outbox: &Outbox) -> io::Result<usize> {
        copied_out(self, outbox, |bytes| Ok(nix::unistd::write(to, bytes)?))
    }

    /// Destination: reads from a socket or a file into the first bytes of `runs`, which are within their blocks, and returns how
    /// many; at least one if the runs are not empty, 0 if the peer closed its side. Does not wait for a non-blocking descriptor.
    ///
    /// The default copies pages with [`write`](Self::write). Memory that the system can access needs no copy (`readv`); the
    /// received pages count as written, as with [`write`](Self::write).
    ///
    /// # Errors
    /// Those of `read`; errors of guest memory, as the inner error.
    fn receive(&self, from: BorrowedFd<'_>, runs: &[PageRun]) -> io::Result<usize> {
        copied_in(self, runs, |into| Ok(nix::unistd::read(from, into)?))
    }

    /// Writes the first bytes of `run` to `file` at `offset`, with their present contents, and returns how many; at least one. The
    /// file's position stays unchanged, because several threads may write.
    ///
    /// The default copies pages with [`read`](Self::read). Memory that the system can access needs no copy (`pwritev`).
    ///
    /// # Errors
    /// Those of `pwrite`; errors of guest memory, as the inner error.
    fn send_at(&self, file: &File, offset: u64, run: PageRun) -> io::Result<usize> {
        copied_out_at(self, file, offset, run)
    }

    /// Destination: reads from `file` at `offset` into the first bytes of `run`, which is within its block, and returns how many; 0
    /// at the end of the file. The file's position stays unchanged, because several threads may read.
    ///
    /// The default copies pages with [`write`](Self::write). Memory that the system can access needs no copy (`preadv`); the
    /// pages count as written, as with [`write`](Self::write).
    ///
    /// # Errors
    /// Those of `pread`; errors of guest memory, as the inner error.
    fn receive_at(&self, file: &File, offset: u64, run: PageRun) -> io::Result<usize> {
        copied_in_at(self, file, offset, run)
    }
}

/// True if both sides have mapped a block's memory.
pub(crate) fn shares_memory(ram: &dyn GuestRam) -> bool {
    (0..ram.blocks().len()).any(|index| ram.shared_at(index).is_some())
}

/// True if the stream says that both sides have mapped a block's memory.
pub(crate) fn announces_shared(ram: &dyn GuestRam) -> bool {
    ram.announces_shared() && shares_memory(ram)
}

/// The embedder's dirty log: the pages written since they were last cleared, by vCPUs and devices together.
pub trait DirtyLog {
    /// Starts the log; the engine treats all pages as dirty.
    ///
    /// # Errors
    /// Errors of the hypervisor.
    fn start(&mut self) -> Result<()>;

    /// ORs the pages of `block` written since the last call into `words` (bit 0 of word 0 is page 0).
    ///
    /// # Errors
    /// Errors of the hypervisor.
    fn sync(&mut self, block: usize, words: &mut [u64]) -> Result<()>;

    /// Called before pages `first..first + count` of `block` are read for sending, in page order: a hypervisor that defers write
    /// protection (`KVM_CLEAR_DIRTY_LOG`) does it here. It may clear only pages that [`sync`](Self::sync) has reported: a page
    /// written since then and cleared without a report would be lost.
    ///
    /// # Errors
    /// Errors of the hypervisor.
    fn clear(&mut self, block: usize, first: u64, count: u64) -> Result<()>;

    /// Stops the log. It must not fail: it also runs when a migration has failed.
    fn stop(&mut self);
}

/// The union of two logs, such as the hypervisor's for vCPUs and one for devices, so that no write is lost between them.
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
