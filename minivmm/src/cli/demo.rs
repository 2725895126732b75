//! `minivmm demo`: flags of the live-migration demonstration.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use vmstate_lab::demo;

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
    /// Number of the guest's vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u8,
    /// Write the report's numbers to this file as well
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl DemoArgs {
    /// The demo these flags describe.
    pub fn into_options(self) -> demo::Options {
        let guest = match self.guest {
            DemoGuest::Linux => demo::Kind::Linux,
            DemoGuest::Tiny => demo::Kind::Tiny,
        };
        demo::Options { guest, kernel: self.kernel, cpus: self.cpus, json: self.json, qemu: false }
    }
}
