//! Values behind interior mutability: atomics, cells and locks, with the bytes of what they hold.
//!
//! A save or load has `&mut` to the device, so nothing is locked and nothing can be contended. Only a guard that was
//! leaked, or a lock that a panicking thread held, stands in the way: that is refused, and such a value is kept.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering,
};
use std::sync::{Mutex, RwLock, TryLockError};

use super::Wire;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Kind;

macro_rules! atomic {
    ($($type:ty => $value:ty),* $(,)?) => {$(
        impl Wire for $type {
            type Undo = $value;
            const KIND: Kind = <$value as Wire>::KIND;

            #[inline]
            fn save(&mut self, out: &mut Writer) -> Result<()> {
                self.get_mut().save(out)
            }

            #[inline]
            fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
                self.get_mut().load(input)
            }

            // Relaxed: whoever gave out the only reference has synchronised already.
            #[inline]
            fn remember(&self) -> $value {
                <$type>::load(self, Ordering::Relaxed)
            }

            #[inline]
            fn undo(&mut self, undo: $value) {
                *self.get_mut() = undo;
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

impl<T: Wire + Copy> Wire for Cell<T> {
    type Undo = T::Undo;
    const KIND: Kind = T::KIND;

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        self.get_mut().save(out)
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.get_mut().load(input)
    }

    fn remember(&self) -> T::Undo {
        self.get().remember()
    }

    fn undo(&mut self, undo: T::Undo) {
        self.get_mut().undo(undo);
    }
}

/// `None` is kept for what a leaked guard holds: its load is refused, so there is nothing to put back.
impl<T: Wire> Wire for RefCell<T> {
    type Undo = Option<T::Undo>;
    const KIND: Kind = T::KIND;

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        self.try_borrow_mut().map_err(|_| held("RefCell"))?.save(out)
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.try_borrow_mut().map_err(|_| held("RefCell").at(input.offset()))?.load(input)
    }

    fn remember(&self) -> Option<T::Undo> {
        self.try_borrow().ok().map(|value| value.remember())
    }

    fn undo(&mut self, undo: Option<T::Undo>) {
        if let Some(undo) = undo {
            self.get_mut().undo(undo);
        }
    }
}

macro_rules! lock {
    ($($lock:ident, $read:ident, $write:ident);*) => {$(
        /// As [`RefCell`]'s. A poisoned lock is refused too: a panic may have left its value half changed.
        impl<T: Wire> Wire for $lock<T> {
            type Undo = Option<T::Undo>;
            const KIND: Kind = T::KIND;

            fn save(&mut self, out: &mut Writer) -> Result<()> {
                self.$write().map_err(|refused| locked(stringify!($lock), &refused))?.save(out)
            }

            fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
                self.$write().map_err(|refused| locked(stringify!($lock), &refused).at(input.offset()))?.load(input)
            }

            fn remember(&self) -> Option<T::Undo> {
                match self.$read() {
                    Ok(value) => Some(value.remember()),
                    Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner().remember()),
                    Err(TryLockError::WouldBlock) => None,
                }
            }

            fn undo(&mut self, undo: Option<T::Undo>) {
                let value = self.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
                if let Some(undo) = undo {
                    value.undo(undo);
                }
            }
        }
    )*};
}

lock! {
    Mutex, try_lock, try_lock;
    RwLock, try_read, try_write
}

#[cold]
fn locked<G>(lock: &str, refused: &TryLockError<G>) -> Error {
    match refused {
        TryLockError::WouldBlock => held(lock),
        TryLockError::Poisoned(_) => poisoned(lock),
    }
}

#[cold]
pub(super) fn held(lock: &str) -> Error {
    Error::new(ErrorKind::Misuse, format!("the {lock} is held by a guard that was never dropped"))
}

#[cold]
pub(super) fn poisoned(lock: &str) -> Error {
    let message =
        format!("the {lock} is poisoned: a thread panicked while it held it, so its value may be half changed");
    Error::new(ErrorKind::Rejected, message)
}
