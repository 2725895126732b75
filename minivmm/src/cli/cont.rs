//! `minivmm cont`: lets a stopped guest go on, or takes one back that a migration has left standing.

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
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// After a migration of which nothing proves that the destination does not run the guest: run it here all the same.
    /// If it does run there, two guests write to the same disks
    #[arg(long)]
    pub force: bool,
}

impl ContArgs {
    /// Asks the machine.
    ///
    /// # Errors
    /// The machine cannot be reached, or refuses.
    pub fn carry_out(&self) -> Result<(), ClientError> {
        let arguments = if self.force { json!({"force": true}) } else { json!({}) };
        self.machine.connect()?.execute("cont", arguments).map(drop)
    }
}
