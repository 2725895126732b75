//! `minivmm snapshot` writes the guest of a running machine, as it is at one moment, to a new file.
//!
//! A snapshot is a migration to a file after which the guest runs on here. The guest in the file needs everything outside the
//! file unchanged, so a guest with a writable disk or a lease is refused; `minivmm migrate file:PATH` saves such a guest and
//! leaves it stopped.

use std::io;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::machine::MachineArgs;
use crate::cli::migrate::MigrateArgs;
use crate::config::Address;

const AFTER_HELP: &str = "\
The guest's memory is written to FILE while the guest runs; then the guest is stopped for a moment, as in a migration's switch-over, the rest is written, and the guest runs on.
FILE holds the guest of that moment, and appears only once all of it is on the disk:
  minivmm snapshot save --control unix:/run/vm/qmp /var/lib/vm/state
  minivmm run --config vm.toml --incoming file:/var/lib/vm/state
All guests that are run from FILE have the same network addresses, keys and random numbers.

Disks are not in FILE. A guest with a writable disk or a --lease is refused, because it would run on and change them. To save a guest
with its disks, copy them while the guest is stopped:
  minivmm migrate --control unix:/run/vm/qmp file:/var/lib/vm/state
  cp --preserve=xattr disk.raw /var/lib/vm/disk.raw
  minivmm cont --control unix:/run/vm/qmp
The file is run later with that copy as its disk. On the disk itself only one guest can run on, the one of the file or
the one here: the first one advances the ownership record beside the disk, and the other one is refused.

Exit codes: 0, the guest is in the file, and runs on; others as for minivmm migrate, and the guest runs on.";

/// Commands for snapshots.
#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Save the running guest to a new file, and let the guest run on
    Save(SnapshotArgs),
}

/// Flags of `minivmm snapshot save`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct SnapshotArgs {
    /// The running machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The new file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

impl SnapshotCommand {
    /// Converts to the migration that writes the snapshot. Its path is absolute, since the machine may have been started in
    /// another folder.
    ///
    /// # Errors
    /// This process has no current folder.
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
            copy_disk: None,
            target_schema: None,
            report: None,
            tls: Default::default(),
            sending: Default::default(),
            policy: Default::default(),
        })
    }
}
