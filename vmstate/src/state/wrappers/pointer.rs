//! Wrappers that give access to their value: owners, references, and pointers that several parts of a machine share.

use std::cell::Cell;
use std::num::Wrapping;
use std::rc::Rc;
use std::sync::Arc;

use super::super::Wire;
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::Kind;

/// A value that can be changed through a shared reference, and so can be inside of a migrated `Arc` or `Rc`.
#[diagnostic::on_unimplemented(
    message = "a load cannot change `{Self}` behind a shared pointer",
    label = "does not implement `vmstate::state::Shareable`",
    note = "an `Arc` or `Rc` is migrated in place: let it hold an atomic, a `Mutex`, an `RwLock`, a `Cell` or a `RefCell`"
)]
pub trait Shareable {
    /// The copy that `undo` puts back.
    type Undo;
    /// The kind of the bytes.
    const KIND: Kind;

    /// As [`Wire::save`].
    ///
    /// # Errors
    /// As for [`Wire::save`]; and if the value cannot be accessed.
    fn save(&self, out: &mut Writer) -> Result<()>;
    /// As [`Wire::load`].
    ///
    /// # Errors
    /// As for [`Wire::load`]; and if the value cannot be accessed.
    fn load(&self, input: &mut Reader<'_>) -> Result<()>;
    /// As [`Wire::remember`].
    fn remember(&self) -> Self::Undo;
    /// As [`Wire::undo`].
    fn undo(&self, undo: Self::Undo);
}

/// For each wrapper: the bound on the value inside, the trait and type that encode it, and the expressions for the value and for
/// the mutable value.
macro_rules! wrapper {
    (
        $($(#[$doc:meta])* [T: $($bound:tt)*] $type:ty,
        $by:ident of $inside:ty, |$this:ident| $value:expr, $changed:expr $(, $pointer:ident)?;)*
    ) => {$(
        $(#[$doc])*
        impl<T: $($bound)*> Wire for $type {
            type Undo = <$inside as $by>::Undo;
            const KIND: Kind = <$inside as $by>::KIND;
            $(const $pointer: bool = true;)?

            #[inline]
            fn save(&mut self, out: &mut Writer) -> Result<()> {
                let $this = self;
                <$inside as $by>::save($changed, out)
            }

            #[inline]
            fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
                let $this = self;
                <$inside as $by>::load($changed, input)
            }

            #[inline]
            fn remember(&self) -> Self::Undo {
                let $this = self;
                <$inside as $by>::remember($value)
            }

            #[inline]
            fn undo(&mut self, undo: Self::Undo) {
                let $this = self;
                <$inside as $by>::undo($changed, undo);
            }
        }
    )*};
}

wrapper! {
    /// QEMU's pointer fields have no presence byte.
    [T: Wire] Box<T>, Wire of T, |this| &**this, &mut **this, IS_POINTER;
    /// As for a `Box`.
    [T: Wire] &mut T, Wire of T, |this| &**this, &mut **this, IS_POINTER;
    /// In place: a load changes the value and never the pointer, so every other holder of the pointer sees the loaded value.
    [T: Shareable] Arc<T>, Shareable of T, |this| &**this, &**this;
    /// As for an `Arc`.
    [T: Shareable] Rc<T>, Shareable of T, |this| &**this, &**this;
    /// As for a shared cell.
    [T: Wire + Copy] Cell<T>, Shareable of Self, |this| this, this;
    /// As for the integer inside.
    [T: Wire] Wrapping<T>, Wire of T, |this| &this.0, &mut this.0;
}
