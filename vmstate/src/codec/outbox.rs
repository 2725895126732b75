//! The outbox: bytes of the stream and, between them, runs of pages that stay in guest memory until they are sent.

use std::fmt;

/// A contiguous range of guest memory; whole pages, unless part of it was sent already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Index of the RAM block.
    pub block: usize,
    /// Offset in the block, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl PageRun {
    /// Removes the first `count` bytes from `runs`, after they were received.
    pub fn advance_slices(runs: &mut &mut [Self], mut count: u64) {
        while let Some((first, _)) = runs.split_first_mut() {
            let cut = first.len.min(count);
            (first.offset, first.len, count) = (first.offset + cut, first.len - cut, count - cut);
            if first.len > 0 {
                return;
            }
            *runs = std::mem::take(runs).get_mut(1..).unwrap_or_default();
        }
    }
}

/// A contiguous part of the unsent data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes of the stream.
    Bytes(&'a [u8]),
    /// Pages, read from guest memory when they are sent.
    Pages(PageRun),
}

/// Bytes of the stream and runs of pages, in the order in which they are sent. Pages are read when they are sent, not when they
/// are put here: a guest write in between may or may not be sent, and is in the dirty log in any case.
#[derive(Clone, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// Runs of pages, each with the number of bytes in `bytes` that come before it.
    runs: Vec<(usize, PageRun)>,
    /// Progress: bytes sent of `bytes`, entries sent of `runs`, and bytes sent of the first remaining run.
    sent: (usize, usize, u64),
    len: u64,
}

impl Outbox {
    /// Creates an empty outbox.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of bytes left to send, including those of pages.
    pub fn len(&self) -> u64 {
        self.len + (self.bytes.len() - self.sent.0) as u64
    }

    /// True if nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The byte buffer, to append to.
    pub(crate) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Appends pages. A run that begins where the last one ended, with no bytes in between, extends that run.
    pub fn put_pages(&mut self, run: PageRun) {
        self.len += run.len;
        if let Some((at, last)) = self.runs.last_mut()
            && (*at, last.block, last.offset + last.len) == (self.bytes.len(), run.block, run.offset)
        {
            last.len += run.len;
        } else if run.len > 0 {
            self.runs.push((self.bytes.len(), run));
        }
    }

    /// The unsent data, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let (mut byte, mut index, mut cut) = self.sent;
        std::iter::from_fn(move || {
            let run = self.runs.get(index);
            let before = run.map_or(self.bytes.len(), |&(at, _)| at);
            if byte < before {
                let bytes = self.bytes.get(byte..before).unwrap_or_default();
                byte = before;
                return Some(Piece::Bytes(bytes));
            }
            let (_, PageRun { block, offset, len }) = *run?;
            let cut = std::mem::take(&mut cut);
            index += 1;
            Some(Piece::Pages(PageRun { block, offset: offset + cut, len: len - cut }))
        })
    }

    /// The first `most` bytes of the unsent data.
    pub(crate) fn head(&self, most: u64) -> Self {
        let mut head = Self::new();
        for piece in self.pieces() {
            let left = most.saturating_sub(head.len());
            match piece {
                _ if left == 0 => break,
                Piece::Bytes(bytes) => {
                    head.put(bytes.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(bytes));
                }
                Piece::Pages(run) => head.put_pages(PageRun { len: run.len.min(left), ..run }),
            }
        }
        head
    }

    /// Marks the first `count` unsent bytes as sent.
    pub fn advance(&mut self, mut count: u64) {
        let (byte, index, cut) = &mut self.sent;
        while count > 0 {
            let run = self.runs.get(*index);
            let bytes = run.map_or(self.bytes.len(), |&(at, _)| at) - *byte;
            let step = usize::try_from(count).unwrap_or(usize::MAX).min(bytes);
            *byte += step;
            count -= step as u64;
            let Some((_, run)) = run else { return };
            let step = count.min(run.len - *cut);
            (*cut, count, self.len) = (*cut + step, count - step, self.len - step);
            if *cut == run.len {
                (*index, *cut) = (*index + 1, 0);
            }
        }
    }

    /// Drops the unsent data and keeps the buffers' capacity.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.runs.clear();
        (self.sent, self.len) = ((0, 0, 0), 0);
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("len", &self.len()).finish_non_exhaustive()
    }
}
