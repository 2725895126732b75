//! Lengths that are another field: the peer's word, believed up to a limit of ours.

use crate::codec::Reader;
use crate::error::{Error, ErrorKind, Result};

/// How many elements to save: `factor` for each that the length field `field` counts.
#[inline]
pub fn count_to_save<L: Length>(length: L, field: &'static str, factor: usize, max: usize) -> Result<usize> {
    length.bounded(field, factor, max).map_err(|message| Error::new(ErrorKind::Rejected, message))
}

/// How many elements to load: `factor` for each that the length field `field` counts.
#[inline]
pub fn count_to_load<L: Length>(
    length: L,
    field: &'static str,
    factor: usize,
    max: usize,
    input: &Reader<'_>,
) -> Result<usize> {
    length.bounded(field, factor, max).map_err(|message| input.malformed(message))
}

/// An integer that can be a length.
#[diagnostic::on_unimplemented(message = "the field that `len` names must be an integer, it is `{Self}`")]
pub trait Length: Sized {
    /// The length times `factor`, if it is not negative and the product not above `max`.
    fn bounded(self, field: &'static str, factor: usize, max: usize) -> Result<usize, String>;
}

macro_rules! length {
    ($($type:ty),*) => {$(
        impl Length for $type {
            #[inline]
            fn bounded(self, field: &'static str, factor: usize, max: usize) -> Result<usize, String> {
                match usize::try_from(self).ok().and_then(|length| length.checked_mul(factor)) {
                    Some(count) if count <= max => Ok(count),
                    _ if factor == 1 => Err(format!("{field} is {self}, from 0 to {max} elements are allowed")),
                    _ => Err(format!("{field} is {self} times {factor}, from 0 to {max} elements are allowed")),
                }
            }
        }
    )*};
}

length!(u8, u16, u32, u64, usize, i8, i16, i32, i64);

/// A count as a save's outcome.
#[inline]
pub(super) fn outcome(count: usize) -> Result<u32> {
    u32::try_from(count)
        .map_err(|_| Error::new(ErrorKind::Rejected, format!("{count} elements do not fit the self-description")))
}
