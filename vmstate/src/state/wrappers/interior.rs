//! Values behind interior mutability: atomics, cells and locks, with the bytes of the value inside.
//!
//! Through `&mut`, a value is reached without locking, and no other thread contends for it: only a leaked guard, or a lock
//! poisoned by a panic, prevents access. The load is then refused and the value kept. For a shared value, the save or load waits
//! for the lock.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering,
};
use std::sync::{Mutex, PoisonError, RwLock, TryLockError};

use super::super::Wire;
use super::Shareable;
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

            // Relaxed: whoever handed out the only reference has already synchronised.
            #[inline]
            fn remember(&self) -> $value {
                <$type>::load(self, Ordering::Relaxed)
            }

            #[inline]
            fn undo(&mut self, undo: $value) {
                *self.get_mut() = undo;
            }
        }

        /// Sequentially consistent, as other threads may read the value.
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
    ($($lock:ident, $try_read:ident, $try_write:ident, $read:ident, $write:ident;)*) => {$(
        /// The undo is `None` if a leaked guard holds the value: its load is refused, so nothing has to be put back. A poisoned
        /// lock is refused, too: its value may be half changed.
        impl<T: Wire> Wire for $lock<T> {
            type Undo = Option<T::Undo>;
            const KIND: Kind = T::KIND;

            fn save(&mut self, out: &mut Writer) -> Result<()> {
                self.$try_write().map_err(|refused| locked(stringify!($lock), &refused))?.save(out)
            }

            fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
                self.$try_write().map_err(|refused| locked(stringify!($lock), &refused).at(input.offset()))?.load(input)
            }

            fn remember(&self) -> Option<T::Undo> {
                match self.$try_read() {
                    Ok(value) => Some(value.remember()),
                    Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner().remember()),
                    Err(TryLockError::WouldBlock) => None,
                }
            }

            fn undo(&mut self, undo: Option<T::Undo>) {
                let value = self.get_mut().unwrap_or_else(PoisonError::into_inner);
                if let Some(undo) = undo {
                    value.undo(undo);
                }
            }
        }

        /// A save or load waits for the lock. A poisoned lock is refused.
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
    Mutex, try_lock, try_lock, lock, lock;
    RwLock, try_read, try_write, read, write;
}

/// A copy is taken out and put back, also after an error: an undo needs the partly loaded value.
impl<T: Wire + Copy> Shareable for Cell<T> {
    type Undo = T::Undo;
    const KIND: Kind = T::KIND;

    fn save(&self, out: &mut Writer) -> Result<()> {
        changed(self, |value| value.save(out))
    }

    fn load(&self, input: &mut Reader<'_>) -> Result<()> {
        changed(self, |value| value.load(input))
    }

    fn remember(&self) -> T::Undo {
        self.get().remember()
    }

    fn undo(&self, undo: T::Undo) {
        changed(self, |value| value.undo(undo));
    }
}

fn changed<T: Copy, R>(cell: &Cell<T>, change: impl FnOnce(&mut T) -> R) -> R {
    let mut value = cell.get();
    let outcome = change(&mut value);
    cell.set(value);
    outcome
}

/// As for a shared `RefCell`; but an undo puts the value back even if it is borrowed.
impl<T: Wire> Wire for RefCell<T> {
    type Undo = Option<T::Undo>;
    const KIND: Kind = T::KIND;

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        Shareable::save(self, out)
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        Shareable::load(self, input)
    }

    fn remember(&self) -> Option<T::Undo> {
        Shareable::remember(self)
    }

    fn undo(&mut self, undo: Option<T::Undo>) {
        if let Some(undo) = undo {
            self.get_mut().undo(undo);
        }
    }
}

/// A borrowed `RefCell` is refused, and stays unchanged.
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

#[cold]
fn locked<G>(lock: &str, refused: &TryLockError<G>) -> Error {
    match refused {
        TryLockError::WouldBlock => held(lock),
        TryLockError::Poisoned(_) => poisoned(lock),
    }
}

#[cold]
fn held(lock: &str) -> Error {
    Error::new(ErrorKind::Misuse, format!("the {lock} is held by a guard that was never dropped"))
}

#[cold]
fn poisoned(lock: &str) -> Error {
    let message =
        format!("the {lock} is poisoned: a thread panicked while it held it, so its value may be half changed");
    Error::new(ErrorKind::Rejected, message)
}
