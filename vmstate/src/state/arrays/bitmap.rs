//! `#[vmstate(bitmap)]`: bits in big-endian words of 64, the first bit being the lowest of the first word
//! (migration/vmstate-types.c, `put_bitmap`).

use super::super::Wire;
use super::super::collections::Counted;
use super::super::numbers::outcome;
use crate::codec::{Reader, Strictness, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Kind;

/// Types that `#[vmstate(bitmap)]` can be put on without `len`.
#[diagnostic::on_unimplemented(message = "`bitmap` needs `[u64; N]`, or `Vec<u64>` with `len`; `{Self}` is neither")]
pub trait Bitmap: Wire {
    /// What the bytes are.
    const BITS: Kind;
}

impl<const N: usize> Bitmap for [u64; N] {
    const BITS: Kind = Kind::Bitmap(64 * N);
}

/// Types that `#[vmstate(bitmap)]` can be put on with `len`, which counts bits.
///
/// Bits beyond the length, in the last word, mean nothing: they are sent as 0. QEMU sends them as they are in memory, so a
/// QEMU-compatible load clears them, and a strict one refuses any that is set.
#[diagnostic::on_unimplemented(
    message = "`bitmap` with `len` needs `Vec<u64>`, `[u64; N]` or `Box<[u64]>`; `{Self}` is none of them"
)]
pub trait CountedBitmap {
    /// Appends `bits` bits.
    fn save(&mut self, bits: usize, out: &mut Writer) -> Result<()>;
    /// Replaces `bits` bits.
    fn load(&mut self, bits: usize, input: &mut Reader<'_>) -> Result<()>;
}

macro_rules! counted_bitmap {
    ($([$($generics:tt)*] $type:ty),*) => {$(
        impl<$($generics)*> CountedBitmap for $type {
            fn save(&mut self, bits: usize, out: &mut Writer) -> Result<()> {
                let sent = self.sent(bits.div_ceil(64))?;
                out.outcome(outcome(bits)?);
                let Some((last, whole)) = sent.split_last_mut() else { return Ok(()) };
                u64::save_all(whole, out)?;
                out.u64(*last & last_word(bits));
                Ok(())
            }

            fn load(&mut self, bits: usize, input: &mut Reader<'_>) -> Result<()> {
                let room = self.room(bits.div_ceil(64), input)?;
                let Some((last, whole)) = room.split_last_mut() else { return Ok(()) };
                u64::load_all(whole, input)?;
                *last = load_last(bits, input).map_err(|error| error.in_element(whole.len()))?;
                Ok(())
            }
        }
    )*};
}

counted_bitmap!([] Vec<u64>, [] Box<[u64]>, [const N: usize] [u64; N]);

/// The bits of the last word that are among the first `bits`.
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
