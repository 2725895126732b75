//! The machine: owns vCPUs, memory and devices. One thread, the driver, changes its run state.

pub mod backends;
pub mod devices;
mod driver;
mod handle;
mod incoming;
mod introduction;
pub mod machine;
mod migrating;
mod outgoing;
mod seam;
mod underway;

pub use driver::{End, Keyboard, Vm};
pub use handle::{
    Departed, Envelope, Event, Handle, MigrationInfo, MigrationParameters, MigrationStatus, Refusal, Request, RunState,
    Shared,
};
