//! Guest RAM in a memfd (memfd_create(2)), which another process of this host can map as well: a guest is handed over to it
//! without copying its memory.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{
    MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create, seek,
};
use rustix::io::Errno;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{PAGE_SIZE, Ram};
use crate::error::{Error, Result};

/// The length of the file is sealed: touching a page behind a new end would end this process (SIGBUS).
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Copy of a range of guest RAM in a memfd, for a QEMU, which has the range in a block of its own.
#[derive(Debug)]
pub struct SharedCopy {
    file: File,
    range: Range<u64>,
}

impl SharedCopy {
    /// Makes the file, with zeros, for the bytes of `range`. A confined process makes none.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(range: Range<u64>) -> Result<Self> {
        let refused = |error| Error::Memory { what: format!("the host makes no file of memory: {error}") };
        let file = made(c"guest-ram-copy", range.end - range.start).map_err(refused)?;
        Ok(Self { file, range })
    }

    /// Descriptor for another process.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Copies the range of `ram`, whose guest is stopped; what `ram` lacks of it stays zero.
    ///
    /// # Errors
    /// The system's.
    pub fn update(&self, ram: &Ram) -> io::Result<()> {
        if ram.len() < self.range.end {
            return Ok(());
        }
        let mut bytes = vec![0; (self.range.end - self.range.start) as usize];
        ram.read(self.range.start, &mut bytes).map_err(io::Error::other)?;
        self.file.write_all_at(&bytes, 0)
    }
}

fn made(name: &CStr, len: u64) -> io::Result<File> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, len)?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file.into())
}

impl Ram {
    /// Like [`new`](Self::new), in memory that another process can map.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn shared(len: u64) -> Result<Self> {
        let refused =
            |error| Error::Memory { what: format!("the host makes no file of memory of {len} bytes: {error}") };
        Self::map(len, Some(Arc::new(made(c"guest-ram", len).map_err(refused)?)))
    }

    /// Maps the RAM of another process, which has passed its [`descriptor`](Self::descriptor).
    ///
    /// # Errors
    /// [`Error::Memory`] if the descriptor is no memfd of this length, or if its length may change.
    pub fn passed(len: u64, descriptor: OwnedFd) -> Result<Self> {
        let refused = |what: String| Error::Memory { what };
        let system = |errno: Errno| refused(format!("what was passed is no guest RAM: {errno}"));
        let there = fstat(&descriptor).map_err(system)?.st_size;
        let seals = fcntl_get_seals(&descriptor).map_err(system)?;
        if !seals.contains(SEALS) {
            return Err(refused("what was passed is no guest RAM: its length may change".into()));
        }
        if u64::try_from(there) != Ok(len) {
            return Err(refused(format!(
                "the guest has {there} bytes of RAM, and --memory says {len}: give the same as the machine that it comes from"
            )));
        }
        Self::map(len, Some(Arc::new(descriptor.into())))
    }

    /// Descriptor for another process, if this RAM can be shared.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file().map(AsFd::as_fd)
    }

    pub(super) fn file(&self) -> Option<&File> {
        self.guest.iter().next()?.file_offset().map(|file| file.file())
    }
}

/// Calls `touched` for each run of pages with contents among the `pages` pages of `file` from `offset` on: a hole in the file
/// is zero, and was never written (lseek(2), `SEEK_DATA`).
pub(super) fn data(file: &File, offset: u64, pages: usize, mut touched: impl FnMut(usize, usize)) -> io::Result<()> {
    let end = offset + pages as u64 * PAGE_SIZE;
    let mut at = offset;
    while at < end {
        let begin = match seek(file, SeekFrom::Data(at)) {
            Ok(begin) => begin.min(end),
            // There is only a hole up to the end of the file.
            Err(Errno::NXIO) => end,
            Err(errno) => return Err(errno.into()),
        };
        if begin == end {
            break;
        }
        let behind = seek(file, SeekFrom::Hole(begin))?.clamp(begin, end);
        let page = |at: u64| ((at - offset) / PAGE_SIZE) as usize;
        let count = page(behind.next_multiple_of(PAGE_SIZE)) - page(begin);
        touched(page(begin), count);
        if behind <= at {
            return Err(io::Error::other("the file of memory has no end"));
        }
        at = behind;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::LOW_RAM_MAX;

    /// Two mappings of one memory, also across the hole, each with a bitmap of device writes of its own.
    #[test]
    fn both_see_what_either_writes() {
        let len = LOW_RAM_MAX + (1 << 20);
        let here = Ram::shared(len).unwrap();
        let there = Ram::passed(len, here.descriptor().unwrap().try_clone_to_owned().unwrap()).unwrap();
        for (from, to, offset) in
            [(&here, &there, LOW_RAM_MAX - 4), (&there, &here, LOW_RAM_MAX + 8), (&here, &there, 0)]
        {
            from.write(offset, b"abcdefgh").unwrap();
            let mut got = [0; 8];
            to.read(offset, &mut got).unwrap();
            assert_eq!(&got, b"abcdefgh");
        }
        assert!(Ram::new(1 << 20).unwrap().descriptor().is_none());
    }

    #[test]
    fn what_is_no_ram_of_that_length_is_refused() {
        let passed = |len, file: File| match Ram::passed(len, file.into()) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        let ram = || File::from(Ram::shared(1 << 20).unwrap().descriptor().unwrap().try_clone_to_owned().unwrap());
        assert_eq!(passed(1 << 20, ram()), "");
        assert!(passed(2 << 20, ram()).contains("the guest has 1048576 bytes of RAM, and --memory says 2097152"));
        assert!(passed(1 << 20, tempfile::tempfile().unwrap()).contains("no guest RAM"));
        let open = File::from(memfd_create(c"x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
        open.set_len(1 << 20).unwrap();
        assert!(passed(1 << 20, open).contains("its length may change"));
        ram().set_len(1 << 19).unwrap_err();
    }

    /// The result is compared with the pages that were written in either mapping.
    #[test]
    fn a_page_that_only_the_other_process_has_touched_is_not_untouched() {
        let len = LOW_RAM_MAX + (4 << 20);
        let here = Ram::shared(len).unwrap();
        let there = Ram::passed(len, here.descriptor().unwrap().try_clone_to_owned().unwrap()).unwrap();
        for page in [0, 3, 64, 65, 700] {
            here.write(LOW_RAM_MAX - (2 << 20) + page * PAGE_SIZE, &[1]).unwrap();
        }
        for ram in [&here, &there] {
            let mut words = [0; 16];
            ram.untouched(LOW_RAM_MAX - (2 << 20), &mut words).unwrap();
            for page in 0..1024 {
                let touched = [0, 3, 64, 65, 700].contains(&page);
                // Huge pages are populated as a whole.
                assert!(!touched || words[page / 64] >> (page % 64) & 1 == 0, "{page}");
            }
            assert!(words[15] >> 63 & 1 == 1, "nobody has touched the last one");
        }
    }
}
