//! Interface of interrupt lines for devices.

use std::sync::atomic::{AtomicBool, Ordering};

/// An input of the interrupt controller.
pub trait IrqLine: Send + Sync {
    /// Drives the line. An edge-triggered interrupt is high, then low.
    fn set(&self, high: bool);
}

/// A line that records its level, for tests.
#[derive(Debug, Default)]
pub struct TestLine(AtomicBool);

impl TestLine {
    /// The level last driven.
    pub fn is_high(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl IrqLine for TestLine {
    fn set(&self, high: bool) {
        self.0.store(high, Ordering::SeqCst);
    }
}
