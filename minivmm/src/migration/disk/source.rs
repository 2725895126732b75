//! Reader of a disk's content: the granules that are still to be sent, and their records. The caller decides where the records go: to
//! another machine, or to an image of this host.

use std::ops::Range;
use std::sync::Arc;

use vmstate::Result;

use super::failed;
use super::figures::DiskCount;
use super::record::{DiskRecord, HEAD};
use crate::devices::virtio::blk::{GRANULE, Image};

/// Granules of one word.
const WORD: u64 = u64::BITS as u64;
/// Unit in which zeros are detected, a block of most file systems: a destination's file system makes no smaller holes.
const BLOCK: usize = 4096;
/// Bytes of data after which the receiver is to write back: an upper limit for the work of a later write-back.
const UNWRITTEN: u64 = 64 << 20;

/// What an error says of an image that cannot be read.
const UNREADABLE: &str = "could not be read";

/// Receiver of the records.
pub(super) type Receive<'a> = dyn FnMut(DiskRecord<'_>) -> Result<()> + 'a;

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
    /// Bytes of data sent since the receiver was last asked to write back.
    unwritten: u64,
    buffer: Vec<u8>,
}

impl Copier {
    /// Begins with all granules with data pending. Also returns the bytes of data.
    ///
    /// # Errors
    /// The image cannot be read.
    pub(super) fn start(image: &Image, count: &Arc<DiskCount>) -> Result<(Self, u64)> {
        count.reset();
        let count = Arc::clone(count);
        let mut pending = vec![0; image.changes().words()];
        // Earlier changes are found as data or holes; later ones are marked.
        image.changes().take(&mut pending);
        pending.fill(0);
        let mut copier = Self { pending, count, next: 0, records: 0, unwritten: 0, buffer: Vec::new() };
        let (mut offset, mut bytes) = (0, 0);
        while let Some(data) = next_data(image, offset)? {
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

    /// Gives records of about `budget` bytes to `receive`. Returns true if nothing is pending any more.
    ///
    /// # Errors
    /// The image cannot be read; errors of `receive`.
    pub(super) fn put(&mut self, image: &Image, budget: u64, receive: &mut Receive<'_>) -> Result<bool> {
        let mut put = 0;
        while let Some(granule) = self.next_pending() {
            put += self.put_granule(image, granule, receive)?;
            if put >= budget {
                break;
            }
        }
        let over = self.count.pending() == 0;
        // Also at the end of a round, so that a round includes the write-back, and the pause waits for no data of earlier
        // rounds.
        if self.unwritten >= UNWRITTEN || over && self.unwritten > 0 {
            receive(DiskRecord::WriteBack)?;
            self.unwritten = 0;
        }
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

    /// Gives the records of a pending granule, and of the pending ones after it in the same hole; returns their bytes.
    fn put_granule(&mut self, image: &Image, granule: u64, receive: &mut Receive<'_>) -> Result<u64> {
        let start = granule * GRANULE;
        let data = next_data(image, start)?.map_or(image.bytes(), |data| data.start);
        let mut end = granule + 1;
        if data >= (end * GRANULE).min(image.bytes()) {
            while self.is_pending(end) && data >= ((end + 1) * GRANULE).min(image.bytes()) {
                end += 1;
            }
            let len = (end * GRANULE).min(image.bytes()) - start;
            let put = self.put_record(DiskRecord::Zeros { offset: start, len }, receive)?;
            self.done(granule..end);
            return Ok(put);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize((image.bytes() - start).min(GRANULE) as usize, 0);
        image.read(&mut buffer, start).map_err(|error| failed(image, UNREADABLE, error))?;
        let is_zero = |block: &[u8]| *block == [0; BLOCK][..block.len()];
        let blocks: Vec<_> = buffer.chunks(BLOCK).collect();
        let (mut offset, mut put) = (start, 0);
        for run in blocks.chunk_by(|one, other| is_zero(one) == is_zero(other)) {
            let len: usize = run.iter().map(|block| block.len()).sum();
            let at = (offset - start) as usize;
            let bytes = buffer.get(at..at + len).unwrap_or_default();
            let record = match run.first().is_some_and(|block| is_zero(block)) {
                true => DiskRecord::Zeros { offset, len: len as u64 },
                false => DiskRecord::Data { offset, bytes },
            };
            put += self.put_record(record, receive)?;
            offset += len as u64;
        }
        self.buffer = buffer;
        self.done(granule..end);
        Ok(put)
    }

    fn put_record(&mut self, record: DiskRecord<'_>, receive: &mut Receive<'_>) -> Result<u64> {
        receive(record)?;
        self.unwritten += record.data();
        self.count.send(record.data());
        self.records += 1;
        Ok(HEAD + record.data())
    }
}

fn next_data(image: &Image, offset: u64) -> Result<Option<Range<u64>>> {
    image.data(offset).map_err(|error| failed(image, UNREADABLE, error))
}
