//! Pages on their way from the main channel to a page channel, divided into packets.

use std::ops::Range;

use super::packet::PACKET_PAGES;

/// Pages of one block that are sent in one packet, as runs of page numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) block: usize,
    /// Pages that the sending thread checks for zeros.
    pub(crate) touched: Vec<Range<u64>>,
    /// Pages that are zero because they were never touched: they are not read.
    pub(crate) untouched: Vec<Range<u64>>,
    pages: u64,
}

impl Batch {
    fn new(block: usize) -> Self {
        Self { block, touched: Vec::new(), untouched: Vec::new(), pages: 0 }
    }

    /// The number of pages, at most [`PACKET_PAGES`].
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }
}

/// Appends pages of a block to the last of `batches`, and to new batches where they exceed it.
pub(crate) fn put_pages(batches: &mut Vec<Batch>, block: usize, mut pages: Range<u64>, untouched: bool) {
    while !pages.is_empty() {
        let fits = |batch: &&mut Batch| batch.block == block && batch.pages < PACKET_PAGES as u64;
        let Some(batch) = batches.last_mut().filter(fits) else {
            batches.push(Batch::new(block));
            continue;
        };
        let end = pages.end.min(pages.start + PACKET_PAGES as u64 - batch.pages);
        batch.pages += end - pages.start;
        let runs = if untouched { &mut batch.untouched } else { &mut batch.touched };
        match runs.last_mut() {
            Some(last) if last.end == pages.start => last.end = end,
            _ => runs.push(pages.start..end),
        }
        pages.start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_cut_into_packets_and_neighbours_are_one_run() {
        let mut batches = Vec::new();
        for (block, pages, untouched) in
            [(0, 0..64, false), (0, 64..100, false), (0, 100..103, true), (0, 110..400, false), (1, 0..1, true)]
        {
            put_pages(&mut batches, block, pages, untouched);
        }
        let said = |batch: &Batch| {
            format!("{}: {:?}, untouched {:?}: {}", batch.block, batch.touched, batch.untouched, batch.pages())
        };
        assert_eq!(
            batches.iter().map(said).collect::<Vec<_>>(),
            [
                "0: [0..100, 110..135], untouched [100..103]: 128",
                "0: [135..263], untouched []: 128",
                "0: [263..391], untouched []: 128",
                "0: [391..400], untouched []: 9",
                "1: [], untouched [0..1]: 1",
            ]
        );
    }
}
