//! Arrays: values whose number the type says, one after the other, without a number on the wire.
//!
//! The elements of any row of values are saved and loaded by the loops in `array`. What a field's attributes make of one is in the
//! file of that name: `slice`, `buffer`, `bitmap`, the latter two also with `len`. Values of several types are a `tuple`, bytes that
//! mean nothing `unused`.

mod array;
mod bitmap;
mod buffer;
mod slice;
mod tuple;
mod unused;

pub use array::{load_array_of, save_array_of};
pub(super) use array::{load_each, save_each};
pub use bitmap::{Bitmap, CountedBitmap};
pub use buffer::{Buffer, CountedBuffer};
pub use slice::{Sliced, buffer_slice, fits, slice};
pub use unused::Unused;
