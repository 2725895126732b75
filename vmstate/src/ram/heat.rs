//! A heat map of guest memory: how many pages of each part were sent, with a bounded number of counters for any size of guest.

use super::{PAGE_SIZE, RamBlock};

/// The most parts.
const CELLS: u64 = 1024;
/// The fewest pages of a part: one run of sent pages, so that a run is within one part.
const FEWEST: u64 = 64;

/// The number of sent pages for each part of guest memory. All parts but the last have one size; they follow the order of the
/// blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeatMap {
    /// Bytes of guest memory in a part: a power of two.
    pub cell_bytes: u64,
    /// Pages sent of each part. A page counts each time it is sent: as zero, whole or as a difference, and also if XBZRLE finds
    /// it unchanged.
    pub pages: Vec<u32>,
}

impl HeatMap {
    /// Creates a map of these blocks with all counts zero.
    pub(super) fn new(blocks: &[RamBlock]) -> Self {
        let pages = blocks.iter().map(|block| block.len / PAGE_SIZE).fold(0, u64::saturating_add);
        let cell = pages.div_ceil(CELLS).max(FEWEST).next_power_of_two();
        // At most `CELLS`.
        let cells = usize::try_from(pages.div_ceil(cell)).unwrap_or_default();
        Self { cell_bytes: cell.saturating_mul(PAGE_SIZE), pages: vec![0; cells] }
    }

    /// Counts a run of `pages` sent pages; `first` is the number of its first page among all pages.
    pub(super) fn add(&mut self, first: u64, pages: u64) {
        let cell = usize::try_from(first / (self.cell_bytes / PAGE_SIZE).max(1)).ok();
        if let Some(sent) = cell.and_then(|cell| self.pages.get_mut(cell)) {
            *sent = sent.saturating_add(u32::try_from(pages).unwrap_or(u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lens: &[u64]) -> HeatMap {
        let blocks: Vec<_> = lens.iter().map(|len| RamBlock { name: "ram".into(), len: *len }).collect();
        HeatMap::new(&blocks)
    }

    #[test]
    fn any_guest_has_at_most_1024_parts_and_all_of_it_is_in_one() {
        // Bytes of memory, bytes of a part, number of parts, calculated by hand.
        let cases: [(&[u64], u64, usize); 6] = [
            (&[4096], 256 << 10, 1),
            (&[256 << 20], 256 << 10, 1024),
            (&[(256 << 20) + 4096], 512 << 10, 513),
            (&[2 << 30, 4096 << 30], 8 << 30, 513),
            (&[u64::MAX / 4096 * 4096], 1 << 54, 1024),
            (&[], 256 << 10, 0),
        ];
        for (lens, cell_bytes, cells) in cases {
            let map = map(lens);
            assert_eq!((map.cell_bytes, map.pages.len()), (cell_bytes, cells), "{lens:?}");
        }
    }

    #[test]
    fn a_run_counts_where_it_begins_and_one_outside_nowhere() {
        let mut map = map(&[1 << 20]);
        map.add(0, 64);
        map.add(63, 1);
        map.add(192, 64);
        map.add(256, 1);
        assert_eq!(map.pages, [65, 0, 0, 64]);
        map.add(255, u64::MAX);
        assert_eq!(map.pages, [65, 0, 0, u32::MAX]);
        HeatMap::default().add(0, 1);
    }
}
