//! `[T; N]`: the elements one after another, without a count on the wire.

use super::super::Wire;
use super::super::keep::{Keeps, OnHeap, Whole};
use super::super::support::KindOf;
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::{Kind, MaybeStatic};

impl<T: Wire, const N: usize> Wire for [T; N] {
    // On the heap, as N may be any number. The derive keeps small arrays in place instead.
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

/// Appends each element of an array with the function `one`.
pub fn save_array_of<T, const N: usize>(
    values: &mut [T; N],
    out: &mut Writer,
    one: impl FnMut(&mut T, &mut Writer) -> Result<()>,
) -> Result<()> {
    save_each(values, out, one)
}

/// Replaces each element of an array with the function `one`.
pub fn load_array_of<T, const N: usize>(
    values: &mut [T; N],
    input: &mut Reader<'_>,
    one: impl FnMut(&mut T, &mut Reader<'_>) -> Result<()>,
) -> Result<()> {
    load_each(values, input, one)
}

/// Saves one element after another.
#[inline]
pub(in super::super) fn save_each<T>(
    elements: &mut [T],
    out: &mut Writer,
    mut one: impl FnMut(&mut T, &mut Writer) -> Result<()>,
) -> Result<()> {
    for (index, element) in elements.iter_mut().enumerate() {
        one(element, out).map_err(|error| error.in_element(index))?;
    }
    Ok(())
}

/// Loads one element after another, in place.
#[inline]
pub(in super::super) fn load_each<T>(
    elements: &mut [T],
    input: &mut Reader<'_>,
    mut one: impl FnMut(&mut T, &mut Reader<'_>) -> Result<()>,
) -> Result<()> {
    for (index, element) in elements.iter_mut().enumerate() {
        one(element, input).map_err(|error| error.in_element(index))?;
    }
    Ok(())
}
