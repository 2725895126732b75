//! Integers of which only some values are allowed: by `#[vmstate(range = …)]`, or because the field's type has fewer than the
//! wire's (`#[vmstate(wire = …)]`).

use std::fmt::{Debug, Display};
use std::ops::RangeBounds;

use super::Wire;
use super::support::KindOf;
use crate::schema::{Kind, Limit, MaybeStatic};

/// What `#[vmstate(range = …)]` and `#[vmstate(wire = …)]` can be put on.
#[diagnostic::on_unimplemented(message = "`range` and `wire` need an integer, `{Self}` is none")]
pub trait Ranged: PartialOrd + Display {
    /// The lowest value.
    const LOWEST: i128;
    /// The highest value.
    const HIGHEST: i128;
}

macro_rules! ranged {
    ($($type:ty),*) => {$(
        impl Ranged for $type {
            const LOWEST: i128 = <$type>::MIN as i128;
            const HIGHEST: i128 = <$type>::MAX as i128;
        }
    )*};
}

ranged!(u8, u16, u32, u64, usize, i8, i16, i32, i64, isize);

/// The kind of a `T` that is a `W` on the wire.
pub const fn sent_as<T: Ranged, W: Wire + Ranged>() -> Kind {
    let first = if T::LOWEST > W::LOWEST { T::LOWEST } else { W::LOWEST };
    let last = if T::HIGHEST < W::HIGHEST { T::HIGHEST } else { W::HIGHEST };
    match first == W::LOWEST && last == W::HIGHEST {
        true => W::KIND,
        false => Kind::Limited(MaybeStatic::Static(KindOf::<W>::REF), Limit::Within(first, last)),
    }
}

/// The verdict of `range`, for [`hook`](super::hook::hook).
pub fn in_range<T: Ranged, R: RangeBounds<T> + Debug>(value: &T, range: &R) -> Result<(), String> {
    if range.contains(value) { Ok(()) } else { Err(format!("{value} is not in {range:?}")) }
}
