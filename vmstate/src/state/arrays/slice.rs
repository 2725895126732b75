//! `#[vmstate(slice = a..b)]`: a part of an array, always the same (QEMU's `VMSTATE_SUB_ARRAY`).

use super::super::Wire;
use super::super::support::KindOf;
use super::buffer::Buffer;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, MaybeStatic};

/// What `#[vmstate(slice = …)]` can be put on. The derive has checked that the bounds are in order, and within the
/// array.
#[diagnostic::on_unimplemented(
    message = "`slice` needs an array of something that can be migrated, `{Self}` is not",
    note = "of a `Vec` or boxed slice, `len` says how many elements are sent"
)]
pub trait Sliced {
    /// What the array is of.
    type Element: Wire;
    /// How many elements the array has.
    const LENGTH: usize;

    /// The elements from `first` up to `end`.
    fn part(&mut self, first: usize, end: usize) -> Result<&mut [Self::Element]>;

    /// Appends the elements from `first` up to `end`.
    fn save(&mut self, first: usize, end: usize, out: &mut Writer) -> Result<()> {
        Self::Element::save_all(self.part(first, end)?, out)
    }

    /// Replaces the elements from `first` up to `end`.
    fn load(&mut self, first: usize, end: usize, input: &mut Reader<'_>) -> Result<()> {
        Self::Element::load_all(self.part(first, end)?, input)
    }
}

impl<T: Wire, const N: usize> Sliced for [T; N] {
    type Element = T;
    const LENGTH: usize = N;

    fn part(&mut self, first: usize, end: usize) -> Result<&mut [T]> {
        self.get_mut(first..end)
            .ok_or_else(|| Error::new(ErrorKind::Misuse, format!("{first}..{end} is not within {N} elements")))
    }
}

/// True if an array of `length` elements has those from `first` up to `end`.
pub const fn fits(first: usize, end: usize, length: usize) -> bool {
    first <= end && end <= length
}

/// The kind of the elements from `first` up to `end` of a `T`.
pub const fn slice<T: Sliced>(first: usize, end: usize) -> Kind {
    Kind::Array(MaybeStatic::Static(KindOf::<T::Element>::REF), end.saturating_sub(first))
}

/// The kind of the bytes from `first` up to `end` of a `T`.
pub const fn buffer_slice<T: Buffer>(first: usize, end: usize) -> Kind {
    Kind::Buffer(end.saturating_sub(first))
}
