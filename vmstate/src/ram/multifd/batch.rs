//! Pages on their way from the main channel to a thread that sends or writes them, divided into packets.

use std::ops::Range;

use super::packet::{PACKET_PAGES, PacketPages};
use crate::error::Result;
use crate::ram::{GuestRam, PAGE_SIZE};

/// Pages of one block that are sent in one packet, or written or read by one task of a file, as runs of page numbers.
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

    /// Sorts the pages into normal and zero ones, which replace those in `sorted`.
    ///
    /// # Errors
    /// Errors of guest memory.
    pub(crate) fn sort(&self, ram: &dyn GuestRam, sorted: &mut PacketPages) -> Result<()> {
        let PacketPages { block, normal, zero } = sorted;
        *block = self.block;
        normal.clear();
        zero.clear();
        zero.extend(self.untouched.iter().cloned().flatten().map(|page| page * PAGE_SIZE));
        for run in &self.touched {
            // As many at once as the result of a zero check has bits.
            for first in run.clone().step_by(u64::BITS as usize) {
                let pages = (run.end - first).min(u64::BITS.into());
                let looked_at = u32::try_from(pages).unwrap_or(u64::BITS);
                let zeros = ram.zero_pages(self.block, first * PAGE_SIZE, looked_at)?;
                for page in 0..pages {
                    let kind = if zeros >> page & 1 == 1 { &mut *zero } else { &mut *normal };
                    kind.push((first + page) * PAGE_SIZE);
                }
            }
        }
        Ok(())
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
