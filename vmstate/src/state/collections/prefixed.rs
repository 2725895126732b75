//! `#[vmstate(counted = …)]`: collections whose number of elements stands right before them.
//!
//! Described as a nested struct `counted` of the fields `count` and `elements`: its bytes are no others.

use std::collections::VecDeque;
use std::marker::PhantomData;

use super::super::Wire;
use super::super::numbers::{Prefix, at_most};
use super::super::support::KindOf;
use super::sequence::{remember_each, undo_each};
use super::{Counted, Sequence};
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Count, Description, Field, Kind, Length, MaybeStatic, Presence};

/// What `#[vmstate(counted = …)]` can be put on.
#[diagnostic::on_unimplemented(
    message = "`counted` needs a `Vec`, a `VecDeque`, a boxed slice or a `String`, `{Self}` is none of them",
    note = "the elements must implement `vmstate::Wire` and `Default`"
)]
pub trait Prefixed {
    /// All that is needed to put back the value.
    type Undo;
    /// What the bytes behind the number are.
    const ELEMENTS: Kind;
    /// What makes elements of their bytes and may refuse to, if their kind does not show it.
    const CONVERSION: Option<MaybeStatic<str>> = None;

    /// How many elements there are.
    fn count(&self) -> usize;
    /// Appends the elements.
    fn save(&mut self, out: &mut Writer) -> Result<()>;
    /// Replaces the elements by `count` of `input`.
    fn load(&mut self, count: usize, input: &mut Reader<'_>) -> Result<()>;
    /// Copies out what a load or a hook may change.
    fn remember(&self) -> Self::Undo;
    /// Puts back what `remember` copied.
    fn undo(&mut self, undo: Self::Undo);
}

macro_rules! sequence {
    ($($type:ty),*) => {$(
        /// It becomes as long as the number says. Elements are loaded in place, new ones start from their default: what they
        /// skip survives a load.
        impl<T: Wire + Default> Prefixed for $type {
            type Undo = Vec<T::Undo>;
            const ELEMENTS: Kind = Kind::CountedArray(MaybeStatic::Static(KindOf::<T>::REF));

            fn count(&self) -> usize {
                self.len()
            }

            fn save(&mut self, out: &mut Writer) -> Result<()> {
                self.with_vec(|elements| T::save_all(elements, out))
            }

            fn load(&mut self, count: usize, input: &mut Reader<'_>) -> Result<()> {
                self.with_vec(|elements| Counted::load(elements, count, input))
            }

            fn remember(&self) -> Self::Undo {
                remember_each(self.iter())
            }

            fn undo(&mut self, undo: Self::Undo) {
                undo_each(self, undo);
            }
        }
    )*};
}

sequence!(Vec<T>, VecDeque<T>, Box<[T]>);

/// Its bytes, which must be UTF-8; the number is that of bytes.
impl Prefixed for String {
    type Undo = String;
    const ELEMENTS: Kind = Kind::CountedBuffer;
    const CONVERSION: Option<MaybeStatic<str>> = Some(MaybeStatic::Static("UTF-8"));

    fn count(&self) -> usize {
        self.len()
    }

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.bytes(self.as_bytes());
        Ok(())
    }

    fn load(&mut self, count: usize, input: &mut Reader<'_>) -> Result<()> {
        let offset = input.offset();
        let bytes = input.take(count)?;
        let text = str::from_utf8(bytes).map_err(|error| {
            let place = error.valid_up_to();
            Error::new(ErrorKind::Malformed, "these bytes are not UTF-8").at(offset.saturating_add(place as u64))
        })?;
        input.charge(count)?;
        text.clone_into(self);
        Ok(())
    }

    fn remember(&self) -> String {
        self.clone()
    }

    fn undo(&mut self, undo: String) {
        *self = undo;
    }
}

/// Appends the number of elements and then the elements.
pub fn save_prefixed<T: Prefixed, L: Prefix>(value: &mut T, max: usize, out: &mut Writer) -> Result<()> {
    save_prefix::<L>(value.count(), max, out)?;
    value.save(out)
}

/// Replaces the value by as many elements of `input` as the number before them says.
pub fn load_prefixed<T: Prefixed, L: Prefix>(value: &mut T, max: usize, input: &mut Reader<'_>) -> Result<()> {
    let count = load_prefix::<L>(max, input)?;
    value.load(count, input)
}

/// Appends the number of elements, which the peer would refuse above `max`.
pub(super) fn save_prefix<L: Prefix>(count: usize, max: usize, out: &mut Writer) -> Result<()> {
    let outcome = at_most(count, max)?;
    // The derive has checked that `max` fits.
    let mut prefix = L::try_from(count).ok().unwrap_or_default();
    prefix.save(out)?;
    out.outcome(outcome);
    Ok(())
}

/// The number of elements that come.
pub(super) fn load_prefix<L: Prefix>(max: usize, input: &mut Reader<'_>) -> Result<usize> {
    let offset = input.offset();
    let mut prefix = L::default();
    prefix.load(input)?;
    match prefix.try_into() {
        Ok(count) if count <= max => Ok(count),
        refused => {
            let count = refused.map_or_else(|_| "too many".to_owned(), |count| count.to_string());
            let message = format!("it has {count} elements, from 0 to {max} are allowed");
            Err(Error::new(ErrorKind::Malformed, message).at(offset))
        }
    }
}

/// The kind of a number `L`, up to `MAX`, and as many elements of the kind that `E` says. That `MAX` fits is checked here.
pub const fn prefixed<E: Elements, L: Prefix, const MAX: usize>() -> Kind {
    PrefixedKind::<E, L, MAX>::KIND
}

/// What [`prefixed`] refers to.
struct PrefixedKind<E, L, const MAX: usize>(PhantomData<(E, L)>);

/// What the bytes behind the number are.
pub trait Elements {
    /// The kind, whose outcome is the number.
    const KIND: Kind;
    /// What makes elements of their bytes, if the field that has them does not say so itself.
    const CONVERSION: Option<MaybeStatic<str>> = None;
}

/// The elements of `T` as they are.
#[derive(Debug)]
pub struct Own<T>(PhantomData<T>);

impl<T: Prefixed> Elements for Own<T> {
    const KIND: Kind = T::ELEMENTS;
    const CONVERSION: Option<MaybeStatic<str>> = T::CONVERSION;
}

impl<E: Elements, L: Prefix, const MAX: usize> PrefixedKind<E, L, MAX> {
    const FIELDS: &'static [Field] = &[
        Field::new(MaybeStatic::Static("count"), L::KIND, Presence::Since(0)),
        Field::with(
            MaybeStatic::Static("elements"),
            E::KIND,
            Presence::Since(0),
            Some(Count::new(Some(Length::Field(MaybeStatic::Static("count"))), 1, MAX, false)),
            E::CONVERSION,
        ),
    ];
    const DESCRIPTION: &'static Description = &Description::new(
        MaybeStatic::Static("counted"),
        1,
        1,
        MaybeStatic::Static(Self::FIELDS),
        MaybeStatic::Static(&[]),
    );
    const KIND: Kind = {
        assert!(MAX as i128 <= L::HIGHEST, "`max` does not fit the integer that `counted` names");
        Kind::Struct(MaybeStatic::Static(Self::DESCRIPTION))
    };
}
