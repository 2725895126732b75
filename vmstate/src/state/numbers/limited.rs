//! Integers of which only some values are allowed: because of `#[vmstate(range = …)]`; because the field's type has fewer values
//! than the type on the wire (`wire = …`); because of the device's current value (`equal`, `at_most_current`); or because they
//! count elements (`len`).

use std::any::type_name;
use std::fmt::{Debug, Display};
use std::ops::RangeBounds;

use super::super::Wire;
use super::super::support::KindOf;
use super::Integer;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, Limit, MaybeStatic};

/// The result of a `range` check, for [`hook`](super::super::hook::hook).
pub fn in_range<T: Integer, R: RangeBounds<T> + Debug>(value: &T, range: &R) -> Result<(), String> {
    if range.contains(value) { Ok(()) } else { Err(format!("{value} is not in {range:?}")) }
}

/// The kind of a `T` that is sent as a `W`.
pub const fn sent_as<T: Integer, W: Wire + Integer>() -> Kind {
    let first = if T::LOWEST > W::LOWEST { T::LOWEST } else { W::LOWEST };
    let last = if T::HIGHEST < W::HIGHEST { T::HIGHEST } else { W::HIGHEST };
    match first == W::LOWEST && last == W::HIGHEST {
        true => W::KIND,
        false => Kind::Limited(MaybeStatic::Static(KindOf::<W>::REF), Limit::Within(first, last)),
    }
}

/// Saves `value` as a `W`, if it fits.
#[inline]
pub fn save_as<T: Copy + Display + TryInto<W>, W: Wire>(value: T, out: &mut Writer) -> Result<()> {
    match value.try_into() {
        Ok(mut wire) => wire.save(out),
        Err(_) => Err(Error::new(ErrorKind::Rejected, format!("{value} does not fit {}", type_name::<W>()))),
    }
}

/// Loads a `W` into a field of another integer type.
#[inline]
pub fn load_as<T: TryFrom<W>, W: Wire + Integer>(value: &mut T, input: &mut Reader<'_>) -> Result<()> {
    let offset = input.offset();
    let wire = next::<W>(input)?;
    *value = T::try_from(wire).map_err(|_| {
        Error::new(ErrorKind::Malformed, format!("{wire} does not fit {}", type_name::<T>())).at(offset)
    })?;
    Ok(())
}

/// Loads a value that must equal the current one.
pub fn load_equal<T: Integer + Wire>(value: &T, input: &mut Reader<'_>) -> Result<()> {
    let offset = input.offset();
    let sent = next::<T>(input)?;
    if sent == *value {
        return Ok(());
    }
    Err(differs(format!("the stream has {sent}, this machine has {value}: configure both alike"), offset))
}

/// Appends a value that is not negative: a peer refuses negative ones whatever its current value is.
pub fn save_at_most<T: Integer + Wire>(value: &mut T, out: &mut Writer) -> Result<()> {
    if *value < T::default() {
        return Err(Error::new(ErrorKind::Rejected, format!("{value} is below 0, which no machine takes")));
    }
    value.save(out)
}

/// Loads a value from 0 to the current one, as QEMU's `VMSTATE_INT32_POSITIVE_LE`.
pub fn load_at_most<T: Integer + Wire>(value: &mut T, input: &mut Reader<'_>) -> Result<()> {
    let offset = input.offset();
    let sent = next::<T>(input)?;
    if sent < T::default() || sent > *value {
        return Err(differs(format!("the stream has {sent}, this machine takes 0 to {value}"), offset));
    }
    *value = sent;
    Ok(())
}

#[cold]
fn differs(message: String, offset: u64) -> Error {
    Error::new(ErrorKind::Incompatible, message).at(offset)
}

#[inline]
fn next<T: Integer + Wire>(input: &mut Reader<'_>) -> Result<T> {
    let mut value = T::default();
    value.load(input)?;
    Ok(value)
}

/// The number of elements to save: `factor` for each unit of the length field `field`.
#[inline]
pub fn count_to_save<L: Integer>(length: L, field: &'static str, factor: usize, max: usize) -> Result<usize> {
    counted(length, factor, max).ok_or_else(|| Error::new(ErrorKind::Rejected, too_many(length, field, factor, max)))
}

/// The number of elements to load: `factor` for each unit of the length field `field`. A number above `max` is refused.
#[inline]
pub fn count_to_load<L: Integer>(
    length: L,
    field: &'static str,
    factor: usize,
    max: usize,
    input: &Reader<'_>,
) -> Result<usize> {
    counted(length, factor, max).ok_or_else(|| input.malformed(too_many(length, field, factor, max)))
}

#[inline]
fn counted<L: Integer>(length: L, factor: usize, max: usize) -> Option<usize> {
    let count = length.try_into().ok()?.checked_mul(factor)?;
    (count <= max).then_some(count)
}

#[cold]
fn too_many(length: impl Display, field: &str, factor: usize, max: usize) -> String {
    let times = if factor == 1 { String::new() } else { format!(" times {factor}") };
    format!("{field} is {length}{times}, from 0 to {max} elements are allowed")
}

/// The number of elements of a save; refuses a number above `max`, which the peer would refuse, too.
pub(in super::super) fn at_most(count: usize, max: usize) -> Result<u32> {
    if count > max {
        let message = format!("it holds {count}, from 0 to {max} elements are allowed");
        return Err(Error::new(ErrorKind::Rejected, message));
    }
    outcome(count)
}

/// A count, as the outcome that a save records.
#[inline]
pub(in super::super) fn outcome(count: usize) -> Result<u32> {
    u32::try_from(count)
        .map_err(|_| Error::new(ErrorKind::Rejected, format!("{count} elements do not fit the self-description")))
}
