//! A section behind a borrow, or behind the lock of a device that several threads use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Section, SectionRules};
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;

impl Section for &mut (dyn Section + '_) {
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

    fn save_version(&mut self, out: &mut Writer, version: u32) -> Result<()> {
        (**self).save_version(out, version)
    }

    fn load(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
        (**self).load(input, version)
    }
}

impl<T: Section + ?Sized> Section for Arc<Mutex<T>> {
    fn description(&self) -> &'static Description {
        self.lock().unwrap_or_else(PoisonError::into_inner).description()
    }

    fn rules(&self) -> SectionRules {
        self.lock().unwrap_or_else(PoisonError::into_inner).rules()
    }

    // What is half changed may say anything here: its save refuses.
    fn is_needed(&self) -> bool {
        self.lock().map_or(true, |device| device.is_needed())
    }

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        whole(self)?.save(out)
    }

    fn save_version(&mut self, out: &mut Writer, version: u32) -> Result<()> {
        whole(self)?.save_version(out, version)
    }

    fn load(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
        whole(self)?.load(input, version)
    }
}

/// A device whose thread panicked in the middle of a change must not travel: half a change would arrive as truth.
fn whole<T: ?Sized>(device: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    device.lock().map_err(|_| Error::new(ErrorKind::Rejected, "a thread panicked while it changed this device"))
}
