//! `minivmm snapshot`: a running machine's guest of one moment in a new file.
//!
//! It is a migration to that file behind which the guest goes on. So it has to have nothing that its past in the file would need unchanged: no
//! writable disk, no lease. Others are put aside by `minivmm migrate file:PATH`, behind which the guest stands.

use std::io;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::machine::MachineArgs;
use crate::cli::migrate::MigrateArgs;
use crate::config::Address;

const AFTER_HELP: &str = "\
The guest's memory is written to FILE while it runs; then it stands for a moment, as in a migration's switch-over, the rest is written, and it goes on.
FILE has the guest of that moment, and is there only once all of it is on the disk:
  minivmm snapshot save --control unix:/run/vm/qmp /var/lib/vm/state
  minivmm run --config vm.toml --incoming file:/var/lib/vm/state
Each guest that is run from FILE has the network addresses, keys and random numbers of the others.

Disks are not in FILE. A guest with a writable disk or a --lease is refused, for it would go on and change them. With its disks it is put
aside while it stands:
  minivmm migrate --control unix:/run/vm/qmp file:/var/lib/vm/state
  cp --preserve=xattr disk.raw /var/lib/vm/disk.raw
  minivmm cont --control unix:/run/vm/qmp
The file is run later with that copy as its disk. On the disk itself, whichever goes on first, the guest of the file or the one here,
moves the ownership record beside it on, and the other one is refused.

Exit codes: 0, the guest is in the file, and runs on; others as of minivmm migrate, and the guest runs on.";

/// What is done about snapshots.
#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Write the guest of one moment to a new file, and let it run on
    Save(SnapshotArgs),
}

/// Flags of `minivmm snapshot save`.
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

impl SnapshotCommand {
    /// The migration that does it. The machine makes the file, and may have been started in another folder.
    ///
    /// # Errors
    /// This process has no folder.
    pub fn into_migration(self) -> io::Result<MigrateArgs> {
        let Self::Save(SnapshotArgs { machine, file }) = self;
        Ok(MigrateArgs {
            machine,
            to: Some(Address::File { path: std::path::absolute(file)?, offset: 0 }),
            update: Default::default(),
            keep_running: true,
            postcopy: false,
            resume: false,
            to_qemu: false,
            copy_disk: false,
            target_schema: None,
            report: None,
            tls: Default::default(),
            sending: Default::default(),
            policy: Default::default(),
        })
    }
}
