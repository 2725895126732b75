//! A section that is a part of something shared: a locked device, or one struct of the hypervisor's state.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use vmstate::codec::{Reader, Writer};
use vmstate::schema::Description;
use vmstate::section::SectionRules;
use vmstate::{ErrorKind, Section, VmState};

use crate::sync::lock;

/// How long to wait for a device that vCPUs use. At a pause no vCPU uses one.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Section of a device, shared between vCPUs, the device's threads and a migration. A vCPU may hold the device's lock as long
/// as the host's disk takes, so the section's description is available without the lock, and every wait for it is bounded.
#[derive(Clone)]
pub struct SharedSection {
    description: &'static Description,
    rules: SectionRules,
    device: Arc<Mutex<dyn Section + Send>>,
}

impl SharedSection {
    /// Makes the section of `device`.
    pub fn new<T: VmState + Section + Send + 'static>(device: &Arc<Mutex<T>>) -> Self {
        Self { description: T::DESCRIPTION, rules: T::SECTION, device: Arc::<Mutex<T>>::clone(device) }
    }

    fn lock(&self) -> vmstate::Result<MutexGuard<'_, dyn Section + Send + 'static>> {
        let until = Instant::now() + TIMEOUT;
        loop {
            match self.device.try_lock() {
                Ok(device) => return Ok(device),
                Err(TryLockError::Poisoned(_)) => {
                    let what = "a thread panicked while it changed this device";
                    return Err(vmstate::Error::new(ErrorKind::Rejected, what));
                }
                Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(Duration::from_millis(1)),
                Err(TryLockError::WouldBlock) => {
                    let what = "a vCPU waits for the device, which the host keeps busy; try again later";
                    return Err(vmstate::Error::new(ErrorKind::Rejected, what));
                }
            }
        }
    }
}

impl fmt::Debug for SharedSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSection").finish_non_exhaustive()
    }
}

impl Section for SharedSection {
    fn description(&self) -> &'static Description {
        self.description
    }

    fn rules(&self) -> SectionRules {
        self.rules
    }

    fn is_needed(&self) -> bool {
        // A device that cannot be locked is saved, and its save reports why it fails.
        self.lock().map_or(true, |device| device.is_needed())
    }

    fn save(&mut self, out: &mut Writer) -> vmstate::Result<()> {
        self.lock()?.save(out)
    }

    fn save_at(&mut self, out: &mut Writer, version: u32) -> vmstate::Result<()> {
        self.lock()?.save_at(out, version)
    }

    fn load(&mut self, input: &mut Reader<'_>, version: u32) -> vmstate::Result<()> {
        self.lock()?.load(input, version)
    }
}

/// A part of the state in `whole`, which is locked for each save and load.
pub(super) struct SectionOf<S: ?Sized, F> {
    whole: Arc<Mutex<S>>,
    part: F,
}

impl<S: ?Sized, F> SectionOf<S, F> {
    pub(super) fn new<T>(whole: &Arc<Mutex<S>>, part: F) -> Self
    where
        F: Fn(&mut S) -> &mut T,
    {
        Self { whole: Arc::clone(whole), part }
    }
}

impl<S: ?Sized, F> fmt::Debug for SectionOf<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SectionOf").finish_non_exhaustive()
    }
}

/// Type of a part, from the function that returns it.
pub(super) trait Projection<S: ?Sized> {
    type Target: VmState + Section;
    fn of<'a>(&self, whole: &'a mut S) -> &'a mut Self::Target;
}

impl<S: ?Sized, T: VmState + Section, F: Fn(&mut S) -> &mut T> Projection<S> for F {
    type Target = T;

    fn of<'a>(&self, whole: &'a mut S) -> &'a mut T {
        self(whole)
    }
}

impl<S: Send + ?Sized, F: Projection<S> + Send> Section for SectionOf<S, F> {
    fn description(&self) -> &'static Description {
        F::Target::DESCRIPTION
    }

    fn rules(&self) -> SectionRules {
        F::Target::SECTION
    }

    fn is_needed(&self) -> bool {
        let mut whole = lock(&self.whole);
        VmState::is_needed(self.part.of(&mut whole))
    }

    fn save(&mut self, out: &mut Writer) -> vmstate::Result<()> {
        let mut whole = lock(&self.whole);
        Section::save(self.part.of(&mut whole), out)
    }

    fn save_at(&mut self, out: &mut Writer, version: u32) -> vmstate::Result<()> {
        let mut whole = lock(&self.whole);
        Section::save_at(self.part.of(&mut whole), out, version)
    }

    fn load(&mut self, input: &mut Reader<'_>, version: u32) -> vmstate::Result<()> {
        let mut whole = lock(&self.whole);
        Section::load(self.part.of(&mut whole), input, version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(VmState)]
    #[vmstate(name = "device", version = 1)]
    struct Device {
        register: u8,
    }

    #[test]
    fn a_device_that_a_thread_panicked_in_is_not_saved() {
        let device = Arc::new(Mutex::new(Device { register: 0 }));
        let mut section = SharedSection::new(&device);
        section.save(&mut Writer::new()).unwrap();
        let change = thread::spawn(move || {
            let mut held = device.lock().unwrap();
            held.register = 1;
            panic!("in the middle of a change");
        });
        assert!(change.join().is_err());
        let error = section.save(&mut Writer::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(error.to_string().contains("a thread panicked while it changed this device"), "{error}");
    }
}
