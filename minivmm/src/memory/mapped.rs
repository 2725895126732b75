//! Maps pages of a file as guest memory, privately, so that a guest runs before its pages are read. Writes of the guest stay in
//! this process.
//!
//! If the file is truncated, touching a page behind its new end ends this process (SIGBUS), and a write to the file changes
//! pages that the guest has not written yet (mmap(2)): the file must not change while the guest runs.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{PAGE_SIZE, Ram};
use crate::error::{Error, Result};

/// Longest run of pages without contents that is mapped together with its neighbours: each mapping costs the host as much as a
/// few faults.
const GAP: u64 = 16;
/// Most mappings; a process may have some 65000 (`vm.max_map_count`).
const MOST: usize = 1024;

impl Ram {
    /// Maps `pages` of `file` to their places: page `n` of the block is at `at + n *` [`PAGE_SIZE`] in the file if bit `n % 64`
    /// of word `n / 64` is set, and zero otherwise. These pages are not used yet.
    ///
    /// # Errors
    /// [`Error::Memory`] if the host refuses; the pages are undefined then.
    pub fn map_pages(&self, pages: Range<u64>, file: BorrowedFd<'_>, at: u64, words: &[u64]) -> Result<()> {
        let refused = |error: io::Error| Error::Memory { what: format!("the host does not map the file: {error}") };
        let runs = runs(&pages, words);
        for run in &runs {
            let (offset, len) = (run.start * PAGE_SIZE, (run.end - run.start) * PAGE_SIZE);
            let mut in_file = at + offset;
            for part in self.slices(offset, len)? {
                let place = part.ptr_guard_mut().as_ptr();
                map(place.cast(), part.len(), file, in_file).map_err(refused)?;
                in_file += part.len() as u64;
            }
        }
        let mut mapped = self.mapped();
        mapped.extend(runs.iter().cloned());
        mapped.sort_by_key(|run| run.start);
        drop(mapped);
        // Pages in the gaps become zero, whatever the file has there.
        for run in runs {
            for word in run.start / 64..run.end.div_ceil(64) {
                let first = word * 64;
                let (start, end) = (run.start.max(first) - first, run.end.min(first + 64) - first);
                let inside = u64::MAX >> (64 - (end - start)) << start;
                let clear = inside & !words.get(word as usize).copied().unwrap_or(0);
                self.clear_pages(first * PAGE_SIZE, clear)?;
            }
        }
        Ok(())
    }

    /// Calls `see` with each run of `pages` that is mapped to a file: such a page may have contents although it was never
    /// touched.
    pub(super) fn see_mapped(&self, pages: Range<u64>, mut see: impl FnMut(Range<u64>)) {
        let mapped = self.mapped();
        let first = mapped.partition_point(|run| run.end <= pages.start);
        for run in mapped[first..].iter().take_while(|run| run.start < pages.end) {
            see(run.start.max(pages.start)..run.end.min(pages.end));
        }
    }
}

/// Returns the runs of `pages` that are mapped: those with contents, and small gaps between them.
fn runs(pages: &Range<u64>, words: &[u64]) -> Vec<Range<u64>> {
    let mut gap = GAP;
    loop {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut page = pages.start;
        while page < pages.end {
            // Whole words are checked together.
            match words.get((page / 64) as usize).copied().unwrap_or(0) >> (page % 64) {
                0 => page = (page / 64 + 1) * 64,
                word => {
                    page += u64::from(word.trailing_zeros());
                    let count = u64::from((word >> word.trailing_zeros()).trailing_ones());
                    let end = (page + count).min(pages.end);
                    match runs.last_mut() {
                        _ if page >= pages.end => {}
                        Some(last) if page - last.end <= gap => last.end = end,
                        _ => runs.push(page..end),
                    }
                    page = end.max(page);
                }
            }
        }
        if runs.len() <= MOST {
            return runs;
        }
        gap *= 2;
    }
}

fn map(place: *mut libc::c_void, len: usize, file: BorrowedFd<'_>, at: u64) -> io::Result<()> {
    let (access, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE);
    let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: the range is of whole pages inside of a mapping that the caller keeps alive, of guest memory, to which Rust has no
    // references: it is accessed by its address only, and stays readable and writable there. Nobody uses it yet, as the caller says.
    let mapped = unsafe { libc::mmap(place, len, access, flags, file.as_raw_fd(), at) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the range is the mapping that was just made; the advice changes no contents.
    match unsafe { libc::madvise(place, len, libc::MADV_DONTDUMP) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::memory::LOW_RAM_MAX;

    fn has(words: &[u64], page: u64) -> bool {
        words.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Runs are compared with a page-by-page count.
    #[test]
    fn runs_with_small_gaps_are_mapped_together() {
        let words = |pages: &[u64]| {
            let mut words = vec![0; 16];
            pages.iter().for_each(|page| words[(page / 64) as usize] |= 1 << (page % 64));
            words
        };
        assert_eq!(runs(&(0..1024), &words(&[])), []);
        assert_eq!(runs(&(0..1024), &words(&[0, 1, 63, 64, 65, 82, 100, 1023])), [0..2, 63..83, 100..101, 1023..1024]);
        assert_eq!(runs(&(64..100), &words(&[63, 64, 99, 100])), [64..65, 99..100]);
        // Every 20th page: more runs than the limit.
        let many: Vec<u64> = (0..4096).map(|word| if word % 2 == 0 { 1 } else { 0 }).collect();
        let all = runs(&(0..4096 * 64), &many);
        assert_eq!((all.len(), all[0].clone()), (1, 0..4094 * 64 + 1));
    }

    #[test]
    fn a_mapped_page_is_that_of_the_file_and_others_are_zero_across_the_hole() {
        let len = LOW_RAM_MAX + (4 << 20);
        let first = LOW_RAM_MAX / PAGE_SIZE - 8;
        let ram = Ram::new(len).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len((1 << 20) + len).unwrap();
        let at = |page: u64| (1 << 20) + page * PAGE_SIZE;
        let mut words = vec![0_u64; (len / PAGE_SIZE / 64) as usize];
        // The last page has contents in the file that were replaced since.
        for page in [first, first + 1, first + 7, first + 8, first + 200, first + 9] {
            file.write_all_at(&[page as u8 | 1; PAGE_SIZE as usize], at(page)).unwrap();
            words[(page / 64) as usize] |= u64::from(page != first + 9) << (page % 64);
        }
        ram.map_pages(0..len / PAGE_SIZE, file.as_fd(), 1 << 20, &words).unwrap();
        let byte = |page: u64| {
            let mut bytes = [0xee; PAGE_SIZE as usize];
            ram.read(page * PAGE_SIZE, &mut bytes).unwrap();
            assert_eq!(bytes, [bytes[0]; PAGE_SIZE as usize]);
            bytes[0]
        };
        for page in (first - 3..first + 220).chain([0, 5]) {
            let expected = if has(&words, page) { page as u8 | 1 } else { 0 };
            assert_eq!(byte(page), expected, "{}", page as i64 - first as i64);
        }
        // An untouched page of a file is not a zero page.
        let again = Ram::new(len).unwrap();
        again.map_pages(0..len / PAGE_SIZE, file.as_fd(), 1 << 20, &words).unwrap();
        let mut untouched = [0; 8];
        again.untouched((first - 8) * PAGE_SIZE, &mut untouched).unwrap();
        for page in first - 8..first + 220 {
            let bit = untouched[((page + 8 - first) / 64) as usize] >> ((page + 8 - first) % 64) & 1;
            assert!(!has(&words, page) || bit == 0, "{}", page as i64 - first as i64);
        }
        // Writes stay in this process, and a page that arrives as zero is cleared.
        ram.write(first * PAGE_SIZE, &[3; PAGE_SIZE as usize]).unwrap();
        let mut there = [0];
        file.read_exact_at(&mut there, at(first)).unwrap();
        assert_eq!(there[0], first as u8 | 1);
        ram.zero_run((first + 7) * PAGE_SIZE, 2).unwrap();
        assert_eq!((byte(first + 7), byte(first + 8)), (0, 0));
    }
}
