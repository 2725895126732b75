//! Which pages of a block have come, as a destination tells it when post-copy goes on over another connection.

use super::page_set::PageSet;
use crate::codec::Reader;
use crate::error::Result;

/// What ends a bitmap (`RAMBLOCK_RECV_BITMAP_ENDING`, migration/ram.c).
const BITMAP_ENDING: u64 = 0x0123_4567_89ab_cdef;
/// Bytes to a multiple of which a bitmap is filled up, whatever the size of a word is on either host.
const BITMAP_UNIT: u64 = 8;

/// Appends which pages of a block have come (`ramblock_recv_bitmap_send`, migration/ram.c): the length in bytes, a bit for each page, the
/// ending. Belongs behind [`Returned::Bitmap`](crate::raw::stream::Returned::Bitmap).
pub fn put_received(received: &PageSet, out: &mut Vec<u8>) {
    let words = received.words();
    out.extend_from_slice(&(words.len() as u64 * BITMAP_UNIT).to_be_bytes());
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    out.extend_from_slice(&BITMAP_ENDING.to_be_bytes());
}

/// Reads what [`put_received`] wrote, of a block of so many pages.
///
/// # Errors
/// `Malformed` for a bitmap of another length, or without its ending.
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
