//! `minivmm snapshot` writes the guest of a running machine, as it is at one moment, to a new file.
//!
//! A snapshot is a migration to a file after which the guest runs on here. The guest in the file needs everything outside the
//! file unchanged, so writable disks have to be copied, and a guest with a lease is refused; `minivmm migrate file:PATH` saves such
//! a guest and leaves it stopped.

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

A guest that writes to disks runs on and changes them, so they are copied as well, at the same moment: disk virtio0, as minivmm status
shows it, to FILE.virtio0. The guest of FILE runs on these images, and is refused on the disks themselves:
  minivmm snapshot save --control unix:/run/vm/qmp --copy-disk /var/lib/vm/state
  minivmm run --memory 512M --disk /var/lib/vm/state.virtio0 --incoming file:/var/lib/vm/state
Once it has run, the images belong to it. To run the guest of FILE several times, copy the images with their ownership records
(cp --reflink=auto --preserve=xattr) before.

A guest with a --lease is refused, and so is one whose writable disks are not copied. To copy the disks yourself, stop the guest:
  minivmm migrate --control unix:/run/vm/qmp file:/var/lib/vm/state
  cp --reflink=auto --preserve=xattr disk.raw /var/lib/vm/disk.raw
  minivmm cont --control unix:/run/vm/qmp

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
    /// Copy the writable disks to images beside FILE, while the guest runs. With names, as minivmm status shows them, these have
    /// to be all writable disks
    #[arg(long, value_name = "DISK", num_args = 0.., require_equals = true, value_delimiter = ',')]
    pub copy_disk: Option<Vec<String>>,
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
        let Self::Save(SnapshotArgs { machine, copy_disk, file }) = self;
        Ok(MigrateArgs {
            machine,
            to: Some(Address::File { path: std::path::absolute(file)?, offset: 0 }),
            update: Default::default(),
            keep_running: true,
            postcopy: false,
            resume: false,
            to_qemu: false,
            copy_disk,
            target_schema: None,
            report: None,
            tls: Default::default(),
            sending: Default::default(),
            policy: Default::default(),
        })
    }
}
