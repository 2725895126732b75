//! The lab: guest kernels, an emulated KVM host, guest workloads, and the migration demo.
#![forbid(unsafe_code)]

pub mod cpio;
pub mod error;
pub mod guest;
pub mod init;
pub mod kernel;
pub mod l1;
pub mod netlink;
pub mod packages;
mod pid1;
pub mod process;
pub mod roles;
pub mod skip;
pub mod tiny;
pub mod tree;
