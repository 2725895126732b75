//! `#[vmstate(bitmap)]`: bits in big-endian words of 64, the first bit being the lowest of the first word
//! (migration/vmstate-types.c, `put_bitmap`).

use super::Packing;
use crate::codec::{Reader, Strictness, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Kind;
use crate::state::Wire;

/// Words of bits; a length counts the bits.
///
/// Bits beyond the length, in the last word, have no meaning and are sent as 0. QEMU sends them as they are in memory, so a
/// QEMU-compatible load clears them, and a strict load refuses them if any is set.
#[derive(Debug)]
pub struct Bitmap;

impl Packing<u64> for Bitmap {
    const KIND: Kind = Kind::CountedBitmap;
    const EACH: usize = 64;

    fn save(words: &mut [u64], bits: usize, out: &mut Writer) -> Result<()> {
        let Some((last, whole)) = words.split_last_mut() else { return Ok(()) };
        u64::save_all(whole, out)?;
        out.u64(*last & last_word(bits));
        Ok(())
    }

    fn load(words: &mut [u64], bits: usize, input: &mut Reader<'_>) -> Result<()> {
        let Some((last, whole)) = words.split_last_mut() else { return Ok(()) };
        u64::load_all(whole, input)?;
        *last = load_last(bits, input).map_err(|error| error.in_element(whole.len()))?;
        Ok(())
    }
}

/// The lowest bits of the last word, of which the bitmap has `bits`.
const fn last_word(bits: usize) -> u64 {
    match bits % 64 {
        0 => u64::MAX,
        used => (1 << used) - 1,
    }
}

fn load_last(bits: usize, input: &mut Reader<'_>) -> Result<u64> {
    let offset = input.offset();
    let word = input.u64()?;
    let used = word & last_word(bits);
    if used != word && input.strictness() == Strictness::Strict {
        let message = format!("{word:#x} has bits set beyond the {bits} of this bitmap");
        return Err(Error::new(ErrorKind::Malformed, message).at(offset));
    }
    Ok(used)
}
