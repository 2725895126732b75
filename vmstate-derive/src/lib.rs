//! `#[derive(VmState)]`: see the `vmstate` crate.
#![forbid(unsafe_code)]
