//! `minivmm cont` resumes a stopped guest, or takes back a guest that a migration left stopped.

use clap::Args;
use serde_json::json;

use crate::cli::machine::MachineArgs;
use crate::control::ClientError;

/// Flags of `minivmm cont`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  minivmm cont --control unix:/run/vm/qmp\n  minivmm cont --control unix:/run/vm/qmp --force"
)]
pub struct ContArgs {
    /// The machine to resume.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Resume the guest here although nothing proves after a migration that the destination does not run it. If the destination
    /// does run it, two guests write to the same disks
    #[arg(long)]
    pub force: bool,
}

impl ContArgs {
    /// Sends `cont` to the machine.
    ///
    /// # Errors
    /// The machine cannot be reached, or refuses.
    pub fn carry_out(&self) -> Result<(), ClientError> {
        let arguments = if self.force { json!({"force": true}) } else { json!({}) };
        self.machine.connect()?.execute("cont", arguments).map(drop)
    }
}
