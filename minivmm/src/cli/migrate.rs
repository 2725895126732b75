//! `minivmm migrate`: asks a running machine to migrate, shows progress, and waits for the end.

use std::path::PathBuf;

use clap::Args;

use crate::cli::values;
use crate::config::Address;

/// Flags of `minivmm migrate`.
#[derive(Args, Clone, Debug)]
pub struct MigrateArgs {
    /// QMP socket of the machine: unix:PATH
    #[arg(long, value_name = "unix:PATH", value_parser = values::control)]
    pub control: PathBuf,
    /// Where the machine shall go: unix:PATH or tcp:HOST:PORT
    #[arg(value_name = "ADDRESS", value_parser = str::parse::<Address>)]
    pub to: Address,
}
