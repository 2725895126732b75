//! Sections in the forms in which a machine owns them: behind a pointer, or behind the lock of a device that threads share.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::{Section, SectionRules};
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;

macro_rules! pointer {
    ($($pointer:ty),*) => {$(
        impl<S: Section + ?Sized> Section for $pointer {
            fn description(&self) -> &'static Description {
                (**self).description()
            }

            fn rules(&self) -> SectionRules {
                (**self).rules()
            }

            fn is_needed(&self) -> bool {
                (**self).is_needed()
            }

            fn save(&mut self, out: &mut Writer) -> Result<()> {
                (**self).save(out)
            }

            fn save_at(&mut self, out: &mut Writer, version: u32) -> Result<()> {
                (**self).save_at(out, version)
            }

            fn load(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
                (**self).load(input, version)
            }
        }
    )*};
}

pointer!(&mut S, Box<S>);

macro_rules! lock {
    ($($lock:ident: ($($bound:tt)+), $read:ident, $write:ident;)*) => {$(
        /// A save or load waits for the lock and holds it to its end. A poisoned lock is refused: a thread panicked in the middle
        /// of a change, and the state may be half changed.
        impl<S: $($bound)+ + ?Sized> Section for Arc<$lock<S>> {
            fn description(&self) -> &'static Description {
                self.$read().unwrap_or_else(PoisonError::into_inner).description()
            }

            fn rules(&self) -> SectionRules {
                self.$read().unwrap_or_else(PoisonError::into_inner).rules()
            }

            // The result for a poisoned lock does not matter: its save refuses.
            fn is_needed(&self) -> bool {
                self.$read().map_or(true, |device| device.is_needed())
            }

            fn save(&mut self, out: &mut Writer) -> Result<()> {
                self.$write().map_err(|_| poisoned())?.save(out)
            }

            fn save_at(&mut self, out: &mut Writer, version: u32) -> Result<()> {
                self.$write().map_err(|_| poisoned())?.save_at(out, version)
            }

            fn load(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
                self.$write().map_err(|_| poisoned())?.load(input, version)
            }
        }
    )*};
}

lock! {
    Mutex: (Section), lock, lock;
    RwLock: (Section + Sync), read, write;
}

#[cold]
pub(super) fn poisoned() -> Error {
    Error::new(ErrorKind::Rejected, "a thread panicked while it changed this device")
}
