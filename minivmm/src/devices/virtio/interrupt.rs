//! The interrupt of a virtio-mmio device: a status register and a level-triggered line that follows it.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use crate::irq::IrqLine;
use crate::sync::lock;

/// A used buffer notification (virtio 1.2 §4.2.2, InterruptStatus bit 0).
const VRING: u8 = VIRTIO_MMIO_INT_VRING as u8;
/// A configuration change notification (bit 1).
const CONFIG: u8 = VIRTIO_MMIO_INT_CONFIG as u8;

/// InterruptStatus and its line. Both change under one lock: else an acknowledgement could pull the line down
/// after a new interrupt pushed it up.
pub struct Interrupt {
    status: Mutex<u8>,
    /// ConfigGeneration: how often the configuration changed.
    generation: AtomicU32,
    line: Arc<dyn IrqLine>,
}

impl Interrupt {
    /// Nothing pending, line low, even if the device in this place before a reset left it high.
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        line.set(false);
        Self { status: Mutex::new(0), generation: AtomicU32::new(0), line }
    }

    fn lock(&self) -> MutexGuard<'_, u8> {
        lock(&self.status)
    }

    /// Buffers were used.
    pub fn raise_queue(&self) {
        self.set(|status| status | VRING);
    }

    /// The configuration, or the need for a reset, changed.
    pub fn raise_config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.set(|status| status | CONFIG);
    }

    /// Differs between two reads if the configuration changed in between (virtio 1.2 §2.5.1).
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The guest has handled the causes in `bits`.
    pub fn acknowledge(&self, bits: u8) {
        self.set(|status| status & !bits);
    }

    /// The pending causes.
    pub fn status(&self) -> u8 {
        *self.lock()
    }

    /// Replaces the pending causes and drives the line, also when nothing changed: the interrupt controller of
    /// another host does not know its level.
    pub fn restore(&self, status: u8) {
        let mut pending = self.lock();
        *pending = status;
        self.line.set(status != 0);
    }

    fn set(&self, change: impl FnOnce(u8) -> u8) {
        let mut status = self.lock();
        let before = *status;
        *status = change(before);
        // A line that stays high interrupts again by itself, and each drive costs a system call.
        if (before != 0) != (*status != 0) {
            self.line.set(*status != 0);
        }
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interrupt").field(&self.status()).finish()
    }
}
