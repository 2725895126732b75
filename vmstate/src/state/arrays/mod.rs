//! Arrays: a number of values that the type fixes, one after another, without a count on the wire.
//!
//! The loops in `array` save and load the elements of any sequence. `packing` defines their encoding: that of the element's type,
//! a `buffer`, or a `bitmap`. `slice` selects a range of an array. `tuple` has values of several types, `unused` has bytes
//! without meaning.

mod array;
mod bitmap;
mod buffer;
mod packing;
mod slice;
mod tuple;
mod unused;

pub use array::{load_array_of, save_array_of};
pub(super) use array::{load_each, save_each};
pub use bitmap::Bitmap;
pub use buffer::Buffer;
pub use packing::{Own, Packing};
pub use slice::{Slice, slice};
pub use unused::Unused;
