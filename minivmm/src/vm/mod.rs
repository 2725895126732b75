//! The machine: owns vCPUs, memory and devices. Only one thread, the driver, changes its run state.

mod assembly;
pub mod backends;
mod backup;
mod decision;
pub mod devices;
mod dirty_rate;
mod driver;
mod guest_events;
mod handle;
mod inventory;
mod keyboard;
pub mod machine;
mod migration;
mod new_file;
mod published;
mod queue;
mod request;
mod state;

pub use assembly::{End, Vm};
pub use backup::{BackupTerms, BitmapMode, Job, JobEvent, Jobs, Target};
pub use dirty_rate::{DirtyRate, Sampling};
pub use handle::Handle;
pub use inventory::{DiskFacts, Inventory};
pub use keyboard::Keyboard;
pub use migration::Ended;
pub use migration::handover::HandedOver;
pub use migration::status::MigrationStatus;
pub use published::{Event, MigrationInfo, Published, default_parameters};
pub use queue::{Next, Queue};
pub use request::{
    AnyRequest, DiskCopies, EngineRequest, Envelope, GuestEvent, ParameterChange, Refusal, Request, Terms,
};
pub use state::RunState;
