//! Pages as the destination has them, to compare with: a direct-mapped cache like QEMU's (migration/page_cache.c).

use super::{PAGE, Page};

/// For so many rounds after its last use a page keeps its place from others (`CACHED_PAGE_LIFETIME`).
const LIFETIME: u64 = 2;

/// A cache of pages of the guest, by their number.
#[derive(Debug, Default)]
pub struct PageCache {
    /// A power of two of them, or none. The page of number `n` may be in that of `n` modulo their count.
    slots: Vec<Option<Slot>>,
}

#[derive(Debug)]
struct Slot {
    page: u64,
    /// The round in which it was last used.
    used: u64,
    bytes: Box<Page>,
}

impl PageCache {
    /// Room for `bytes`, rounded down to a power of two of pages. The memory of a page is taken when it is first needed.
    pub fn new(bytes: u64) -> Self {
        let pages = usize::try_from(bytes).unwrap_or(usize::MAX) / PAGE;
        let mut slots = Vec::new();
        slots.resize_with(pages.checked_ilog2().map_or(0, |log| 1 << log), || None);
        Self { slots }
    }

    /// What the destination has of `page`, which is in use in this `round`.
    pub fn get(&mut self, page: u64, round: u64) -> Option<&mut Page> {
        let slot = self.slot(page)?.as_mut().filter(|slot| slot.page == page)?;
        slot.used = round;
        Some(&mut slot.bytes)
    }

    /// Keeps what was sent of `page`; false if another page, used this round or in the one before, has its place.
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

    /// Forgets the pages that `keep` does not want, and gives their memory back.
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
