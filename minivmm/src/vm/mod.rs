//! The machine: owns vCPUs, memory and devices. One thread, the driver, changes its run state.

mod handle;

pub use handle::{
    Envelope, Event, Handle, MigrationInfo, MigrationParameters, MigrationStatus, Refusal, Request, RunState, Shared,
};
