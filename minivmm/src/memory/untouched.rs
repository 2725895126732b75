//! Finds pages that the host has never populated: they are zero, which is known without reading them.
//!
//! Guest RAM is a private anonymous mapping, or one of a memfd (`shared.rs`), whose holes are known. A page of an anonymous
//! mapping that is neither present nor swapped out is zero (Documentation/admin-guide/mm/pagemap.rst); one that is being moved
//! or is broken counts as swapped out. Without information from the kernel no page is known to be untouched.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::shared::data;
use super::{PAGE_SIZE, Ram};
use crate::error::Result;

/// `PAGE_IS_PRESENT` and `PAGE_IS_SWAPPED` (linux/fs.h).
const TOUCHED: u64 = 1 << 3 | 1 << 4;
/// The bits of a touched page in an entry of the page map.
const TOUCHED_ENTRY: u64 = 1 << 63 | 1 << 62;
/// Most regions in the answer of one call.
const REGIONS: usize = 256;
/// Most entries in one read.
const ENTRIES: usize = 512;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `PAGEMAP_SCAN`, `_IOWR('f', 16, struct pm_scan_arg)` (linux/fs.h); Linux 6.7 and later.
const PAGEMAP_SCAN: u32 = 3 << 30 | (size_of::<ScanArgument>() as u32) << 16 | (b'f' as u32) << 8 | 16;

/// Opens this process's page map, before the process is confined. It shows this process's memory only.
pub(super) fn open() -> Option<File> {
    File::open("/proc/self/pagemap").ok()
}

impl Ram {
    /// Sets a bit for each page from `offset` on, at most as many as `words` has bits, that is zero because it was never
    /// touched. A page that a vCPU or a device touches meanwhile is in their dirty logs.
    ///
    /// # Errors
    /// [`Error::OutsideRam`](crate::error::Error::OutsideRam) if `offset` is not in the block.
    pub fn untouched(&self, offset: u64, words: &mut [u64]) -> Result<()> {
        let len = (words.len() as u64 * 64 * PAGE_SIZE).min(self.len.saturating_sub(offset).max(1));
        let parts = self.slices(offset, len)?;
        if let Some(file) = self.file() {
            let pages = (len / PAGE_SIZE) as usize;
            set(words, 0, pages, true);
            // The page map has only pages that this process has touched, and another one may have mapped the file.
            if data(file, offset, pages, |page, count| set(words, page, count, false)).is_err() {
                set(words, 0, pages, false);
            }
            return Ok(());
        }
        let Some(pagemap) = &self.pagemap else { return Ok(()) };
        let mut first = 0;
        for part in parts {
            let (start, pages) = (part.ptr_guard().as_ptr() as u64, part.len() / PAGE_SIZE as usize);
            set(words, first, pages, true);
            let scanned = scan(pagemap, start, pages, |page, count| set(words, first + page, count, false));
            let known = scanned.or_else(|error| match error.raw_os_error() {
                // The kernel does not have the request.
                Some(libc::ENOTTY | libc::EINVAL) => {
                    read(pagemap, start, pages, |page, count| set(words, first + page, count, false))
                }
                _ => Err(error),
            });
            if known.is_err() {
                set(words, first, pages, false);
            }
            first += pages;
        }
        // The page map does not show that a page has contents in a file.
        let begin = offset / PAGE_SIZE;
        self.see_mapped(begin..begin + len / PAGE_SIZE, |run| {
            set(words, (run.start - begin) as usize, (run.end - run.start) as usize, false);
        });
        Ok(())
    }
}

/// Sets or clears bits.
fn set(words: &mut [u64], first: usize, count: usize, value: bool) {
    let mut bit = first;
    while bit < first + count {
        let in_word = (first + count - bit).min(64 - bit % 64);
        let mask = (u64::MAX >> (64 - in_word)) << (bit % 64);
        if value {
            words[bit / 64] |= mask;
        } else {
            words[bit / 64] &= !mask;
        }
        bit += in_word;
    }
}

/// Calls `touched` for each run of pages that are present or swapped out, from the address `start` on.
fn scan(pagemap: &File, start: u64, pages: usize, mut touched: impl FnMut(usize, usize)) -> io::Result<()> {
    let mut regions = [Region::default(); REGIONS];
    let end = start + pages as u64 * PAGE_SIZE;
    let mut at = start;
    while at < end {
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            start: at,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: REGIONS as u64,
            category_anyof_mask: TOUCHED,
            return_mask: TOUCHED,
            ..Default::default()
        };
        // SAFETY: the request takes a pointer to this structure, which is as long as its `size` says. The kernel writes to it and to
        // at most `vec_len` regions at `vec`, which are there.
        let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut argument) };
        let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
        let inside = |address: u64| ((address.clamp(at, end) - start) / PAGE_SIZE) as usize;
        for region in regions.iter().take(found) {
            let (first, behind) = (inside(region.start), inside(region.end));
            touched(first, behind.saturating_sub(first));
        }
        if argument.walk_end <= at {
            return Err(io::Error::other("the kernel's scan of the page map does not go on"));
        }
        at = argument.walk_end;
    }
    Ok(())
}

/// Reports touched pages on kernels without [`PAGEMAP_SCAN`], from the page map.
fn read(pagemap: &File, start: u64, pages: usize, mut touched: impl FnMut(usize, usize)) -> io::Result<()> {
    let mut entries = [0; ENTRIES * 8];
    for first in (0..pages).step_by(ENTRIES) {
        let count = ENTRIES.min(pages - first);
        let entries = &mut entries[..count * 8];
        pagemap.read_exact_at(entries, (start / PAGE_SIZE + first as u64) * 8)?;
        for (page, entry) in (first..).zip(entries.as_chunks::<8>().0) {
            if u64::from_ne_bytes(*entry) & TOUCHED_ENTRY != 0 {
                touched(page, 1);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::LOW_RAM_MAX;

    /// Residency by mincore(2): for anonymous memory that was not swapped out, the pages that are present.
    fn resident(ram: &Ram, offset: u64, pages: usize) -> Vec<bool> {
        let mut all = Vec::new();
        for part in ram.slices(offset, pages as u64 * PAGE_SIZE).unwrap() {
            let mut here = vec![0; part.len() / PAGE_SIZE as usize];
            // SAFETY: the range is a live mapping, and the vector has a byte for each of its pages.
            let result = unsafe { libc::mincore(part.ptr_guard().as_ptr() as *mut _, part.len(), here.as_mut_ptr()) };
            assert_eq!(result, 0);
            all.extend(here.into_iter().map(|byte| byte & 1 == 1));
        }
        all
    }

    fn bits(words: &[u64], pages: usize) -> Vec<bool> {
        (0..pages).map(|page| words[page / 64] >> (page % 64) & 1 == 1).collect()
    }

    /// Pages of all kinds: huge ones, single ones, every second one, both stretches, across a border of two words.
    #[test]
    fn a_page_is_untouched_if_it_is_not_there() {
        const PAGES: usize = 8192 + 70;
        let begin = LOW_RAM_MAX - 4096 * PAGE_SIZE;
        for huge in [true, false] {
            let ram = Ram::new(LOW_RAM_MAX + (32 << 20)).unwrap();
            if !huge {
                for stretch in ram.stretches() {
                    // SAFETY: the range is a live mapping of `ram`; the advice changes no contents.
                    let result = unsafe {
                        libc::madvise(stretch.host_address as *mut _, stretch.len as usize, libc::MADV_NOHUGEPAGE)
                    };
                    assert_eq!(result, 0);
                }
            }
            let written = [0, 3, 1000, 4095, 4096, 4097, 8191, 8192 + 69].into_iter().chain((2000..3500).step_by(2));
            let written: Vec<u64> = written.collect();
            for page in &written {
                ram.write(begin + page * PAGE_SIZE + 9, &[1]).unwrap();
            }
            let mut words = vec![0; PAGES.div_ceil(64)];
            ram.untouched(begin, &mut words).unwrap();
            let expected: Vec<_> = resident(&ram, begin, PAGES).into_iter().map(|there| !there).collect();
            assert!(bits(&words, PAGES) == expected, "by the scan, huge: {huge}");
            assert!(written.iter().all(|page| !expected[*page as usize]));
            assert!(huge || expected.iter().filter(|untouched| !**untouched).count() == written.len());

            // The page map, as on older kernels.
            let pagemap = open().unwrap();
            let (mut first, mut by_reading) = (0, vec![true; PAGES]);
            for part in ram.slices(begin, PAGES as u64 * PAGE_SIZE).unwrap() {
                let (start, pages) = (part.ptr_guard().as_ptr() as u64, part.len() / PAGE_SIZE as usize);
                read(&pagemap, start, pages, |page, count| by_reading[first + page..][..count].fill(false)).unwrap();
                first += pages;
            }
            assert!(by_reading == expected, "by reading, huge: {huge}");
        }
    }

    #[test]
    fn words_beyond_the_block_stay_as_they_are() {
        let ram = Ram::new(1 << 20).unwrap();
        let mut words = [0; 8];
        ram.untouched(0, &mut words).unwrap();
        assert_eq!(words, [u64::MAX, u64::MAX, u64::MAX, u64::MAX, 0, 0, 0, 0]);
        assert!(ram.untouched(1 << 20, &mut words).is_err());
    }

    #[test]
    fn without_a_page_map_every_page_may_have_been_touched() {
        let ram = Ram { pagemap: None, ..Ram::new(1 << 20).unwrap() };
        let mut words = [0; 4];
        ram.untouched(0, &mut words).unwrap();
        assert_eq!(words, [0; 4]);
    }
}
