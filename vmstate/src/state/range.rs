//! `#[vmstate(range = …)]`: integers of which only some values are allowed.

use std::fmt::{Debug, Display};
use std::ops::RangeBounds;

/// What `#[vmstate(range = …)]` can be put on.
#[diagnostic::on_unimplemented(message = "`range` needs an integer, `{Self}` is none")]
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

/// The verdict of `range`, for [`hook`](super::hook::hook).
pub fn in_range<T: Ranged, R: RangeBounds<T> + Debug>(value: &T, range: &R) -> Result<(), String> {
    if range.contains(value) { Ok(()) } else { Err(format!("{value} is not in {range:?}")) }
}
