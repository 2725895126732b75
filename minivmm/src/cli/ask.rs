//! `minivmm stop` and `minivmm quit`: commands that ask a running machine one thing, and need nothing but to know which.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::values;
use crate::control::{Client, ClientError};

/// Flags of a command that only names a machine.
#[derive(Args, Clone, Debug)]
pub struct AskArgs {
    /// QMP socket of the machine: unix:PATH
    #[arg(long, value_name = "unix:PATH", value_parser = values::control)]
    pub control: PathBuf,
}

impl AskArgs {
    /// Has the machine carry out `command`, which takes no arguments.
    ///
    /// # Errors
    /// The machine cannot be reached, or refuses.
    pub fn carry_out(&self, command: &str) -> Result<(), ClientError> {
        Client::connect(&self.control)?.execute(command, json!({})).map(drop)
    }
}
