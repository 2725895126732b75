//! The bytes that an attribute gives a field's type, which may be none of the type's own.

use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::{Count, Kind, Length};

/// A type that an attribute can be put on. `Form` is the attribute, and its value is what the attribute says of the field.
///
/// The derived code asks for nothing of such a type but this one trait, so that a type that does not have it is one error.
#[diagnostic::on_unimplemented(
    message = "the field's attribute is not for the type `{Self}`",
    note = "`buffer` is for `[u8; N]`, `bitmap` for `[u64; N]`, `slice` for any array",
    note = "`len` is for a `Vec`, an array or a boxed slice, with `buffer` of `u8`, with `bitmap` of `u64`",
    note = "`list` and `counted` are for a `Vec`, a `VecDeque` or a boxed slice, `counted` also for a `String`",
    note = "`map` is for a `BTreeMap`, a `HashMap` or a set, its keys being `Ord` and `Clone`",
    note = "what a collection holds has to be `vmstate::Wire` and `Default`"
)]
pub trait Coded<Form> {
    /// All that is needed to put back the value.
    type Undo;
    /// What the bytes are; of elements without their number.
    const KIND: Kind;
    /// How many elements it can have at most.
    const ROOM: Room = Room::Any;

    /// Appends the value.
    fn save(&mut self, form: Form, out: &mut Writer) -> Result<()>;
    /// Replaces the value by the next one of `input`.
    fn load(&mut self, form: Form, input: &mut Reader<'_>) -> Result<()>;
    /// Copies out what a load or a hook may change.
    fn remember(&self) -> Self::Undo;
    /// Puts back what `remember` copied.
    fn undo(&mut self, undo: Self::Undo);
}

/// How many elements a field has memory for; of a bitmap, bits.
#[derive(Clone, Copy, Debug)]
pub enum Room {
    /// As many as are asked for.
    Any,
    /// This many elements.
    Fixed(usize),
    /// As many as were decided on when the device was made.
    Made,
}

impl Room {
    /// How many elements an array has.
    pub const fn elements(self) -> usize {
        match self {
            Self::Fixed(elements) => elements,
            Self::Any | Self::Made => 0,
        }
    }

    /// True if an array has the elements from `first` up to `end`.
    pub const fn has(self, first: usize, end: usize) -> bool {
        first <= end && end <= self.elements()
    }

    /// What the description says of a field that has `factor` elements for each that `length` counts, `max` at most.
    pub const fn count(self, length: Option<Length>, factor: usize, max: usize) -> Count {
        let most = match self {
            Self::Fixed(elements) if elements < max => elements,
            _ => max,
        };
        Count::new(length, factor, most, matches!(self, Self::Made))
    }
}
