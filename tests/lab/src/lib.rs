//! The lab: guest kernels, an emulated KVM host, guest workloads, and what drives a monitor from outside. It knows minivmm
//! as a program only: minivmm's own tests use it.
//!
//! One executable plays every part: it is copied into the initrds as the first process of the emulated host and of the
//! guest, and it launches the monitors. It begins with [`roles::dispatch`] (the package `vmstate-demo` has it).
#![forbid(unsafe_code)]

mod apt;
pub mod bench;
pub mod cpio;
pub mod document;
pub mod error;
pub mod faults;
pub mod first_hour;
pub mod guest;
pub mod host;
pub mod image;
pub mod init;
pub mod kernel;
pub mod l1;
pub mod netlink;
pub mod network;
pub mod packages;
pub mod patience;
pub mod picture;
mod pid1;
pub mod process;
pub mod python;
pub mod qemu;
pub mod qmp;
pub mod random;
pub mod roles;
pub mod skip;
pub mod terminal;
pub mod tiny;
pub mod tree;
pub mod vmm;
pub mod waited;
