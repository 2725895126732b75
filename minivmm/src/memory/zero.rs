//! Which pages of guest RAM are zero, found where they are.

use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{PAGE_SIZE, Ram};
use crate::error::{Error, Result};

/// Words of a page.
const WORDS: usize = PAGE_SIZE as usize / size_of::<u64>();
/// Words looked at before the next decision: a page that is not zero mostly shows it at once.
const STEP: usize = 32;

impl Ram {
    /// Which of `pages` pages, at most 64, from `offset` on are zero; bit 0 is the first. A page that a vCPU writes meanwhile may be
    /// found to be either: the write is in the dirty log.
    ///
    /// # Errors
    /// [`Error::OutsideRam`], also for more pages or if no page begins at `offset`.
    pub fn zero_pages(&self, offset: u64, pages: u32) -> Result<u64> {
        if !offset.is_multiple_of(PAGE_SIZE) || pages > u64::BITS {
            return Err(Error::OutsideRam { at: offset, len: u64::from(pages) * PAGE_SIZE });
        }
        let mut zero = 0;
        let mut bit = 0;
        for part in self.slices(offset, u64::from(pages) * PAGE_SIZE)? {
            let guard = part.ptr_guard();
            // SAFETY: the mapping is alive as long as `part`, which begins and ends with a page, and so with words. vCPUs and devices change
            // it meanwhile, which atomic words allow.
            let words = unsafe { slice::from_raw_parts(guard.as_ptr().cast::<AtomicU64>(), guard.len() / 8) };
            for page in words.as_chunks::<WORDS>().0 {
                zero |= u64::from(is_zero(page)) << bit;
                bit += 1;
            }
        }
        Ok(zero)
    }
}

fn is_zero(page: &[AtomicU64; WORDS]) -> bool {
    let steps = page.as_chunks::<STEP>().0;
    steps.iter().all(|step| step.iter().fold(0, |any, word| any | word.load(Ordering::Relaxed)) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::LOW_RAM_MAX;

    #[test]
    fn one_set_bit_anywhere_makes_a_page_not_zero() {
        let ram = Ram::new(1 << 20).unwrap();
        assert_eq!(ram.zero_pages(0x3000, 5).unwrap(), 0b11111);
        for at in 0..PAGE_SIZE {
            ram.write(0x5000 + at, &[1 << (at % 8)]).unwrap();
            assert_eq!(ram.zero_pages(0x3000, 5).unwrap(), 0b11011, "byte {at}");
            ram.write(0x5000 + at, &[0]).unwrap();
        }
        assert_eq!(ram.zero_pages(0x3000, 5).unwrap(), 0b11111);
        for (offset, pages) in [((1 << 20) - 0x1000, 2), (0x3008, 1), (0x3001, 1), (0, 65)] {
            assert!(ram.zero_pages(offset, pages).is_err(), "{offset:#x}, {pages}");
        }
    }

    #[test]
    fn pages_on_both_sides_of_the_hole_are_counted_through() {
        let ram = Ram::new(LOW_RAM_MAX + (1 << 20)).unwrap();
        for page in [0, 31, 32, 63] {
            ram.write(LOW_RAM_MAX - 32 * PAGE_SIZE + page * PAGE_SIZE + 5, &[1]).unwrap();
        }
        let zero = ram.zero_pages(LOW_RAM_MAX - 32 * PAGE_SIZE, 64).unwrap();
        assert_eq!(!zero, 1 | 1 << 31 | 1 << 32 | 1 << 63);
    }
}
