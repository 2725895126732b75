//! Device models. They see guest memory, interrupt lines and bytes; never KVM.
//!
//! A model that fills one file has its section on its struct. In a folder, `mod.rs` is the model and `state.rs` its section; a part of
//! the host (`output.rs`, `image.rs`, `backend.rs`) has a file of its own.

pub mod ged;
pub mod generation;
pub mod serial;
pub mod virtio;

use std::time::Duration;

/// What the machine asks of a device that does work of its own (threads, host I/O).
pub trait Device: Send {
    /// Stops taking new work and waits until all that is in flight is finished and visible to the guest.
    ///
    /// # Errors
    /// The work did not finish within `deadline`: says which. The device then goes on as before.
    fn pause(&mut self, deadline: Duration) -> Result<(), DeviceError>;

    /// The state of a whole machine was loaded, this device's with it: reads what guest memory has of the device. Memory may come while
    /// this waits for it, which it may not while a section loads.
    fn loaded(&mut self) {}

    /// Goes on, and looks at its queues again: a request may have come while it was paused or on another host.
    fn resume(&mut self);
}

/// A device that could not do what the machine asked.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {what}")]
pub struct DeviceError {
    /// Section name of the device, as `virtio-mmio@00000000feb00e00/virtio-blk`.
    pub device: String,
    /// What happened and what to do.
    pub what: String,
}
