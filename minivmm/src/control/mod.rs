//! How a running machine is reached: metrics for Prometheus, and the control socket with QMP, the JSON protocol of QEMU's monitor, in QEMU's words and units.

mod answer;
mod client;
mod exposition;
mod metrics;
mod qmp;
mod report;
mod socket;
#[cfg(test)]
mod tests;

pub use client::{Client, ClientError};
pub use metrics::{Metrics, MetricsDoor};
pub use qmp::{Said, Session};
pub use socket::{ControlError, Door, Server};
