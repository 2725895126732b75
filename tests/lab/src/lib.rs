//! The lab: guest kernels, an emulated KVM host, guest workloads, and drivers of a monitor from outside. It uses
//! minivmm as a program only, because minivmm's own tests depend on it.
//!
//! One executable has every role: it is copied into the initrds as the first process of the emulated host and of the
//! guest, and it launches the monitors. It begins with [`roles::dispatch`], as the program of the package
//! `vmstate-demo` does.
#![forbid(unsafe_code)]

mod apt;
pub mod bench;
pub mod cpio;
pub mod document;
pub mod error;
pub mod faults;
pub mod first_hour;
pub mod guest;
pub mod held;
pub mod host;
pub mod image;
pub mod init;
pub mod kernel;
pub mod l1;
pub mod netlink;
pub mod network;
pub mod packages;
pub mod picture;
mod pid1;
pub mod process;
pub mod python;
pub mod qemu;
pub mod qmp;
pub mod random;
pub mod roles;
pub mod skip;
pub mod sleep_timer;
pub mod terminal;
pub mod tiny;
pub mod tmpfs;
pub mod tree;
pub mod vmm;
pub mod wait;
