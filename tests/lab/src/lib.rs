//! The lab: guest kernels, an emulated KVM host, guest workloads, and the migration demo.

pub mod tiny;
