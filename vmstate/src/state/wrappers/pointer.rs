//! Wrappers that hand out their value: owners, references, and pointers that several parts of a machine share.

use std::cell::Cell;
use std::num::Wrapping;
use std::rc::Rc;
use std::sync::Arc;

use super::super::Wire;
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::Kind;

/// A value that can be changed through a shared reference: what an `Arc` or `Rc` that is migrated may hold.
#[diagnostic::on_unimplemented(
    message = "a load cannot change `{Self}` behind a shared pointer",
    label = "does not implement `vmstate::state::Shareable`",
    note = "an `Arc` or `Rc` is migrated in place: let it hold an atomic, a `Mutex`, an `RwLock`, a `Cell` or a `RefCell`"
)]
pub trait Shareable {
    /// All that is needed to put back the value.
    type Undo;
    /// What the bytes are.
    const KIND: Kind;

    /// As [`Wire::save`].
    ///
    /// # Errors
    /// As there; and if the value cannot be had.
    fn save(&self, out: &mut Writer) -> Result<()>;
    /// As [`Wire::load`].
    ///
    /// # Errors
    /// As there; and if the value cannot be had.
    fn load(&self, input: &mut Reader<'_>) -> Result<()>;
    /// As [`Wire::remember`].
    fn remember(&self) -> Self::Undo;
    /// As [`Wire::undo`].
    fn undo(&self, undo: Self::Undo);
}

/// For each wrapper: what the value inside must be, the trait and type by which it has its bytes, the value, and the value to be
/// changed.
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
    /// As a `Box`.
    [T: Wire] &mut T, Wire of T, |this| &**this, &mut **this, IS_POINTER;
    /// In place: a load changes the value and never the pointer, so whoever else holds it sees what was loaded.
    [T: Shareable] Arc<T>, Shareable of T, |this| &**this, &**this;
    /// As an `Arc`.
    [T: Shareable] Rc<T>, Shareable of T, |this| &**this, &**this;
    /// As it is when shared.
    [T: Wire + Copy] Cell<T>, Shareable of Self, |this| this, this;
    /// As the integer in it.
    [T: Wire] Wrapping<T>, Wire of T, |this| &this.0, &mut this.0;
}
