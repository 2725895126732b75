//! Flag that selects a running machine; and `minivmm stop` and `minivmm quit`, which have no other flag.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::values;
use crate::control::{Client, ClientError};

/// The flag that names a running machine.
#[derive(Args, Clone, Debug)]
pub struct MachineArgs {
    /// QMP socket of the machine: unix:PATH
    #[arg(long, value_name = "unix:PATH", value_parser = values::control)]
    pub control: PathBuf,
}

impl MachineArgs {
    pub(super) fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.control)
    }

    /// Sends `command`, which takes no arguments, to the machine.
    ///
    /// # Errors
    /// The machine cannot be reached, or refuses.
    pub fn carry_out(&self, command: &str) -> Result<(), ClientError> {
        self.connect()?.execute(command, json!({})).map(drop)
    }
}
