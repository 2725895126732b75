//! The trait for types whose encoding an attribute of the field selects; the type may have no encoding of its own.

use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::{Count, Kind, Length};

/// A type to which an attribute can be applied. `Form` is the attribute's type, and its value holds the attribute's arguments.
///
/// The derived code requires only this trait of such a type, so that a type without it causes one compile error.
#[diagnostic::on_unimplemented(
    message = "the field's attribute is not for the type `{Self}`",
    note = "`buffer` is for `[u8; N]`, `bitmap` for `[u64; N]`, `slice` for any array",
    note = "`len` is for a `Vec`, an array or a boxed slice, with `buffer` of `u8`, with `bitmap` of `u64`",
    note = "`list` and `counted` are for a `Vec`, a `VecDeque` or a boxed slice, `counted` also for a `String`",
    note = "`map` is for a `BTreeMap`, a `HashMap` or a set, its keys being `Ord` and `Clone`",
    note = "what a collection holds has to be `vmstate::Wire` and `Default`"
)]
pub trait Coded<Form> {
    /// The copy that `undo` puts back.
    type Undo;
    /// The kind of the bytes; for elements, without their number.
    const KIND: Kind;
    /// The largest number of elements.
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

/// The number of elements that a field has memory for; for a bitmap, the number of bits.
#[derive(Clone, Copy, Debug)]
pub enum Room {
    /// Any number: memory is allocated on demand.
    Any,
    /// This many elements.
    Fixed(usize),
    /// A number that was fixed when the device was created.
    Made,
}

impl Room {
    /// The number of elements of an array.
    pub const fn elements(self) -> usize {
        match self {
            Self::Fixed(elements) => elements,
            Self::Any | Self::Made => 0,
        }
    }

    /// True if an array has the elements from `first` up to `end` (exclusive).
    pub const fn has(self, first: usize, end: usize) -> bool {
        first <= end && end <= self.elements()
    }

    /// The description's count for a field with `factor` elements for each unit of `length`, and at most `max` elements.
    pub const fn count(self, length: Option<Length>, factor: usize, max: usize) -> Count {
        let most = match self {
            Self::Fixed(elements) if elements < max => elements,
            _ => max,
        };
        Count::new(length, factor, most, matches!(self, Self::Made))
    }
}
