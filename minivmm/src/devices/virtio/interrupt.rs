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

/// InterruptStatus and the interrupt line. Both change under one lock: otherwise an acknowledgement could lower the line after
/// a new interrupt has raised it.
pub struct Interrupt {
    status: Mutex<u8>,
    /// ConfigGeneration: number of changes of the configuration.
    generation: AtomicU32,
    line: Arc<dyn IrqLine>,
}

impl Interrupt {
    /// Makes an interrupt with no cause pending and the line low, even if the device's predecessor before a reset left it high.
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        line.set(false);
        Self { status: Mutex::new(0), generation: AtomicU32::new(0), line }
    }

    fn lock(&self) -> MutexGuard<'_, u8> {
        lock(&self.status)
    }

    /// Signals used buffers.
    pub fn raise_queue(&self) {
        self.set(|status| status | VRING);
    }

    /// Signals a change of the configuration, or a needed reset.
    pub fn raise_config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.set(|status| status | CONFIG);
    }

    /// Returns a number that differs between two reads if the configuration changed in between (virtio 1.2 §2.5.1).
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Clears the causes in `bits`, which the guest has handled.
    pub fn acknowledge(&self, bits: u8) {
        self.set(|status| status & !bits);
    }

    /// Returns the pending causes.
    pub fn status(&self) -> u8 {
        *self.lock()
    }

    /// Replaces the pending causes and always drives the line: the interrupt controller of another host does not have its level
    /// yet.
    pub fn restore(&self, status: u8) {
        let mut pending = self.lock();
        *pending = status;
        self.line.set(status != 0);
    }

    fn set(&self, change: impl FnOnce(u8) -> u8) {
        let mut status = self.lock();
        let before = *status;
        *status = change(before);
        // A high line interrupts again by itself, and driving it costs a system call.
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
