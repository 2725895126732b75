//! Copies whole pages into guest RAM with streaming stores, which bypass the caches.
//!
//! An arriving page is in the second-level cache, and the guest does not use it before all others have come. A plain copy first
//! reads the memory that it overwrites, and evicts the next pages to be copied. With streaming stores the destination uses a
//! third less of a processor for each page, over TCP half.

use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

use vm_memory::bitmap::Bitmap;

use super::{PAGE_SIZE, Ram};
use crate::error::{Error, Result};

const PAGE: usize = PAGE_SIZE as usize;
/// Bytes copied by one instruction (SSE2, which each x86-64 has).
const VECTOR: usize = size_of::<__m128i>();

impl Ram {
    /// Copies pages, each given by its offset in the block and its bytes, and marks them as written by a device. Of two for the
    /// same place the later one stays.
    ///
    /// # Errors
    /// [`Error::OutsideRam`], also for an offset or a length that is not a page's; the pages before it are copied then.
    pub fn write_pages(&self, pages: &[(u64, &[u8])]) -> Result<()> {
        let copied = pages.iter().take_while(|(offset, bytes)| self.copy_page(*offset, bytes).is_some()).count();
        // Streaming stores are not ordered with others (Intel's manual, volume 1, 10.4.6.2), and a thread that learns of the
        // pages must find them.
        // SAFETY: each x86-64 has SSE.
        unsafe { _mm_sfence() };
        // After the copies, and for runs of neighbours: each mark is a locked instruction, which waits for the stores before
        // it.
        let done = pages.get(..copied).unwrap_or(pages);
        for run in done.chunk_by(|(before, _), (offset, _)| before + PAGE_SIZE == *offset) {
            let first = run.first().map_or(0, |(offset, _)| *offset);
            self.slices(first, run.len() as u64 * PAGE_SIZE)?.for_each(|part| part.bitmap().mark_dirty(0, part.len()));
        }
        match pages.get(copied) {
            Some(&(at, bytes)) => Err(Error::OutsideRam { at, len: bytes.len() as u64 }),
            None => Ok(()),
        }
    }

    /// Copies a page; `None` if there is no page at `offset`, or `bytes` are not a page.
    fn copy_page(&self, offset: u64, bytes: &[u8]) -> Option<()> {
        let bytes: &[u8; PAGE] = bytes.try_into().ok()?;
        let place = self.host(offset, PAGE_SIZE).filter(|_| offset.is_multiple_of(PAGE_SIZE))?;
        // SAFETY: a page of a mapping that `self` keeps alive begins there; each x86-64 has SSE2.
        unsafe { stream(bytes, place.cast()) };
        Some(())
    }
}

/// # Safety
/// A page of a live mapping, which may be written, begins at `into`.
#[target_feature(enable = "sse2")]
unsafe fn stream(bytes: &[u8; PAGE], into: *mut __m128i) {
    for (at, vector) in bytes.as_chunks::<VECTOR>().0.iter().enumerate() {
        // SAFETY: the vector is VECTOR bytes long; the load needs no alignment.
        let vector = unsafe { _mm_loadu_si128(vector.as_ptr().cast()) };
        // SAFETY: the place is inside of the page, aligned as pages are. No reference of Rust's is to guest memory.
        unsafe { _mm_stream_si128(into.wrapping_add(at), vector) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::LOW_RAM_MAX;

    fn bytes(salt: usize) -> Vec<u8> {
        (0..PAGE).map(|at| ((at * 7) ^ (at >> 8) ^ salt) as u8).collect()
    }

    #[test]
    fn pages_come_to_their_places_and_are_marked_and_no_others() {
        let ram = Ram::new(LOW_RAM_MAX + (1 << 20)).unwrap();
        let last = LOW_RAM_MAX / PAGE_SIZE - 1;
        let places = [5, 6, last, last + 1, last + 2, 1000, 5];
        let contents: Vec<_> = (0..places.len()).map(bytes).collect();
        let pages: Vec<_> = places.iter().zip(&contents).map(|(page, bytes)| (page * PAGE_SIZE, &bytes[..])).collect();
        ram.write_pages(&pages).unwrap();
        let mut words = vec![0; (ram.len() / PAGE_SIZE / 64) as usize];
        ram.take_device_writes(&mut words);
        let marked = (0..ram.len() / PAGE_SIZE).filter(|page| words[*page as usize / 64] >> (page % 64) & 1 == 1);
        assert_eq!(marked.collect::<Vec<_>>(), [5, 6, 1000, last, last + 1, last + 2]);
        let page = |number: u64| {
            let mut page = vec![9; PAGE];
            ram.read(number * PAGE_SIZE, &mut page).unwrap();
            page
        };
        for (place, content) in [(5, 6), (6, 1), (last, 2), (last + 1, 3), (last + 2, 4), (1000, 5)] {
            assert!(page(place) == contents[content], "page {place:#x}");
        }
        for place in [4, 7, 999, 1001, last - 1, last + 3] {
            assert!(page(place) == [0; PAGE], "page {place:#x}");
        }
    }

    #[test]
    fn what_is_no_page_of_the_block_is_refused_and_those_before_it_are_marked() {
        for (offset, len) in
            [(1 << 20, PAGE), (0x2001, PAGE), (0x2000, PAGE - 1), (0x2000, PAGE + 1), (u64::MAX - 4095, PAGE)]
        {
            let ram = Ram::new(1 << 20).unwrap();
            let (good, bad) = (bytes(1), vec![7; len]);
            let refused = ram.write_pages(&[(0x1000, &good), (offset, &bad), (0x3000, &good)]).unwrap_err();
            assert!(matches!(refused, Error::OutsideRam { at, .. } if at == offset), "{refused}");
            let mut words = [0; 4];
            ram.take_device_writes(&mut words);
            assert_eq!(words, [0b10, 0, 0, 0], "{offset:#x}");
        }
    }
}
