//! The lab: guest kernels, an emulated KVM host, guest workloads, and the migration demo.
//!
//! One executable plays every part: it is copied into the initrds as the first process of the emulated host and of the
//! guest, and it launches the monitors. So an executable that uses the lab begins with [`roles::dispatch`].
#![forbid(unsafe_code)]

mod apt;
pub mod bench;
pub mod cpio;
pub mod demo;
pub mod error;
pub mod faults;
pub mod guest;
pub mod host;
pub mod init;
pub mod kernel;
pub mod l1;
pub mod netlink;
pub mod network;
pub mod packages;
mod pid1;
pub mod process;
mod progress;
pub mod qemu;
pub mod qmp;
pub mod roles;
mod signals;
pub mod skip;
pub mod tiny;
pub mod tree;
pub mod vmm;
