//! `via` and `with` on the elements of a collection: each is made for the wire, and turned back, alone.
//!
//! The functions are told how one element is saved, and how one is loaded where the collection now holds another or none.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::mem::size_of;

use super::Wire;
use super::hook::{HookError, refusal};
use super::list::more;
use super::numbers::{Prefix, at_most, outcome};
use super::prefixed::{Elements, load_prefix, save_prefix};
use super::support::KindOf;
use crate::codec::mark::{MORE, NO_MORE};
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, MaybeStatic};

/// A collection whose elements can be made one by one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no collection whose elements `via` or `with` could make: that needs a `Vec`, a `VecDeque` or a boxed slice"
)]
pub trait Many: FromIterator<Self::Element> {
    /// What it holds.
    type Element;
    /// Its elements, in wire order.
    fn each(&self) -> impl ExactSizeIterator<Item = &Self::Element>;
}

macro_rules! many {
    ($($type:ty),*) => {$(
        impl<T> Many for $type {
            type Element = T;

            fn each(&self) -> impl ExactSizeIterator<Item = &T> {
                self.iter()
            }
        }
    )*};
}

many!(Vec<T>, VecDeque<T>, Box<[T]>);

/// As many elements of the type `P` as a number says.
#[derive(Debug)]
pub struct ManyOf<P>(PhantomData<P>);

impl<P: Wire> Elements for ManyOf<P> {
    const KIND: Kind = Kind::CountedArray(MaybeStatic::Static(KindOf::<P>::REF));
}

/// The next `T`, from the `P` that stands for it; that starts from what is at its place.
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

/// Appends the elements with a mark before each, as `list` does.
pub fn save_list_of<T: Many>(
    value: &T,
    max: usize,
    out: &mut Writer,
    mut save: impl FnMut(&T::Element, &mut Writer) -> Result<()>,
) -> Result<()> {
    out.outcome(at_most(value.each().len(), max)?);
    for (index, element) in value.each().enumerate() {
        out.u8(MORE);
        save(element, out).map_err(|error| error.in_element(index))?;
    }
    out.u8(NO_MORE);
    Ok(())
}

/// Replaces the elements by those of `input`, as `list` does.
pub fn load_list_of<T: Many>(
    value: &mut T,
    max: usize,
    input: &mut Reader<'_>,
    mut load: impl FnMut(Option<&T::Element>, &mut Reader<'_>) -> Result<T::Element>,
) -> Result<()> {
    let mut loaded = Vec::new();
    let mut held = value.each();
    while more(input)? {
        if loaded.len() == max {
            return Err(input.malformed(format!("more than {max} elements")));
        }
        input.charge(size_of::<T::Element>())?;
        loaded.push(load(held.next(), input).map_err(|error| error.in_element(loaded.len()))?);
    }
    drop(held);
    *value = loaded.into_iter().collect();
    Ok(())
}

/// Appends the elements, as many as the length field says there are.
pub fn save_counted_of<T: Many>(
    value: &T,
    count: usize,
    out: &mut Writer,
    save: impl FnMut(&T::Element, &mut Writer) -> Result<()>,
) -> Result<()> {
    let held = value.each().len();
    if held != count {
        let message = format!("its length field says {count}, but it holds {held}");
        return Err(Error::new(ErrorKind::Rejected, message));
    }
    out.outcome(outcome(count)?);
    save_each(value.each(), out, save)
}

/// Replaces the elements by `count` of `input`.
pub fn load_counted_of<T: Many>(
    value: &mut T,
    count: usize,
    input: &mut Reader<'_>,
    mut load: impl FnMut(Option<&T::Element>, &mut Reader<'_>) -> Result<T::Element>,
) -> Result<()> {
    let mut loaded = Vec::new();
    let mut held = value.each();
    for index in 0..count {
        input.charge(size_of::<T::Element>())?;
        loaded.push(load(held.next(), input).map_err(|error| error.in_element(index))?);
    }
    drop(held);
    *value = loaded.into_iter().collect();
    Ok(())
}

/// Appends the number of elements and then the elements, as `counted` does.
pub fn save_prefixed_of<L: Prefix, T: Many>(
    value: &T,
    max: usize,
    out: &mut Writer,
    save: impl FnMut(&T::Element, &mut Writer) -> Result<()>,
) -> Result<()> {
    save_prefix::<L>(value.each().len(), max, out)?;
    save_each(value.each(), out, save)
}

/// Replaces the elements by as many as the number before them says, as `counted` does.
pub fn load_prefixed_of<L: Prefix, T: Many>(
    value: &mut T,
    max: usize,
    input: &mut Reader<'_>,
    load: impl FnMut(Option<&T::Element>, &mut Reader<'_>) -> Result<T::Element>,
) -> Result<()> {
    let count = load_prefix::<L>(max, input)?;
    load_counted_of(value, count, input, load)
}

/// Appends each element of an array.
pub fn save_array_of<T, const N: usize>(
    values: &[T; N],
    out: &mut Writer,
    save: impl FnMut(&T, &mut Writer) -> Result<()>,
) -> Result<()> {
    save_each(values.iter(), out, save)
}

/// Replaces each element of an array.
pub fn load_array_of<T, const N: usize>(
    values: &mut [T; N],
    input: &mut Reader<'_>,
    mut load: impl FnMut(Option<&T>, &mut Reader<'_>) -> Result<T>,
) -> Result<()> {
    for (index, value) in values.iter_mut().enumerate() {
        *value = load(Some(value), input).map_err(|error| error.in_element(index))?;
    }
    Ok(())
}

fn save_each<'a, T: 'a>(
    values: impl Iterator<Item = &'a T>,
    out: &mut Writer,
    mut save: impl FnMut(&T, &mut Writer) -> Result<()>,
) -> Result<()> {
    for (index, value) in values.enumerate() {
        save(value, out).map_err(|error| error.in_element(index))?;
    }
    Ok(())
}
