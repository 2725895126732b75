//! Sender of a disk's content: the granules that are still to be sent, and their records.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vmstate::codec::Outbox;

use super::figures::DiskCount;
use super::record::{DiskRecord, HEAD};
use crate::devices::virtio::blk::{GRANULE, Image};

/// Granules of one word.
const WORD: u64 = u64::BITS as u64;
/// Unit in which zeros are detected, a block of most file systems: a destination's file system makes no smaller holes.
const BLOCK: usize = 4096;
/// Bytes of data after which the destination is to write back: an upper limit for the work of a later write-back.
const UNWRITTEN: u64 = 64 << 20;

/// State of sending a disk's content.
#[derive(Debug)]
pub(super) struct Copier {
    /// Bitmap of the granules to be sent.
    pending: Vec<u64>,
    /// Number of set bits, and bytes of data sent.
    count: Arc<DiskCount>,
    /// Next granule of the round.
    next: u64,
    /// Number of sent records that change the image.
    records: u64,
    /// Bytes of data sent since the destination was last asked to write back.
    unwritten: u64,
    buffer: Vec<u8>,
}

impl Copier {
    /// Begins with all granules with data pending. Also returns the bytes of data.
    ///
    /// # Errors
    /// The image cannot be read.
    pub(super) fn start(image: &Image, count: &Arc<DiskCount>) -> io::Result<(Self, u64)> {
        count.reset();
        let count = Arc::clone(count);
        let mut pending = vec![0; image.changes().words()];
        // Earlier changes are found as data or holes; later ones are marked.
        image.changes().take(&mut pending);
        pending.fill(0);
        let mut copier = Self { pending, count, next: 0, records: 0, unwritten: 0, buffer: Vec::new() };
        let (mut offset, mut bytes) = (0, 0);
        while let Some(data) = image.data(offset)? {
            copier.want(&data);
            bytes += data.end - data.start;
            offset = data.end;
        }
        Ok((copier, bytes))
    }

    fn want(&mut self, data: &Range<u64>) {
        for granule in data.start / GRANULE..data.end.div_ceil(GRANULE) {
            let Some(word) = self.pending.get_mut((granule / WORD) as usize) else { return };
            let bit = 1 << (granule % WORD);
            self.count.want(u64::from(*word & bit == 0));
            *word |= bit;
        }
    }

    /// Bytes that are still to be sent, if none of them is zero.
    pub(super) fn pending(&self, image: &Image) -> u64 {
        let granules = self.count.pending().saturating_add(image.changes().count());
        granules.min(image.bytes().div_ceil(GRANULE)).saturating_mul(GRANULE + HEAD)
    }

    /// Begins a round: takes the marks of all changes until now. A later change is marked for the next round, and a later read
    /// sees all earlier changes.
    pub(super) fn sync(&mut self, image: &Image) {
        self.count.want(image.changes().take(&mut self.pending));
        self.next = 0;
    }

    /// Number of records that changed the image.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Appends the body of a part of about `budget` bytes. Returns true if nothing is pending any more.
    ///
    /// # Errors
    /// The image cannot be read.
    pub(super) fn put(&mut self, image: &Image, out: &mut Outbox, budget: u64) -> io::Result<bool> {
        let full = out.len().saturating_add(budget);
        while let Some(granule) = self.next_pending() {
            self.put_granule(image, out, granule)?;
            if out.len() >= full {
                break;
            }
        }
        let over = self.count.pending() == 0;
        // Also at the end of a round, so that a round includes the write-back, and the pause waits for no data of earlier
        // rounds.
        if self.unwritten >= UNWRITTEN || over && self.unwritten > 0 {
            DiskRecord::WriteBack.put(out);
            self.unwritten = 0;
        }
        DiskRecord::End.put(out);
        Ok(over)
    }

    fn is_pending(&self, granule: u64) -> bool {
        self.pending.get((granule / WORD) as usize).is_some_and(|word| word >> (granule % WORD) & 1 == 1)
    }

    /// Returns the first pending granule from `next` on.
    fn next_pending(&self) -> Option<u64> {
        let (first, bit) = (self.next / WORD, self.next % WORD);
        let words = (first..).zip(self.pending.get(first as usize..)?);
        let masked = words.map(|(index, word)| (index, if index == first { word & u64::MAX << bit } else { *word }));
        masked
            .filter(|(_, word)| *word != 0)
            .map(|(index, word)| index * WORD + u64::from(word.trailing_zeros()))
            .next()
    }

    fn done(&mut self, granules: Range<u64>) {
        self.next = granules.end;
        for granule in granules {
            if let Some(word) = self.pending.get_mut((granule / WORD) as usize) {
                *word &= !(1 << (granule % WORD));
                self.count.done();
            }
        }
    }

    /// Appends the records of a pending granule, and of the pending ones after it in the same hole.
    fn put_granule(&mut self, image: &Image, out: &mut Outbox, granule: u64) -> io::Result<()> {
        let start = granule * GRANULE;
        let data = image.data(start)?.map_or(image.bytes(), |data| data.start);
        let mut end = granule + 1;
        if data >= (end * GRANULE).min(image.bytes()) {
            while self.is_pending(end) && data >= ((end + 1) * GRANULE).min(image.bytes()) {
                end += 1;
            }
            let len = (end * GRANULE).min(image.bytes()) - start;
            self.put_record(out, DiskRecord::Zeros { offset: start, len });
            self.done(granule..end);
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize((image.bytes() - start).min(GRANULE) as usize, 0);
        image.read(&mut buffer, start)?;
        let is_zero = |block: &[u8]| *block == [0; BLOCK][..block.len()];
        let blocks: Vec<_> = buffer.chunks(BLOCK).collect();
        let mut offset = start;
        for run in blocks.chunk_by(|one, other| is_zero(one) == is_zero(other)) {
            let len: usize = run.iter().map(|block| block.len()).sum();
            let at = (offset - start) as usize;
            let bytes = buffer.get(at..at + len).unwrap_or_default();
            let record = match run.first().is_some_and(|block| is_zero(block)) {
                true => DiskRecord::Zeros { offset, len: len as u64 },
                false => DiskRecord::Data { offset, bytes },
            };
            self.put_record(out, record);
            offset += len as u64;
        }
        self.buffer = buffer;
        self.done(granule..end);
        Ok(())
    }

    fn put_record(&mut self, out: &mut Outbox, record: DiskRecord<'_>) {
        if let DiskRecord::Data { bytes, .. } = record {
            self.unwritten += bytes.len() as u64;
            self.count.send(bytes.len() as u64);
        }
        self.records += 1;
        record.put(out);
    }
}
