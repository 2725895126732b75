//! How the elements of a row stand on the wire: each by its own type, or all together as `buffer` or `bitmap` says.

use super::super::Wire;
use super::super::support::KindOf;
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::{Kind, MaybeStatic};

/// A way to have elements of type `T` on the wire.
#[diagnostic::on_unimplemented(
    message = "the field's attribute is not for elements of type `{T}`: `buffer` is for `u8`, `bitmap` for `u64`"
)]
pub trait Packing<T> {
    /// The kind of elements whose number is not on the wire with them.
    const KIND: Kind;
    /// How many of the units that a length counts are in one element.
    const EACH: usize = 1;

    /// Appends the elements, which have `count` of those units.
    fn save(elements: &mut [T], count: usize, out: &mut Writer) -> Result<()>;
    /// Replaces the elements.
    fn load(elements: &mut [T], count: usize, input: &mut Reader<'_>) -> Result<()>;
}

/// By the element's type.
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
