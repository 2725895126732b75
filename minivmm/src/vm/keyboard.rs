//! Where typed bytes go: to the serial port, as long as it keeps what it gets.

use std::sync::Arc;

use crate::devices::serial::Serial;
use crate::sync::lock;
use crate::vm::decision::takes_input;
use crate::vm::devices::Locked;
use crate::vm::published::Published;

/// Where typed bytes go.
#[derive(Clone, Debug)]
pub struct Keyboard {
    serial: Locked<Serial>,
    published: Arc<Published>,
}

impl Keyboard {
    pub(super) fn new(serial: &Locked<Serial>, published: &Arc<Published>) -> Self {
        Self { serial: Arc::clone(serial), published: Arc::clone(published) }
    }

    /// Gives `bytes` to the serial port and says how many it took: none while they would be lost, as its state is on the
    /// way to another machine or will be replaced by the one that arrives.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut serial = lock(&self.serial);
        // Asked under the port's lock: its section is saved under it, after the run state has changed.
        if takes_input(self.published.run_state()) { serial.enqueue(bytes) } else { 0 }
    }
}
