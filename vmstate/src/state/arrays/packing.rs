//! The encoding of a sequence of elements: each by its own type, or all together as a `buffer` or `bitmap`.

use super::super::Wire;
use super::super::support::KindOf;
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::{Kind, MaybeStatic};

/// An encoding for elements of type `T`.
#[diagnostic::on_unimplemented(
    message = "the field's attribute is not for elements of type `{T}`: `buffer` is for `u8`, `bitmap` for `u64`"
)]
pub trait Packing<T> {
    /// The kind of the elements, without their number.
    const KIND: Kind;
    /// How many units of a length one element has (64 bits in each word of a bitmap, else 1).
    const EACH: usize = 1;

    /// Appends the elements, which hold `count` units.
    fn save(elements: &mut [T], count: usize, out: &mut Writer) -> Result<()>;
    /// Replaces the elements.
    fn load(elements: &mut [T], count: usize, input: &mut Reader<'_>) -> Result<()>;
}

/// The encoding of the element's own type.
#[derive(Debug)]
pub struct Own;

impl<T: Wire> Packing<T> for Own {
    const KIND: Kind = Kind::CountedArray(MaybeStatic::Static(KindOf::<T>::REF));

    #[inline]
    fn save(elements: &mut [T], _count: usize, out: &mut Writer) -> Result<()> {
        T::save_all(elements, out)
    }

    #[inline]
    fn load(elements: &mut [T], _count: usize, input: &mut Reader<'_>) -> Result<()> {
        T::load_all(elements, input)
    }
}
