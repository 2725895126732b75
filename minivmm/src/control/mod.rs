//! The control socket: QMP, the JSON protocol of QEMU's monitor, in QEMU's words and units.

mod answer;
mod client;
mod qmp;
mod report;
mod socket;
#[cfg(test)]
mod tests;

pub use client::{Client, ClientError};
pub use qmp::{Said, Session};
pub use socket::{ControlError, Door, Server};
