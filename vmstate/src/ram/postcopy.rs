//! What post-copy needs from a destination's guest memory.

use std::os::fd::BorrowedFd;

use super::PAGE_SIZE;
use crate::error::Result;

/// Guest memory in which a guest can run before all of its pages have arrived. Offsets are in bytes from the start of a block of
/// [`super::GuestRam::blocks`] or of an [adopted](super::GuestRam::adopt) block, and page-aligned.
pub trait PostcopyMemory: Sync {
    /// Called when the source announces that it may switch to post-copy, before the first page: the implementation reports here
    /// why this side cannot.
    ///
    /// # Errors
    /// The reason, as part of a sentence that is sent to the source.
    fn prepare(&self) -> Result<()> {
        Ok(())
    }

    /// Drops pages that have arrived, before [`listen`](Self::listen): they will be sent again. From then on a dropped page reads as
    /// zero, because the engine may not [put](Self::put) it in place if it arrives as a zero page.
    ///
    /// # Errors
    /// Errors of the system.
    fn discard(&self, block: usize, offset: u64, len: u64) -> Result<()>;

    /// From now on, every access to a missing page by a vCPU, a device or the hypervisor waits until the page is [put](Self::put)
    /// in place.
    ///
    /// # Errors
    /// Errors of the system.
    fn listen(&self) -> Result<()>;

    /// Appends the pages for which an access began to wait since the last call. Does not wait. A page may be reported more than
    /// once, and also after it was put in place.
    ///
    /// # Errors
    /// Errors of the system.
    fn waited_for(&self, pages: &mut Vec<(usize, u64)>) -> Result<()>;

    /// Returns a descriptor that becomes readable when a thread begins to wait for a page. By default there is none, and the engine
    /// checks for waits every millisecond.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Puts a page in place (`None`: a zero page), and wakes the accesses that wait for it. A page that is present already stays
    /// unchanged: the guest may have written it.
    ///
    /// # Errors
    /// Errors of the system.
    fn put(&self, block: usize, offset: u64, page: Option<&[u8; 4096]>) -> Result<()>;

    /// Puts this many zero pages in place, as [`put`](Self::put) does with each of them: called for zero pages that have arrived when the
    /// connection breaks, because no wait is noticed until there is another. Otherwise a zero page is put in place only if an access waits
    /// for it. A run may be as long as the block, so one call of the system for all of it is better than the default, a `put` for each.
    ///
    /// # Errors
    /// Errors of the system.
    fn put_zeros(&self, block: usize, offset: u64, pages: u64) -> Result<()> {
        (0..pages).try_for_each(|page| self.put(block, offset.saturating_add(page.saturating_mul(PAGE_SIZE)), None))
    }

    /// Ends post-copy: no access waits any more, and a page that is still missing reads as zero. Called when every page is present,
    /// or when the guest does not run here.
    ///
    /// # Errors
    /// Errors of the system.
    fn end_waits(&self) -> Result<()>;
}
