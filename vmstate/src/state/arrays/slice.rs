//! A constant range of an array's elements: `#[vmstate(slice = a..b)]` (QEMU's `VMSTATE_SUB_ARRAY`), and whole arrays with
//! `buffer` or `bitmap`.

use std::mem::forget;

use super::super::Wire;
use super::super::coded::{Coded, Room};
use super::Packing;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, MaybeStatic};

/// The elements from the first index up to the second (exclusive). The derive has checked that the indices are in order, and
/// within the array.
#[derive(Debug)]
pub struct Slice<P>(pub usize, pub usize, pub P);

impl<T: Wire, const N: usize, P: Packing<T>> Coded<Slice<P>> for [T; N] {
    type Undo = <Self as Wire>::Undo;
    const KIND: Kind = P::KIND;
    const ROOM: Room = Room::Fixed(N);

    #[inline]
    fn save(&mut self, Slice(first, end, _): Slice<P>, out: &mut Writer) -> Result<()> {
        let sent = part(self, first, end)?;
        P::save(sent, sent.len() * P::EACH, out)
    }

    #[inline]
    fn load(&mut self, Slice(first, end, _): Slice<P>, input: &mut Reader<'_>) -> Result<()> {
        let room = part(self, first, end)?;
        P::load(room, room.len() * P::EACH, input)
    }

    fn remember(&self) -> Self::Undo {
        Wire::remember(self)
    }

    fn undo(&mut self, undo: Self::Undo) {
        Wire::undo(self, undo);
    }
}

#[inline]
fn part<T, const N: usize>(elements: &mut [T; N], first: usize, end: usize) -> Result<&mut [T]> {
    elements
        .get_mut(first..end)
        .ok_or_else(|| Error::new(ErrorKind::Misuse, format!("{first}..{end} is not within {N} elements")))
}

/// The kind of the elements from `first` up to `end` (exclusive); `kind` is the kind for any number of them.
pub const fn slice(kind: Kind, first: usize, end: usize) -> Kind {
    let elements = end.saturating_sub(first);
    let fixed = match &kind {
        Kind::CountedArray(MaybeStatic::Static(element)) => Kind::Array(MaybeStatic::Static(*element), elements),
        Kind::CountedBitmap => Kind::Bitmap(elements * 64),
        _ => Kind::Buffer(elements),
    };
    // A constant function cannot drop it; it owns no memory.
    forget(kind);
    fixed
}
