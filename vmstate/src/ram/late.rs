//! What post-copy needs of a destination's guest memory.

use crate::error::Result;

/// Guest memory in which a guest can run before all of its pages are there. Offsets are in bytes from the start of a block of
/// [`super::GuestRam::blocks`] or of one that was [adopted](super::GuestRam::adopt), and those of pages.
pub trait LateMemory: Sync {
    /// The source says that it may hand its guest over so: the moment to say why that cannot be done here, before the first page.
    ///
    /// # Errors
    /// Why not, as a part of a sentence: the source is told.
    fn prepare(&self) -> Result<()> {
        Ok(())
    }

    /// Drops pages that have come, before [`listen`](Self::listen): they will come again.
    ///
    /// # Errors
    /// What the system refuses.
    fn discard(&self, block: usize, offset: u64, len: u64) -> Result<()>;

    /// From now on whoever touches a page that is not there, be it a vCPU, a device or the hypervisor itself, waits until it is
    /// [put](Self::put) there.
    ///
    /// # Errors
    /// What the system refuses.
    fn listen(&self) -> Result<()>;

    /// Appends the pages for which somebody began to wait since the last call. Does not wait. A page may be told more than once, and
    /// one that was put there meanwhile, too.
    ///
    /// # Errors
    /// What the system refuses.
    fn waited_for(&self, pages: &mut Vec<(usize, u64)>) -> Result<()>;

    /// Puts a page there, `None` for one of zeros, and wakes who waits for it. A page that is there already stays as it is: the guest may
    /// have written it.
    ///
    /// # Errors
    /// What the system refuses.
    fn put(&self, block: usize, offset: u64, page: Option<&[u8; 4096]>) -> Result<()>;

    /// Every page is there: nobody waits any more.
    ///
    /// # Errors
    /// What the system refuses.
    fn whole(&self) -> Result<()>;
}
