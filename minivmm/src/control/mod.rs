//! Control of a running machine: metrics for Prometheus, and the control socket with QMP, the JSON protocol of QEMU's monitor,
//! with QEMU's names and units.

mod absent;
mod announce;
mod bitmap_mapping;
mod bitmaps;
mod channels;
mod client;
mod commands;
mod descriptors;
mod dirty_rate;
mod exposition;
mod human;
mod human_info;
mod introspection;
mod jobs;
mod kind;
mod machine;
mod manual;
mod metrics;
mod migration;
mod qmp;
mod report;
mod schema;
mod socket;
mod table;
#[cfg(test)]
mod tests;
mod transaction;

pub use channels::{Channel, channel};
pub use client::{Client, ClientError};
pub use manual::tables;
pub use metrics::{METRICS_DESCRIPTOR, Metrics, MetricsSocket};
pub use qmp::{ParsedCommand, Session, SessionState};
pub use socket::{ControlError, ControlSocket, Server, aside};
