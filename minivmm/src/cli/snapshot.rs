//! `minivmm snapshot`: puts a running machine's guest aside in a new file.
//!
//! It is a migration to that file: the guest runs for most of it, and stands at its end. One that went on would write to its disks, and what is in the file is
//! of no use with other disks than those of its moment.

use std::io;
use std::path::PathBuf;

use clap::Args;

use crate::cli::machine::MachineArgs;
use crate::cli::migrate::MigrateArgs;
use crate::config::Address;

const AFTER_HELP: &str = "\
The guest's memory is written to FILE while it runs; then it is stopped, the rest is written, and it stays stopped, with its disks let go of. The disks are not in
FILE: it belongs to the disks as they are now. So either end this machine and run the guest from the file, with the same options:
  minivmm snapshot --control unix:/run/vm/qmp /var/lib/vm/state
  minivmm quit --control unix:/run/vm/qmp
  minivmm run --config vm.toml --incoming file:/var/lib/vm/state
or keep a copy of the disks, with their ownership records, and let the guest go on here:
  minivmm snapshot --control unix:/run/vm/qmp /var/lib/vm/state
  cp --preserve=xattr disk.raw /var/lib/vm/disk.raw
  minivmm cont --control unix:/run/vm/qmp
The file can be run later with that copy as its disk; end the guest here before, for both have the same network addresses. On the disks
themselves, whichever goes on first, the guest of the file or the one here, moves the record beside them on, and the other one is
refused. Give a guest without a writable disk a --lease: without one nothing keeps two of it from running, and cont wants --force.

Exit codes: 0, the guest is in the file; others as of minivmm migrate, and the guest runs on.";

/// Flags of `minivmm snapshot`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct SnapshotArgs {
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The new file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

impl SnapshotArgs {
    /// The migration that does it. The machine makes the file, and may have been started in another folder.
    ///
    /// # Errors
    /// This process has no folder.
    pub fn into_migration(self) -> io::Result<MigrateArgs> {
        let to = Address::File { path: std::path::absolute(self.file)?, offset: 0 };
        Ok(MigrateArgs {
            machine: self.machine,
            to,
            target_schema: None,
            report: None,
            tls: Default::default(),
            sending: Default::default(),
            policy: Default::default(),
        })
    }
}
