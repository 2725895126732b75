//! Iterative sections in the forms in which a machine owns them: the counterpart of `shared` for sections that are sent in parts.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::shared::poisoned;
use super::{IterativeSection, Record};
use crate::codec::{Outbox, Reader};
use crate::error::Result;
use crate::schema::Description;

macro_rules! pointer {
    ($($pointer:ty),*) => {$(
        impl<S: IterativeSection + ?Sized> IterativeSection for $pointer {
            fn description(&self) -> &'static Description {
                (**self).description()
            }

            fn is_needed(&self) -> bool {
                (**self).is_needed()
            }

            fn setup(&mut self, out: &mut Outbox) -> Result<()> {
                (**self).setup(out)
            }

            fn pending(&mut self) -> u64 {
                (**self).pending()
            }

            fn sync(&mut self) -> Result<()> {
                (**self).sync()
            }

            fn iterate(&mut self, out: &mut Outbox, budget: u64) -> Result<bool> {
                (**self).iterate(out, budget)
            }

            fn complete(&mut self, out: &mut Outbox) -> Result<()> {
                (**self).complete(out)
            }

            fn load_start(&mut self, input: &mut Reader<'_>, version: u32) -> Result<Record> {
                (**self).load_start(input, version)
            }

            fn load_part(&mut self, input: &mut Reader<'_>, version: u32) -> Result<Record> {
                (**self).load_part(input, version)
            }

            fn load_end(&mut self, input: &mut Reader<'_>, version: u32) -> Result<Record> {
                (**self).load_end(input, version)
            }

            fn may_end_in_postcopy(&self) -> bool {
                (**self).may_end_in_postcopy()
            }

            fn interrupted(&mut self) {
                (**self).interrupted();
            }

            fn cleanup(&mut self) {
                (**self).cleanup();
            }
        }
    )*};
}

pointer!(&mut S, Box<S>);

macro_rules! lock {
    ($($lock:ident, $read:ident, $write:ident;)*) => {$(
        /// Each call waits for the lock and holds it to its end. A poisoned lock is refused, except in a cleanup.
        impl<S: IterativeSection + ?Sized> IterativeSection for Arc<$lock<S>> {
            fn description(&self) -> &'static Description {
                self.$read().unwrap_or_else(PoisonError::into_inner).description()
            }

            // The result for a poisoned lock does not matter: its setup refuses.
            fn is_needed(&self) -> bool {
                self.$read().map_or(true, |device| device.is_needed())
            }

            fn setup(&mut self, out: &mut Outbox) -> Result<()> {
                self.$write().map_err(|_| poisoned())?.setup(out)
            }

            fn pending(&mut self) -> u64 {
                self.$write().unwrap_or_else(PoisonError::into_inner).pending()
            }

            fn sync(&mut self) -> Result<()> {
                self.$write().map_err(|_| poisoned())?.sync()
            }

            fn iterate(&mut self, out: &mut Outbox, budget: u64) -> Result<bool> {
                self.$write().map_err(|_| poisoned())?.iterate(out, budget)
            }

            fn complete(&mut self, out: &mut Outbox) -> Result<()> {
                self.$write().map_err(|_| poisoned())?.complete(out)
            }

            fn load_start(&mut self, input: &mut Reader<'_>, version: u32) -> Result<Record> {
                self.$write().map_err(|_| poisoned())?.load_start(input, version)
            }

            fn load_part(&mut self, input: &mut Reader<'_>, version: u32) -> Result<Record> {
                self.$write().map_err(|_| poisoned())?.load_part(input, version)
            }

            fn load_end(&mut self, input: &mut Reader<'_>, version: u32) -> Result<Record> {
                self.$write().map_err(|_| poisoned())?.load_end(input, version)
            }

            fn may_end_in_postcopy(&self) -> bool {
                self.$read().is_ok_and(|device| device.may_end_in_postcopy())
            }

            fn interrupted(&mut self) {
                self.$write().unwrap_or_else(PoisonError::into_inner).interrupted();
            }

            fn cleanup(&mut self) {
                self.$write().unwrap_or_else(PoisonError::into_inner).cleanup();
            }
        }
    )*};
}

lock! {
    Mutex, lock, lock;
    RwLock, read, write;
}
