//! The XBZRLE encoder: the changes of a page, as runs of equal and of changed bytes (migration/xbzrle.c, `xbzrle_encode_buffer`).
//!
//! The changed bytes are given as masks with a bit for each byte; the edges between zeros and ones of the masks are the ends of
//! the runs.

use super::{ChangedBytes, LONGEST, PAGE, Page};

/// Number of bytes that one mask covers.
const BLOCK: usize = u64::BITS as usize;
/// A run of at most this length is copied as this many bytes, with one load and one store.
const SHORT: usize = 16;
/// Size of the longest encoding, plus the bytes that the copy of the last short run exceeds it.
const ROOM: usize = PAGE + SHORT;

/// Encodes pages, one after another.
pub struct Encoder {
    bytes: Box<[u8; ROOM]>,
}

/// The encoding of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded<'a> {
    /// Both pages are equal.
    Unchanged,
    /// The runs.
    Runs(&'a [u8]),
    /// The record with the runs would be as long as that of the whole page, or longer.
    TooLong,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { bytes: Box::new([0; ROOM]) }
    }
}

impl Encoder {
    /// Encodes `new`, which differs from the destination's page in the bytes `changed`.
    pub fn encode(&mut self, new: &Page, changed: &ChangedBytes) -> Encoded<'_> {
        match self.put_runs(new, changed) {
            Some(0) => Encoded::Unchanged,
            Some(length) => self.bytes.get(..length).map_or(Encoded::TooLong, Encoded::Runs),
            None => Encoded::TooLong,
        }
    }

    /// Returns the number of bytes written; `None` if they are too many.
    fn put_runs(&mut self, new: &Page, masks: &ChangedBytes) -> Option<usize> {
        let (mut length, mut start, mut changed) = (0, 0, false);
        for (index, &mask) in masks.iter().enumerate() {
            // A bit that differs from its predecessor begins a run.
            let mut edges = mask ^ (mask << 1 | u64::from(changed));
            while edges != 0 {
                let end = index * BLOCK + edges.trailing_zeros() as usize;
                edges &= edges - 1;
                length = self.put_run(length, new.get(start..end)?, changed.then_some((new, start)))?;
                (start, changed) = (end, !changed);
            }
        }
        if changed { self.put_run(length, new.get(start..)?, Some((new, start))) } else { Some(length) }
    }

    /// Appends, at index `length`, the length of `run`, and its bytes if they changed; returns the index after them.
    #[inline]
    fn put_run(&mut self, length: usize, run: &[u8], changed: Option<(&Page, usize)>) -> Option<usize> {
        // Two bytes of an ULEB128 number hold 14 bits, which is enough for the length of a page.
        let count = run.len();
        let [low, high, ..] = (count & 0x7f | count >> 7 << 8).to_le_bytes();
        let digits = if high == 0 { 1 } else { 2 };
        *self.bytes.get_mut(length..)?.first_chunk_mut()? = if high == 0 { [low, 0] } else { [low | 0x80, high] };
        let at = length + digits;
        let Some((page, start)) = changed else { return (at <= LONGEST).then_some(at) };
        let end = at + count;
        if end > LONGEST {
            return None;
        }
        let room = self.bytes.get_mut(at..)?;
        match (page.get(start..)?.first_chunk::<SHORT>(), room.first_chunk_mut::<SHORT>()) {
            (Some(bytes), Some(room)) if count <= SHORT => *room = *bytes,
            _ => room.get_mut(..count)?.copy_from_slice(run),
        }
        Some(end)
    }
}

/// Determines in which bytes two pages differ. Portable: vector instructions that some processors lack would need `unsafe`.
pub fn changed_bytes(old: &Page, new: &Page) -> ChangedBytes {
    let blocks = old.as_chunks().0.iter().zip(new.as_chunks().0);
    let mut masks = [0; _];
    for (mask, (old, new)) in masks.iter_mut().zip(blocks) {
        *mask = if old == new { 0 } else { differing(old, new) };
    }
    masks
}

/// A bit for each byte that differs.
fn differing(old: &[u8; BLOCK], new: &[u8; BLOCK]) -> u64 {
    // Compared in vectors, each byte that differs becomes one bit at its position in its group of eight; a multiplication adds
    // the eight bytes of a group in its highest byte.
    let mut bits = [0_u8; BLOCK];
    for (at, (bit, (old, new))) in bits.iter_mut().zip(old.iter().zip(new)).enumerate() {
        *bit = if old == new { 0 } else { 1 << (at % 8) };
    }
    let groups = bits.as_chunks::<8>().0.iter().rev();
    groups.fold(0, |mask, group| mask << 8 | u64::from_le_bytes(*group).wrapping_mul(0x0101_0101_0101_0101) >> 56)
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}
