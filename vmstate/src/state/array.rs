//! Fixed arrays: elements concatenated, no count on the wire.

use super::Wire;
use super::keep::{Keeps, OnHeap, Whole};
use super::support::KindOf;
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::{Kind, MaybeStatic};

impl<T: Wire, const N: usize> Wire for [T; N] {
    // On the heap, as N may be any number. The derive keeps small arrays in place.
    type Undo = <OnHeap<Whole> as Keeps<Self>>::Kept;
    const KIND: Kind = Kind::Array(MaybeStatic::Static(KindOf::<T>::REF), N);

    #[inline]
    fn save(&mut self, out: &mut Writer) -> Result<()> {
        T::save_all(self, out)
    }

    #[inline]
    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        T::load_all(self, input)
    }

    fn remember(&self) -> Self::Undo {
        <OnHeap<Whole> as Keeps<Self>>::remember(self)
    }

    fn undo(&mut self, undo: Self::Undo) {
        <OnHeap<Whole> as Keeps<Self>>::undo(self, undo);
    }
}

/// Saves element after element.
#[inline]
pub(super) fn save_each<T: Wire>(elements: &mut [T], out: &mut Writer) -> Result<()> {
    for (index, element) in elements.iter_mut().enumerate() {
        element.save(out).map_err(|error| error.in_element(index))?;
    }
    Ok(())
}

/// Loads element after element, in place.
#[inline]
pub(super) fn load_each<T: Wire>(elements: &mut [T], input: &mut Reader<'_>) -> Result<()> {
    for (index, element) in elements.iter_mut().enumerate() {
        element.load(input).map_err(|error| error.in_element(index))?;
    }
    Ok(())
}
