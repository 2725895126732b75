//! `Arc` and `Rc`: what several parts of a machine share, with the bytes of what they hold.
//!
//! A load changes the value behind the pointer and never the pointer, so whoever else holds it sees what was loaded.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering,
};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::Wire;
use super::interior::{held, poisoned};
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

macro_rules! pointer {
    ($($pointer:ident),*) => {$(
        /// In place: the others that hold the pointer see what was loaded.
        impl<T: Shareable> Wire for $pointer<T> {
            type Undo = T::Undo;
            const KIND: Kind = T::KIND;

            fn save(&mut self, out: &mut Writer) -> Result<()> {
                (**self).save(out)
            }

            fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
                (**self).load(input)
            }

            fn remember(&self) -> Self::Undo {
                (**self).remember()
            }

            fn undo(&mut self, undo: Self::Undo) {
                (**self).undo(undo);
            }
        }
    )*};
}

pointer!(Arc, Rc);

macro_rules! atomic {
    ($($type:ty => $value:ty),* $(,)?) => {$(
        /// Sequentially consistent, as other threads may look on.
        impl Shareable for $type {
            type Undo = $value;
            const KIND: Kind = <$value as Wire>::KIND;

            fn save(&self, out: &mut Writer) -> Result<()> {
                <$type>::load(self, Ordering::SeqCst).save(out)
            }

            fn load(&self, input: &mut Reader<'_>) -> Result<()> {
                let mut value = <$value>::default();
                value.load(input)?;
                self.store(value, Ordering::SeqCst);
                Ok(())
            }

            fn remember(&self) -> $value {
                <$type>::load(self, Ordering::SeqCst)
            }

            fn undo(&self, undo: $value) {
                self.store(undo, Ordering::SeqCst);
            }
        }
    )*};
}

atomic! {
    AtomicBool => bool,
    AtomicU8 => u8,
    AtomicU16 => u16,
    AtomicU32 => u32,
    AtomicU64 => u64,
    AtomicI8 => i8,
    AtomicI16 => i16,
    AtomicI32 => i32,
    AtomicI64 => i64,
}

macro_rules! lock {
    ($($lock:ident, $read:ident, $write:ident);*) => {$(
        /// A save or load waits for the lock. A poisoned one is refused: a panic may have left its value half changed.
        impl<T: Wire> Shareable for $lock<T> {
            type Undo = T::Undo;
            const KIND: Kind = T::KIND;

            fn save(&self, out: &mut Writer) -> Result<()> {
                self.$write().map_err(|_| poisoned(stringify!($lock)))?.save(out)
            }

            fn load(&self, input: &mut Reader<'_>) -> Result<()> {
                self.$write().map_err(|_| poisoned(stringify!($lock)).at(input.offset()))?.load(input)
            }

            fn remember(&self) -> T::Undo {
                self.$read().unwrap_or_else(PoisonError::into_inner).remember()
            }

            fn undo(&self, undo: T::Undo) {
                self.$write().unwrap_or_else(PoisonError::into_inner).undo(undo);
            }
        }
    )*};
}

lock! {
    Mutex, lock, lock;
    RwLock, read, write
}

impl<T: Wire + Copy> Shareable for Cell<T> {
    type Undo = T::Undo;
    const KIND: Kind = T::KIND;

    fn save(&self, out: &mut Writer) -> Result<()> {
        self.get().save(out)
    }

    fn load(&self, input: &mut Reader<'_>) -> Result<()> {
        let mut value = self.get();
        let loaded = value.load(input);
        self.set(value);
        loaded
    }

    fn remember(&self) -> T::Undo {
        self.get().remember()
    }

    fn undo(&self, undo: T::Undo) {
        let mut value = self.get();
        value.undo(undo);
        self.set(value);
    }
}

/// One that is borrowed is refused, and kept as it is.
impl<T: Wire> Shareable for RefCell<T> {
    type Undo = Option<T::Undo>;
    const KIND: Kind = T::KIND;

    fn save(&self, out: &mut Writer) -> Result<()> {
        self.try_borrow_mut().map_err(|_| held("RefCell"))?.save(out)
    }

    fn load(&self, input: &mut Reader<'_>) -> Result<()> {
        self.try_borrow_mut().map_err(|_| held("RefCell").at(input.offset()))?.load(input)
    }

    fn remember(&self) -> Self::Undo {
        self.try_borrow().ok().map(|value| value.remember())
    }

    fn undo(&self, undo: Self::Undo) {
        if let (Some(undo), Ok(mut value)) = (undo, self.try_borrow_mut()) {
            value.undo(undo);
        }
    }
}
