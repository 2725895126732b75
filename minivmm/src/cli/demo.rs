//! `minivmm demo`: flags of the live-migration demonstration.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// The guest that is migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DemoGuest {
    /// An unmodified distribution kernel; needs hardware virtualization, or QEMU to emulate it
    Linux,
    /// A bare-metal program of a few hundred bytes; runs on any /dev/kvm
    Tiny,
}

/// Flags of `minivmm demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Guest to migrate
    #[arg(long, value_enum, default_value_t = DemoGuest::Linux)]
    pub guest: DemoGuest,
    /// Linux kernel; without it the distribution's cloud kernel is fetched
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Write the report's numbers to this file as well
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}
