//! Integers that both sides know before the load: what the stream says is compared with what the device has.

use std::fmt::Display;

use super::Wire;
use super::support::KindOf;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, Limit, MaybeStatic};

/// What `#[vmstate(equal)]` and `#[vmstate(at_most_current)]` can be put on.
#[diagnostic::on_unimplemented(message = "`equal` and `at_most_current` need an integer, `{Self}` is none")]
pub trait Current: Wire + Copy + Ord + Default + Display {
    /// The kind of a field that must be equal.
    const EQUAL: Kind;
    /// The kind of a field that must not be above the current value.
    const AT_MOST: Kind;
}

macro_rules! current {
    ($($type:ty),*) => {$(
        impl Current for $type {
            const EQUAL: Kind = Kind::Limited(MaybeStatic::Static(KindOf::<$type>::REF), Limit::Equal);
            const AT_MOST: Kind = Kind::Limited(MaybeStatic::Static(KindOf::<$type>::REF), Limit::AtMostCurrent);
        }
    )*};
}

current!(u8, u16, u32, u64, i8, i16, i32, i64);

/// Takes a value that must be the current one.
pub fn load_equal<T: Current>(value: &T, input: &mut Reader<'_>) -> Result<()> {
    let offset = input.offset();
    let mut sent = T::default();
    sent.load(input)?;
    if sent == *value {
        return Ok(());
    }
    Err(differs(format!("the stream has {sent}, this machine has {value}: configure both alike"), offset))
}

/// Appends a value that is not negative: a peer refuses any other, whatever it has itself.
pub fn save_at_most<T: Current>(value: &mut T, out: &mut Writer) -> Result<()> {
    if *value < T::default() {
        return Err(Error::new(ErrorKind::Rejected, format!("{value} is below 0, which no machine takes")));
    }
    value.save(out)
}

/// Loads a value from 0 to the current one, as QEMU's `VMSTATE_INT32_POSITIVE_LE`.
pub fn load_at_most<T: Current>(value: &mut T, input: &mut Reader<'_>) -> Result<()> {
    let offset = input.offset();
    let mut sent = T::default();
    sent.load(input)?;
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
