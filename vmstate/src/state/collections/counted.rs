//! `#[vmstate(counted = …)]`: collections preceded by their number of elements.
//!
//! They are described as a nested struct `counted` with the fields `count` and `elements`, which has the same bytes.

use std::collections::VecDeque;
use std::marker::PhantomData;

use super::super::Wire;
use super::super::coded::Coded;
use super::super::numbers::{Prefix, at_most};
use super::len::as_many_to_load;
use super::sequence::{remember_each, undo_each};
use super::{ManyOf, Sequence};
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Count, Description, Field, Kind, Length, MaybeStatic, Presence};

/// Elements after their number, which is an `L` and at most `MAX`.
#[derive(Debug)]
pub struct Counted<L, const MAX: usize>(PhantomData<L>);

impl<L, const MAX: usize> Counted<L, MAX> {
    /// The only value: the type parameters hold all arguments.
    pub const FORM: Self = Self(PhantomData);
}

macro_rules! counted {
    ($($type:ty),*) => {$(
        /// A load makes the collection as long as the number says. Elements are loaded in place and new ones start from their
        /// default, so that fields which an element skips keep their values.
        impl<T: Wire + Default, L: Prefix, const MAX: usize> Coded<Counted<L, MAX>> for $type {
            type Undo = Vec<T::Undo>;
            const KIND: Kind = counted::<ManyOf<T>, L, MAX>();

            fn save(&mut self, _form: Counted<L, MAX>, out: &mut Writer) -> Result<()> {
                save_prefix::<L>(self.len(), MAX, out)?;
                self.with_vec(|elements| T::save_all(elements, out))
            }

            fn load(&mut self, _form: Counted<L, MAX>, input: &mut Reader<'_>) -> Result<()> {
                let count = load_prefix::<L>(MAX, input)?;
                self.with_vec(|elements| T::load_all(as_many_to_load(elements, count, input)?, input))
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

counted!(Vec<T>, VecDeque<T>, Box<[T]>);

/// The bytes of the string, which must be UTF-8; the number counts bytes.
impl<L: Prefix, const MAX: usize> Coded<Counted<L, MAX>> for String {
    type Undo = Self;
    const KIND: Kind = counted::<Utf8, L, MAX>();

    fn save(&mut self, _form: Counted<L, MAX>, out: &mut Writer) -> Result<()> {
        save_prefix::<L>(self.len(), MAX, out)?;
        out.bytes(self.as_bytes());
        Ok(())
    }

    fn load(&mut self, _form: Counted<L, MAX>, input: &mut Reader<'_>) -> Result<()> {
        let count = load_prefix::<L>(MAX, input)?;
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

    fn remember(&self) -> Self {
        self.clone()
    }

    fn undo(&mut self, undo: Self) {
        *self = undo;
    }
}

/// Appends the number of elements; refuses a number above `max`, which the peer would refuse, too.
pub(super) fn save_prefix<L: Prefix>(count: usize, max: usize, out: &mut Writer) -> Result<()> {
    let outcome = at_most(count, max)?;
    // The derive has checked that `max` fits.
    let mut prefix = L::try_from(count).ok().unwrap_or_default();
    prefix.save(out)?;
    out.outcome(outcome);
    Ok(())
}

/// Reads the number of elements that follow.
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

/// The kind of a number `L` up to `MAX`, followed by that many elements of the kind of `E`. Evaluation fails if `MAX` does not
/// fit `L`.
pub const fn counted<E: Elements, L: Prefix, const MAX: usize>() -> Kind {
    CountedKind::<E, L, MAX>::KIND
}

/// Holds the constants that [`counted`] refers to.
struct CountedKind<E, L, const MAX: usize>(PhantomData<(E, L)>);

/// The bytes that follow a number.
pub trait Elements {
    /// The kind of the elements; the number is its outcome.
    const KIND: Kind;
    /// The conversion that makes the elements from their bytes, if the field does not state one itself.
    const CONVERSION: Option<MaybeStatic<str>> = None;
}

/// The bytes of a `String`.
struct Utf8;

impl Elements for Utf8 {
    const KIND: Kind = Kind::CountedBuffer;
    const CONVERSION: Option<MaybeStatic<str>> = Some(MaybeStatic::Static("UTF-8"));
}

impl<E: Elements, L: Prefix, const MAX: usize> CountedKind<E, L, MAX> {
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
