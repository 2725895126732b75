//! The machine: owns vCPUs, memory and devices. One thread, the driver, changes its run state.

mod handle;

pub use handle::{Envelope, Handle, MigrationInfo, MigrationStatus, Refusal, Request, RunState, Shared};
