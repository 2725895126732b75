//! Vectors and arrays of which as many elements are sent as an earlier field says: the count is not sent again.

use std::mem::size_of;

use super::super::Wire;
use super::super::numbers::outcome;
use super::super::support::KindOf;
use super::sequence::{remember_each, undo_each};
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Count, Kind, Length, MaybeStatic};

/// What `#[vmstate(len = …)]` can be put on.
#[diagnostic::on_unimplemented(
    message = "`len` needs a `Vec`, an array or a boxed slice of something that can be migrated, `{Self}` is not",
    note = "the elements must implement `vmstate::Wire`, those of a `Vec` or boxed slice also `Default`"
)]
pub trait Counted {
    /// What there are as many of as the length says.
    type Element: Wire;
    /// All that is needed to put back the value.
    type Undo;
    /// What the bytes are.
    const KIND: Kind = Kind::CountedArray(MaybeStatic::Static(KindOf::<Self::Element>::REF));
    /// How many elements it can have at most.
    const ROOM: Room = Room::Any;

    /// The `count` elements to save.
    fn sent(&mut self, count: usize) -> Result<&mut [Self::Element]>;
    /// The `count` elements to load into, made if need be.
    fn room(&mut self, count: usize, input: &mut Reader<'_>) -> Result<&mut [Self::Element]>;
    /// Copies out what a load or a hook may change.
    fn remember(&self) -> Self::Undo;
    /// Puts back what `remember` copied.
    fn undo(&mut self, undo: Self::Undo);

    /// Appends `count` elements.
    fn save(&mut self, count: usize, out: &mut Writer) -> Result<()> {
        let sent = self.sent(count)?;
        out.outcome(outcome(count)?);
        Self::Element::save_all(sent, out)
    }

    /// Replaces `count` elements by those of `input`.
    fn load(&mut self, count: usize, input: &mut Reader<'_>) -> Result<()> {
        Self::Element::load_all(self.room(count, input)?, input)
    }
}

/// How many elements a counted field has memory for.
#[derive(Clone, Copy, Debug)]
pub enum Room {
    /// As many as are asked for.
    Any,
    /// So many.
    Fixed(usize),
    /// As many as were decided on when the device was made.
    Made,
}

/// What the description says of a field with `room` that has, for each that `length` counts, `factor` elements, `max` at
/// most. The derive passes [`Counted::ROOM`]: asked for here, an unsupported type would be an error a second time.
pub const fn counted(room: Room, length: Option<Length>, factor: usize, max: usize) -> Count {
    within(room, length, factor, max, 1)
}

/// As [`counted`], of a bitmap in words: its elements are bits.
pub const fn counted_bits(room: Room, length: Option<Length>, factor: usize, max: usize) -> Count {
    within(room, length, factor, max, 64)
}

const fn within(room: Room, length: Option<Length>, factor: usize, max: usize, each: usize) -> Count {
    let most = match room {
        Room::Fixed(elements) if elements.saturating_mul(each) < max => elements.saturating_mul(each),
        _ => max,
    };
    Count::new(length, factor, most, matches!(room, Room::Made))
}

/// All elements are sent. They are loaded in place, new ones start from their default: what they skip survives a load.
impl<T: Wire + Default> Counted for Vec<T> {
    type Element = T;
    type Undo = Vec<T::Undo>;

    fn sent(&mut self, count: usize) -> Result<&mut [T]> {
        if self.len() != count {
            let message = format!("its length field says {count}, but it holds {}", self.len());
            return Err(Error::new(ErrorKind::Rejected, message));
        }
        Ok(self)
    }

    fn room(&mut self, count: usize, input: &mut Reader<'_>) -> Result<&mut [T]> {
        input.charge(count.saturating_mul(size_of::<T>()))?;
        self.resize_with(count, T::default);
        Ok(self)
    }

    fn remember(&self) -> Self::Undo {
        remember_each(self.iter())
    }

    fn undo(&mut self, undo: Self::Undo) {
        undo_each(self, undo);
    }
}

/// The first elements, as many as the length says, are on the wire; the others are left as they are (QEMU's
/// `VMSTATE_STRUCT_VARRAY_UINT8`, which does not check the capacity).
impl<T: Wire, const N: usize> Counted for [T; N] {
    type Element = T;
    type Undo = <[T; N] as Wire>::Undo;
    const ROOM: Room = Room::Fixed(N);

    fn sent(&mut self, count: usize) -> Result<&mut [T]> {
        first_to_save(self, count)
    }

    fn room(&mut self, count: usize, input: &mut Reader<'_>) -> Result<&mut [T]> {
        first_to_load(self, count, input)
    }

    fn remember(&self) -> Self::Undo {
        Wire::remember(self)
    }

    fn undo(&mut self, undo: Self::Undo) {
        Wire::undo(self, undo);
    }
}

/// As an array: memory of a size that was fixed when the device was made (QEMU's `VMSTATE_PARTIAL_VBUFFER`).
impl<T: Wire + Default> Counted for Box<[T]> {
    type Element = T;
    type Undo = Vec<T::Undo>;
    const ROOM: Room = Room::Made;

    fn sent(&mut self, count: usize) -> Result<&mut [T]> {
        first_to_save(self, count)
    }

    fn room(&mut self, count: usize, input: &mut Reader<'_>) -> Result<&mut [T]> {
        first_to_load(self, count, input)
    }

    fn remember(&self) -> Self::Undo {
        remember_each(self.iter())
    }

    fn undo(&mut self, undo: Self::Undo) {
        undo_each(self, undo);
    }
}

fn first_to_save<T>(elements: &mut [T], count: usize) -> Result<&mut [T]> {
    let capacity = elements.len();
    elements.get_mut(..count).ok_or_else(|| Error::new(ErrorKind::Rejected, too_many(count, capacity)))
}

fn first_to_load<'a, T>(elements: &'a mut [T], count: usize, input: &Reader<'_>) -> Result<&'a mut [T]> {
    let capacity = elements.len();
    elements.get_mut(..count).ok_or_else(|| input.malformed(too_many(count, capacity)))
}

fn too_many(count: usize, capacity: usize) -> String {
    format!("its length field says {count}, it has room for {capacity}")
}
