//! A cache of pages as the destination has them, for comparison: direct-mapped, like QEMU's (migration/page_cache.c).

use super::{PAGE, Page};

/// For this many rounds after its last use, a page is not replaced by another (`CACHED_PAGE_LIFETIME`).
const LIFETIME: u64 = 2;

/// A cache of guest pages, by page number.
#[derive(Debug, Default)]
pub struct PageCache {
    /// A power of two of slots, or none. Page number `n` can be in slot `n` modulo their number.
    slots: Vec<Option<Slot>>,
}

#[derive(Debug)]
struct Slot {
    page: u64,
    /// The round in which the slot was last used.
    used: u64,
    bytes: Box<Page>,
}

impl PageCache {
    /// Creates a cache of `bytes`, rounded down to a power of two of pages. The memory of a page is allocated when it is first
    /// needed.
    pub fn new(bytes: u64) -> Self {
        let pages = usize::try_from(bytes).unwrap_or(usize::MAX) / PAGE;
        let mut slots = Vec::new();
        slots.resize_with(pages.checked_ilog2().map_or(0, |log| 1 << log), || None);
        Self { slots }
    }

    /// The destination's contents of `page`, marked as used in this `round`.
    pub fn get(&mut self, page: u64, round: u64) -> Option<&mut Page> {
        let slot = self.slot(page)?.as_mut().filter(|slot| slot.page == page)?;
        slot.used = round;
        Some(&mut slot.bytes)
    }

    /// Stores the contents of `page` that were sent; false if the slot has another page, used in this round or the one before.
    pub fn insert(&mut self, page: u64, round: u64, bytes: &Page) -> bool {
        match self.slot(page) {
            Some(Some(slot)) => {
                if slot.page != page && slot.used + LIFETIME > round {
                    return false;
                }
                (slot.page, slot.used) = (page, round);
                *slot.bytes = *bytes;
                true
            }
            Some(empty) => {
                *empty = Some(Slot { page, used: round, bytes: Box::new(*bytes) });
                true
            }
            None => false,
        }
    }

    /// Drops the pages for which `keep` is false, and frees their memory.
    pub fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|slot| !keep(slot.page)) {
                *slot = None;
            }
        }
    }

    fn slot(&mut self, page: u64) -> Option<&mut Option<Slot>> {
        let places = self.slots.len() as u64;
        self.slots.get_mut(usize::try_from(page & places.wrapping_sub(1)).ok()?)
    }
}
