//! Whole migrations of a Linux guest between two monitors, judged by the guest itself. docs/testing.md lists the cases.
//!
//! Each case runs where KVM runs Linux: here, or else in a fresh emulated host of its own, where this very executable
//! runs that one case. Only [`qemu`] has cases that need no such KVM.
#![forbid(unsafe_code)]

mod boot;
mod clones;
mod faults;
mod first_hour;
mod forecast;
mod loads;
mod matrix;
mod place;
mod qemu;
mod stream;
mod world;
