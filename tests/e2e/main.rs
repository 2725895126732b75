//! Whole migrations of a Linux guest between two monitors, verified by the guest itself. docs/testing.md lists the
//! cases.
//!
//! Each case runs where KVM runs Linux: here, or else in a copy of an emulated host, where this executable runs that
//! one case. Only [`qemu`] has cases that need no such KVM.
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
