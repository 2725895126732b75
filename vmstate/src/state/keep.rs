//! Where an undo keeps a field's value: in place while the struct's values are small in total, else on the heap, so that no
//! device is too large for the stack.

use std::marker::PhantomData;

use super::Wire;

/// Number of bytes that the undo of one struct may keep in place.
const FEW: usize = 8 << 10;
/// Number of bytes that one field may keep in place whatever the size of the struct.
const TINY: usize = 256;

/// True if values of this total size are kept in place.
pub const fn few(bytes: usize) -> bool {
    bytes <= FEW
}

/// True if a value of this size is always kept in place.
pub const fn tiny(bytes: usize) -> bool {
    bytes <= TINY
}

/// How a value of type `T` is copied out and put back.
pub trait Keeps<T: ?Sized> {
    /// The copy.
    type Kept;
    /// Copies out what a load or a hook may change.
    fn remember(value: &T) -> Self::Kept;
    /// Puts the copy back.
    fn undo(value: &mut T, kept: Self::Kept);
}

/// Uses the undo of the type's own [`Wire`].
#[derive(Debug)]
pub struct Whole;

impl<T: Wire> Keeps<T> for Whole {
    type Kept = T::Undo;

    #[inline]
    fn remember(value: &T) -> T::Undo {
        value.remember()
    }

    #[inline]
    fn undo(value: &mut T, kept: T::Undo) {
        value.undo(kept);
    }
}

/// Keeps a clone.
#[derive(Debug)]
pub struct Cloned;

impl<T: Clone> Keeps<T> for Cloned {
    type Kept = T;

    #[inline]
    fn remember(value: &T) -> T {
        value.clone()
    }

    #[inline]
    fn undo(value: &mut T, kept: T) {
        *value = kept;
    }
}

/// Each element of an array by `K`, in place.
#[derive(Debug)]
pub struct InPlace<K>(PhantomData<K>);

impl<T, K: Keeps<T>, const N: usize> Keeps<[T; N]> for InPlace<K> {
    type Kept = [K::Kept; N];

    #[inline]
    #[expect(clippy::indexing_slicing, reason = "`from_fn` counts to N")]
    fn remember(value: &[T; N]) -> Self::Kept {
        // Not `each_ref().map()`, which the compiler does not turn into a plain copy.
        std::array::from_fn(|index| K::remember(&value[index]))
    }

    #[inline]
    fn undo(value: &mut [T; N], kept: Self::Kept) {
        value.iter_mut().zip(kept).for_each(|(element, kept)| K::undo(element, kept));
    }
}

/// Each element of an array by `K`, on the heap.
#[derive(Debug)]
pub struct OnHeap<K>(PhantomData<K>);

impl<T, K: Keeps<T>, const N: usize> Keeps<[T; N]> for OnHeap<K> {
    type Kept = Vec<K::Kept>;

    fn remember(value: &[T; N]) -> Self::Kept {
        value.iter().map(K::remember).collect()
    }

    fn undo(value: &mut [T; N], kept: Self::Kept) {
        value.iter_mut().zip(kept).for_each(|(element, kept)| K::undo(element, kept));
    }
}

/// `A` if `FIRST`, else `B`.
pub type Either<const FIRST: bool, A, B> = <If<FIRST> as Choose<A, B>>::Chosen;

/// A condition as a type.
#[derive(Debug)]
pub struct If<const HOLDS: bool>;

/// Selects one of two types.
pub trait Choose<A, B> {
    /// The selected type.
    type Chosen;
}

impl<A, B> Choose<A, B> for If<true> {
    type Chosen = A;
}

impl<A, B> Choose<A, B> for If<false> {
    type Chosen = B;
}

/// Keeps the value of a field that is not an array: in place if the condition holds, else on the heap.
pub trait Holds<U> {
    /// The type of the kept value.
    type Held;
    /// Stores the value.
    fn hold(kept: U) -> Self::Held;
    /// Returns the value.
    fn release(held: Self::Held) -> U;
}

impl<U> Holds<U> for If<true> {
    type Held = U;

    #[inline]
    fn hold(kept: U) -> U {
        kept
    }

    #[inline]
    fn release(held: U) -> U {
        held
    }
}

impl<U> Holds<U> for If<false> {
    type Held = Box<U>;

    fn hold(kept: U) -> Box<U> {
        Box::new(kept)
    }

    fn release(held: Box<U>) -> U {
        *held
    }
}
