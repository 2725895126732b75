//! Ordered collections. `list` has a byte `01` before each element and a byte `00` after the last (migration/vmstate-types.c,
//! `put_qtailq`). The caller supplies the function that saves or loads one element: by its own type, or by `via` or `with`.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::mem::{size_of, take};

use super::super::Wire;
use super::super::arrays::save_each;
use super::super::coded::Coded;
use super::super::hook::{HookError, refusal};
use super::super::numbers::{Prefix, at_most, outcome};
use super::super::support::KindOf;
use super::counted::{Elements, load_prefix, save_prefix};
use super::len::all_to_save;
use crate::codec::mark::{MORE, NO_MORE};
use crate::codec::{Reader, Strictness, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, MaybeStatic};

/// An ordered collection whose elements can be converted one by one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no collection whose elements `via` or `with` could make: that needs a `Vec`, a `VecDeque` or a boxed slice"
)]
pub trait Sequence {
    /// The type of the elements.
    type Element;

    /// Calls `act` with the elements in wire order, which `act` may change, and returns its result.
    fn with_vec<R>(&mut self, act: impl FnOnce(&mut Vec<Self::Element>) -> R) -> R;

    /// Appends the elements with a marker before each.
    fn save_list(
        &mut self,
        max: usize,
        out: &mut Writer,
        mut one: impl FnMut(&mut Self::Element, &mut Writer) -> Result<()>,
    ) -> Result<()> {
        self.with_vec(|elements| {
            out.outcome(at_most(elements.len(), max)?);
            save_each(elements, out, |element, out| {
                out.u8(MORE);
                one(element, out)
            })?;
            out.u8(NO_MORE);
            Ok(())
        })
    }

    /// Replaces the elements by those of `input`, each with a marker before it; `one` gets the index of the element to load.
    fn load_list(
        &mut self,
        max: usize,
        input: &mut Reader<'_>,
        mut one: impl FnMut(&mut Vec<Self::Element>, usize, &mut Reader<'_>) -> Result<()>,
    ) -> Result<()> {
        self.with_vec(|elements| {
            let mut count = 0;
            while more(input)? {
                if count == max {
                    return Err(input.malformed(format!("more than {max} elements")));
                }
                input.charge(size_of::<Self::Element>())?;
                one(elements, count, input).map_err(|error| error.in_element(count))?;
                count += 1;
            }
            elements.truncate(count);
            Ok(())
        })
    }

    /// Appends the elements, whose number must be that of the length field.
    fn save_len(
        &mut self,
        count: usize,
        out: &mut Writer,
        one: impl FnMut(&mut Self::Element, &mut Writer) -> Result<()>,
    ) -> Result<()> {
        self.with_vec(|elements| {
            let sent = all_to_save(elements, count)?;
            out.outcome(outcome(count)?);
            save_each(sent, out, one)
        })
    }

    /// Replaces the elements by `count` elements of `input`; `one` gets the index of the element to load.
    fn load_len(
        &mut self,
        count: usize,
        input: &mut Reader<'_>,
        mut one: impl FnMut(&mut Vec<Self::Element>, usize, &mut Reader<'_>) -> Result<()>,
    ) -> Result<()> {
        self.with_vec(|elements| {
            for index in 0..count {
                input.charge(size_of::<Self::Element>())?;
                one(elements, index, input).map_err(|error| error.in_element(index))?;
            }
            elements.truncate(count);
            Ok(())
        })
    }

    /// Appends the number of elements and then the elements, in the encoding of `counted`.
    fn save_counted<L: Prefix>(
        &mut self,
        max: usize,
        out: &mut Writer,
        one: impl FnMut(&mut Self::Element, &mut Writer) -> Result<()>,
    ) -> Result<()> {
        self.with_vec(|elements| {
            save_prefix::<L>(elements.len(), max, out)?;
            save_each(elements, out, one)
        })
    }

    /// Replaces the elements by as many as the number before them says, in the encoding of `counted`.
    fn load_counted<L: Prefix>(
        &mut self,
        max: usize,
        input: &mut Reader<'_>,
        one: impl FnMut(&mut Vec<Self::Element>, usize, &mut Reader<'_>) -> Result<()>,
    ) -> Result<()> {
        let count = load_prefix::<L>(max, input)?;
        self.load_len(count, input, one)
    }
}

impl<T> Sequence for Vec<T> {
    type Element = T;

    #[inline]
    fn with_vec<R>(&mut self, act: impl FnOnce(&mut Vec<T>) -> R) -> R {
        act(self)
    }
}

macro_rules! made_of_a_vec {
    ($($type:ty),*) => {$(
        impl<T> Sequence for $type {
            type Element = T;

            fn with_vec<R>(&mut self, act: impl FnOnce(&mut Vec<T>) -> R) -> R {
                let mut elements = Vec::from(take(self));
                let outcome = act(&mut elements);
                // Done after an error, too: an undo needs the elements that are there.
                *self = elements.into();
                outcome
            }
        }
    )*};
}

made_of_a_vec!(VecDeque<T>, Box<[T]>);

/// Elements with a marker before each, at most this many.
#[derive(Debug)]
pub struct List(pub usize);

macro_rules! list {
    ($($type:ty),*) => {$(
        /// Elements are loaded in place and new ones start from their default, so that fields which an element skips keep their
        /// values.
        impl<T: Wire + Default> Coded<List> for $type {
            type Undo = Vec<T::Undo>;
            const KIND: Kind = Kind::List(MaybeStatic::Static(KindOf::<T>::REF));

            fn save(&mut self, List(max): List, out: &mut Writer) -> Result<()> {
                self.save_list(max, out, T::save)
            }

            fn load(&mut self, List(max): List, input: &mut Reader<'_>) -> Result<()> {
                self.load_list(max, input, own)
            }

            fn remember(&self) -> Self::Undo {
                remember_each(self)
            }

            fn undo(&mut self, undo: Self::Undo) {
                undo_each(self, undo);
            }
        }
    )*};
}

list!(Vec<T>, VecDeque<T>, Box<[T]>);

/// Loads element `index` by its own type, in place; a new element starts from its default.
fn own<T: Wire + Default>(elements: &mut Vec<T>, index: usize, input: &mut Reader<'_>) -> Result<()> {
    if index == elements.len() {
        elements.push(T::default());
    }
    elements.get_mut(index).map_or(Ok(()), |element| element.load(input))
}

/// The undo values of all elements. Not generic over the field: one copy of the code for each element type.
#[inline(never)]
pub(super) fn remember_each<'a, T: Wire + 'a>(elements: impl IntoIterator<Item = &'a T>) -> Vec<T::Undo> {
    elements.into_iter().map(T::remember).collect()
}

/// Restores the number of elements and each element in place.
#[inline(never)]
pub(super) fn undo_each<T: Wire + Default>(value: &mut impl Sequence<Element = T>, undo: Vec<T::Undo>) {
    value.with_vec(|elements| {
        elements.resize_with(undo.len(), T::default);
        elements.iter_mut().zip(undo).for_each(|(element, undo)| element.undo(undo));
    });
}

/// Replaces an element by the result of `make`, which gets the element at that index, if there is one.
pub fn made<T>(
    mut make: impl FnMut(Option<&T>, &mut Reader<'_>) -> Result<T>,
) -> impl FnMut(&mut Vec<T>, usize, &mut Reader<'_>) -> Result<()> {
    move |elements, index, input| {
        let made = make(elements.get(index), input)?;
        match elements.get_mut(index) {
            Some(place) => *place = made,
            None => elements.push(made),
        }
        Ok(())
    }
}

/// Loads the next `T` as a `P` and converts it; the `P` starts from the element at that index, if there is one.
pub fn make_via<T, P>(held: Option<&T>, input: &mut Reader<'_>) -> Result<T>
where
    P: Wire + Default + for<'a> From<&'a T>,
    T: TryFrom<P, Error: Into<HookError>>,
{
    let offset = input.offset();
    let mut proxy = held.map_or_else(P::default, |held| P::from(held));
    proxy.load(input)?;
    T::try_from(proxy).map_err(|refused| refusal(refused.into(), "via").at(offset))
}

/// A counted number of elements of the type `P`.
#[derive(Debug)]
pub struct ManyOf<P>(PhantomData<P>);

impl<P: Wire> Elements for ManyOf<P> {
    const KIND: Kind = Kind::CountedArray(MaybeStatic::Static(KindOf::<P>::REF));
}

/// Reads a marker; true if an element follows. QEMU takes any byte but 0 for true (`get_qtailq`); a strict load takes only 1.
pub(super) fn more(input: &mut Reader<'_>) -> Result<bool> {
    let offset = input.offset();
    match (input.u8()?, input.strictness()) {
        (NO_MORE, _) => Ok(false),
        (MORE, _) | (_, Strictness::QemuCompatible) => Ok(true),
        (other, Strictness::Strict) => {
            let message = format!("1 comes before an element and 0 behind the last, got {other}");
            Err(Error::new(ErrorKind::Malformed, message).at(offset))
        }
    }
}
