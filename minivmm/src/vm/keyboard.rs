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

    /// Calls `read` with the number of bytes that the serial port has room for, and enqueues the bytes that it returns. Returns
    /// false without a call if the port has no room, or if its state is being sent to another machine or will be replaced by an
    /// arriving one, so that the bytes would be lost.
    pub fn receive(&self, read: &mut dyn FnMut(usize) -> Vec<u8>) -> bool {
        let mut serial = lock(&self.serial);
        // Checked under the port's lock, under which its state is read after the run state has changed.
        let room = if takes_input(self.published.run_state()) { serial.input_room() } else { 0 };
        if room > 0 {
            serial.enqueue(&read(room));
        }
        room > 0
    }

    /// Passes `bytes` to the serial port and returns how many it took.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        self.receive(&mut |room| {
            taken = room.min(bytes.len());
            bytes[..taken].to_vec()
        });
        taken
    }
}
