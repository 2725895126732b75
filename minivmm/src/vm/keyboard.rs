//! Passes typed bytes to the serial port, while the port keeps them.

use std::sync::Arc;

use crate::devices::serial::Serial;
use crate::sync::lock;
use crate::vm::decision::takes_input;
use crate::vm::devices::Locked;
use crate::vm::published::Published;

/// Sink of typed bytes.
#[derive(Clone, Debug)]
pub struct Keyboard {
    serial: Locked<Serial>,
    published: Arc<Published>,
}

impl Keyboard {
    pub(super) fn new(serial: &Locked<Serial>, published: &Arc<Published>) -> Self {
        Self { serial: Arc::clone(serial), published: Arc::clone(published) }
    }

    /// Passes `bytes` to the serial port and returns how many it took: none while its state is on the way to another machine or
    /// will be replaced by an arriving one, since the bytes would be lost.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut serial = lock(&self.serial);
        // Checked under the port's lock, under which its section is saved after the run state has changed.
        if takes_input(self.published.run_state()) { serial.enqueue(bytes) } else { 0 }
    }
}
