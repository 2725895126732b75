//! Arrays: values whose number the type says, one after the other, without a number on the wire.
//!
//! The elements of any row of values are saved and loaded by the loops in `array`. How they stand together is in `packing`: as
//! their own type says, as a `buffer`, as a `bitmap`. Which of an array's they are is in `slice`. Values of several types are a
//! `tuple`, bytes that mean nothing `unused`.

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
