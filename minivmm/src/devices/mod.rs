//! Device models. They see guest memory, interrupt lines and bytes; never KVM.
//!
//! A model in one file has its section on its struct. In a folder, `mod.rs` is the model and `state.rs` its section; each host
//! side (`output.rs`, `image.rs`, `backend.rs`) has a file of its own.

pub mod ged;
pub mod generation;
pub mod serial;
pub mod virtio;

use std::time::Duration;

/// Operations of the machine on a device with threads or host I/O of its own.
pub trait Device: Send {
    /// Stops taking new work and waits until all that is in flight is finished and visible to the guest.
    ///
    /// # Errors
    /// The work did not finish within `deadline`; the error names the work. The device then continues as before.
    fn pause(&mut self, deadline: Duration) -> Result<(), DeviceError>;

    /// Called once the state of the whole machine is loaded: reads the device's part of guest memory. In post-copy this may
    /// wait for a page, which loading a section may not.
    fn loaded(&mut self) {}

    /// Continues, and checks all queues: a request may have come while the device was paused or on another host.
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
