//! `#[vmstate(len = …)]`: vectors and arrays whose number of elements is in an earlier field and not sent again.

use std::mem::size_of;

use super::super::Wire;
use super::super::arrays::Packing;
use super::super::coded::{Coded, Room};
use super::super::numbers::outcome;
use super::sequence::{remember_each, undo_each};
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Kind;

/// The number of elements; for a bitmap, of bits.
#[derive(Debug)]
pub struct Len<P>(pub usize, pub P);

/// For each type: its room for elements, the elements to save, those to load into, and the undo value.
macro_rules! len {
    ($($(#[$doc:meta])* [$($generics:tt)*] $type:ty, $room:expr, $sent:expr, $loaded:expr, $undo:ty, $remember:expr, $put_back:expr;)*) => {$(
        $(#[$doc])*
        impl<$($generics)*, P: Packing<T>> Coded<Len<P>> for $type {
            type Undo = $undo;
            const KIND: Kind = P::KIND;
            const ROOM: Room = $room;

            fn save(&mut self, Len(count, _): Len<P>, out: &mut Writer) -> Result<()> {
                let sent = $sent(self, count.div_ceil(P::EACH))?;
                out.outcome(outcome(count)?);
                P::save(sent, count, out)
            }

            // Not generic over the field: one copy of the code for each type.
            #[inline(never)]
            fn load(&mut self, Len(count, _): Len<P>, input: &mut Reader<'_>) -> Result<()> {
                P::load($loaded(self, count.div_ceil(P::EACH), input)?, count, input)
            }

            fn remember(&self) -> Self::Undo {
                $remember(self)
            }

            fn undo(&mut self, undo: Self::Undo) {
                $put_back(self, undo);
            }
        }
    )*};
}

len! {
    /// All elements are sent. Elements are loaded in place and new ones start from their default, so that fields which an element
    /// skips keep their values.
    [T: Wire + Default] Vec<T>, Room::Any, all_to_save, as_many_to_load, Vec<T::Undo>, remember_each, undo_each;
    /// As many elements as the length says, from the first on, are on the wire; the others keep their values (QEMU's
    /// `VMSTATE_STRUCT_VARRAY_UINT8`, which does not check the capacity).
    [T: Wire, const N: usize] [T; N], Room::Fixed(N * P::EACH), first_to_save, first_to_load,
        <Self as Wire>::Undo, Wire::remember, Wire::undo;
    /// As for an array: the memory has a size that was fixed when the device was created (QEMU's `VMSTATE_PARTIAL_VBUFFER`).
    [T: Wire + Default] Box<[T]>, Room::Made, first_to_save, first_to_load, Vec<T::Undo>, remember_each, undo_each;
}

/// The elements, if their number is `count`.
pub(super) fn all_to_save<T>(elements: &mut [T], count: usize) -> Result<&mut [T]> {
    if elements.len() != count {
        let message = format!("its length field says {count}, but it holds {}", elements.len());
        return Err(Error::new(ErrorKind::Rejected, message));
    }
    Ok(elements)
}

/// `count` elements; missing ones are created.
pub(super) fn as_many_to_load<'a, T: Default>(
    elements: &'a mut Vec<T>,
    count: usize,
    input: &mut Reader<'_>,
) -> Result<&'a mut [T]> {
    input.charge(count.saturating_mul(size_of::<T>()))?;
    elements.resize_with(count, T::default);
    Ok(elements)
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
