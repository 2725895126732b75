//! Where typed bytes go: to the serial port of the machine as it is now, as long as that port keeps what it gets.

use std::sync::{Arc, Mutex, PoisonError};

use crate::devices::serial::Serial;
use crate::vm::devices::Shared as SharedDevice;
use crate::vm::published::Shared;
use crate::vm::queue::takes_input;

/// Where typed bytes go.
#[derive(Clone, Debug)]
pub struct Keyboard {
    /// The serial port of the machine as it is now; a reset makes a new one.
    serial: Arc<Mutex<SharedDevice<Serial>>>,
    published: Arc<Shared>,
}

impl Keyboard {
    pub(super) fn new(serial: &SharedDevice<Serial>, published: &Arc<Shared>) -> Self {
        Self { serial: Arc::new(Mutex::new(Arc::clone(serial))), published: Arc::clone(published) }
    }

    /// Gives `bytes` to the serial port and says how many it took: none while they would be lost, as its state is on the
    /// way to another machine or will be replaced by the one that arrives.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let serial = Arc::clone(&self.serial.lock().unwrap_or_else(PoisonError::into_inner));
        let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked under the port's lock: its section is saved under it, after the run state has changed.
        if takes_input(self.published.run_state()) { serial.enqueue(bytes) } else { 0 }
    }

    pub(super) fn plug_into(&self, serial: &SharedDevice<Serial>) {
        *self.serial.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(serial);
    }
}
