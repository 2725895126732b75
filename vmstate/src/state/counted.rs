//! Vectors and arrays of which as many elements are sent as an earlier field says: the count is not sent again.

use std::mem::size_of;

use super::Wire;
use super::support::KindOf;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, Shared};

/// What `#[vmstate(len = …)]` can be put on.
#[diagnostic::on_unimplemented(
    message = "`len` needs a `Vec` or an array of something that can be migrated, `{Self}` is not",
    note = "the elements must implement `vmstate::Wire`, those of a `Vec` also `Default`"
)]
pub trait Counted {
    /// All that is needed to put back the value.
    type Undo;
    /// What the bytes are.
    const KIND: Kind;

    /// Appends `count` elements.
    fn save(&mut self, count: usize, out: &mut Writer) -> Result<()>;
    /// Replaces the value by `count` elements of `input`.
    fn load(&mut self, count: usize, input: &mut Reader<'_>) -> Result<()>;
    /// Copies out what a load or a hook may change.
    fn remember(&self) -> Self::Undo;
    /// Puts back what `remember` copied.
    fn undo(&mut self, undo: Self::Undo);
}

/// Elements are loaded in place, new ones start from their default: what they skip survives a load.
impl<T: Wire + Default> Counted for Vec<T> {
    type Undo = Vec<T::Undo>;
    const KIND: Kind = Kind::CountedArray(Shared::Static(KindOf::<T>::REF));

    fn save(&mut self, count: usize, out: &mut Writer) -> Result<()> {
        same_length(self.len(), count)?;
        out.outcome(outcome(count)?);
        T::save_all(self, out)
    }

    fn load(&mut self, count: usize, input: &mut Reader<'_>) -> Result<()> {
        input.charge(count.saturating_mul(size_of::<T>()))?;
        self.resize_with(count, T::default);
        T::load_all(self, input)
    }

    fn remember(&self) -> Self::Undo {
        self.iter().map(T::remember).collect()
    }

    fn undo(&mut self, undo: Self::Undo) {
        self.resize_with(undo.len(), T::default);
        for (element, undo) in self.iter_mut().zip(undo) {
            element.undo(undo);
        }
    }
}

/// The first elements, as many as the length says, are on the wire; the others are left as they are (QEMU's
/// `VMSTATE_STRUCT_VARRAY_UINT8`, which does not check the capacity).
impl<T: Wire, const N: usize> Counted for [T; N] {
    type Undo = [T::Undo; N];
    const KIND: Kind = Kind::CountedArray(Shared::Static(KindOf::<T>::REF));

    fn save(&mut self, count: usize, out: &mut Writer) -> Result<()> {
        let sent = self.get_mut(..count).ok_or_else(|| Error::new(ErrorKind::Rejected, too_many(count, N)))?;
        out.outcome(outcome(count)?);
        T::save_all(sent, out)
    }

    fn load(&mut self, count: usize, input: &mut Reader<'_>) -> Result<()> {
        let sent = self.get_mut(..count).ok_or_else(|| input.malformed(too_many(count, N)))?;
        T::load_all(sent, input)
    }

    fn remember(&self) -> Self::Undo {
        Wire::remember(self)
    }

    fn undo(&mut self, undo: Self::Undo) {
        Wire::undo(self, undo);
    }
}

fn too_many(count: usize, capacity: usize) -> String {
    format!("its length field says {count}, it has room for {capacity}")
}

/// `#[vmstate(buffer)]` with `len`: raw bytes, as many as the length field says.
pub mod bytes {
    use super::*;

    /// As [`Counted::save`].
    pub fn save(bytes: &[u8], count: usize, out: &mut Writer) -> Result<()> {
        same_length(bytes.len(), count)?;
        out.outcome(outcome(count)?);
        out.bytes(bytes);
        Ok(())
    }

    /// As [`Counted::load`].
    pub fn load(bytes: &mut Vec<u8>, count: usize, input: &mut Reader<'_>) -> Result<()> {
        input.charge(count)?;
        let taken = input.take(count)?;
        bytes.clear();
        bytes.extend_from_slice(taken);
        Ok(())
    }
}

/// A length field's value as a count of elements to save.
#[inline]
pub fn count_to_save<L: Length>(length: L, field: &'static str, max: usize) -> Result<usize> {
    length.bounded(field, max).map_err(|message| Error::new(ErrorKind::Rejected, message))
}

/// A length field's value as a count of elements to load: the peer's word, believed up to `max`.
#[inline]
pub fn count_to_load<L: Length>(length: L, field: &'static str, max: usize, input: &Reader<'_>) -> Result<usize> {
    length.bounded(field, max).map_err(|message| input.malformed(message))
}

/// An integer that can be a length.
#[diagnostic::on_unimplemented(message = "the field that `len` names must be an integer, it is `{Self}`")]
pub trait Length: Sized {
    /// The length, if it is not negative and not above `max`.
    fn bounded(self, field: &'static str, max: usize) -> Result<usize, String>;
}

macro_rules! length {
    ($($type:ty),*) => {$(
        impl Length for $type {
            #[inline]
            fn bounded(self, field: &'static str, max: usize) -> Result<usize, String> {
                match usize::try_from(self) {
                    Ok(count) if count <= max => Ok(count),
                    _ => Err(format!("{field} is {self}, from 0 to {max} elements are allowed")),
                }
            }
        }
    )*};
}

length!(u8, u16, u32, u64, usize, i8, i16, i32, i64);

#[inline]
fn same_length(held: usize, count: usize) -> Result<()> {
    if held == count {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Rejected, format!("its length field says {count}, but it holds {held}")))
}

#[inline]
fn outcome(count: usize) -> Result<u32> {
    u32::try_from(count)
        .map_err(|_| Error::new(ErrorKind::Rejected, format!("{count} elements do not fit the self-description")))
}
