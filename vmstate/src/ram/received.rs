//! The bitmap of received pages of a block, which a destination sends when post-copy continues over another connection.

use super::page_set::PageSet;
use crate::codec::Reader;
use crate::error::Result;

/// The end marker of a bitmap (`RAMBLOCK_RECV_BITMAP_ENDING`, migration/ram.c).
const BITMAP_ENDING: u64 = 0x0123_4567_89ab_cdef;
/// The size of a bitmap is a multiple of this many bytes, whatever the word size of either host.
const BITMAP_UNIT: u64 = 8;

/// Appends which pages of a block have arrived (`ramblock_recv_bitmap_send`, migration/ram.c): the length in bytes, a bit for
/// each page, the end marker. It must follow [`Returned::Bitmap`](crate::raw::stream::Returned::Bitmap).
pub fn put_received(received: &PageSet, out: &mut Vec<u8>) {
    let words = received.words();
    out.extend_from_slice(&(words.len() as u64 * BITMAP_UNIT).to_be_bytes());
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    out.extend_from_slice(&BITMAP_ENDING.to_be_bytes());
}

/// Reads a bitmap that [`put_received`] wrote, for a block of this many pages.
///
/// # Errors
/// `Malformed` for a bitmap of another length, or without its end marker.
pub fn read_received(input: &mut Reader<'_>, pages: u64) -> Result<PageSet> {
    let (expected, len) = (pages.div_ceil(u64::from(u64::BITS)) * BITMAP_UNIT, input.u64()?);
    if len != expected {
        return Err(input.malformed(format!("a bitmap of {expected} bytes expected, got {len}")));
    }
    let bytes = input.take(usize::try_from(len).unwrap_or(usize::MAX))?;
    if input.u64()? != BITMAP_ENDING {
        return Err(input.malformed("the ending of a bitmap of received pages expected"));
    }
    let mut received = PageSet::empty(pages);
    received.edit(|words| {
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
    });
    Ok(received)
}
