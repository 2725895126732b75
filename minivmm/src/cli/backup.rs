//! `minivmm backup` copies a disk of a running machine, as it is at one moment, to a raw image.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::interrupts::Interrupts;
use crate::cli::machine::MachineArgs;
use crate::cli::units::{size, time};
use crate::cli::values;
use crate::control::{Client, ClientError};
use crate::error::{print_message, reason};
use crate::files::{self, Fit, Mode};

/// Interval between two looks at the job.
const INTERVAL: Duration = Duration::from_millis(100);

/// Name under which an existing image is passed to the machine.
const PASSED: &str = "backup";

const AFTER_HELP: &str = "\
FILE holds the disk of the moment at which the backup began, as after a power failure, while the guest writes on. A new FILE appears only
once all of it is on the host's disk:
  minivmm backup --control unix:/run/vm/qmp /backup/disk.img

With --bitmap, the machine records what the guest changes from that moment on, in a dirty bitmap, and --increment copies only that, to the
same image or to a copy of it. A bitmap that does not exist is made:
  minivmm backup --control unix:/run/vm/qmp --bitmap daily /backup/disk.img
  minivmm backup --control unix:/run/vm/qmp --bitmap daily --increment /backup/disk.img
After an increment that failed or was cancelled, the image is no backup until the next increment has succeeded.

The first Ctrl-C cancels the backup; the second ends this command at once, and the machine goes on cancelling.

Exit codes: 0, the backup is complete; 1, it failed or was cancelled, or the machine refused; 2, nothing was begun; 5, Ctrl-C was pressed
twice.";

/// Flags of `minivmm backup`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct BackupArgs {
    /// The running machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The disk, as minivmm status shows it
    #[arg(long, value_name = "DISK", default_value = "virtio0")]
    pub disk: String,
    /// Record the guest's later changes in this dirty bitmap, for increments
    #[arg(long, value_name = "NAME")]
    pub bitmap: Option<String>,
    /// Copy only what the guest has changed since the last backup with the bitmap, to a FILE that exists
    #[arg(long, requires = "bitmap")]
    pub increment: bool,
    /// Most bytes a second, as 100M [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = values::bytes_per_second)]
    pub max_bandwidth: Option<u64>,
    /// The raw image
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

impl BackupArgs {
    /// Begins the backup, and waits until it is complete.
    ///
    /// # Errors
    /// The machine cannot be reached or refuses, FILE cannot be opened, or the backup failed or was cancelled.
    pub fn carry_out(&self) -> Result<(), ClientError> {
        let existing = self.increment.then(|| open(&self.file)).transpose()?;
        let interrupts = Interrupts::new()?;
        let mut client = self.machine.connect()?;
        // Other clients may have jobs of their own.
        let id = format!("minivmm-{}", process::id());
        let mut backup = json!({"device": self.disk, "job-id": id, "sync": "full", "format": "raw"});
        if let Some(rate) = self.max_bandwidth {
            backup["speed"] = rate.into();
        }
        match &existing {
            Some(file) => {
                client.pass(PASSED, file)?;
                (backup["target"], backup["mode"]) = (format!("fd:{PASSED}").into(), "existing".into());
                backup["sync"] = "incremental".into();
            }
            // The machine makes the file, and may have been started in another folder.
            None => backup["target"] = std::path::absolute(&self.file)?.display().to_string().into(),
        }
        let mut actions = Vec::new();
        if let Some(name) = &self.bitmap {
            (backup["bitmap"], backup["bitmap-mode"]) = (name.as_str().into(), "on-success".into());
            if !self.increment && !has_bitmap(&mut client, &self.disk, name)? {
                let bitmap = json!({"node": self.disk, "name": name});
                actions.push(json!({"type": "block-dirty-bitmap-add", "data": bitmap}));
            }
        }
        actions.push(json!({"type": "drive-backup", "data": backup}));
        client.execute("transaction", json!({"actions": actions}))?;
        self.await_end(&mut client, &id, &interrupts)
    }

    fn await_end(&self, client: &mut Client, id: &str, interrupts: &Interrupts) -> Result<(), ClientError> {
        let begun = Instant::now();
        loop {
            if interrupts.pending() {
                interrupts.asking();
                match client.execute("block-job-cancel", json!({"device": id})) {
                    // A refusal means that the job has ended: its event says how.
                    Ok(_) | Err(ClientError::Refused(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            // Events are read together with the answer.
            client.execute("query-block-jobs", json!({}))?;
            if let Some(end) = client.end_of_job(id) {
                return self.report(&end, begun.elapsed());
            }
            thread::sleep(INTERVAL);
        }
    }

    fn report(&self, end: &Value, took: Duration) -> Result<(), ClientError> {
        let data = &end["data"];
        let why = match data["error"].as_str() {
            Some(error) => format!("the backup failed: {error}"),
            None if end["event"] == "BLOCK_JOB_CANCELLED" => "the backup was cancelled".into(),
            None => {
                let (file, copied) = (self.file.display(), size(data["len"].as_u64().unwrap_or(0)));
                print_message(format!("disk {} is in {file}: {copied} in {}", self.disk, time(took)));
                return Ok(());
            }
        };
        let broken =
            if self.increment { "; the image is no backup until the next increment has succeeded" } else { "" };
        Err(ClientError::Refused(format!("{why}{broken}")))
    }
}

/// Opens an image that exists.
fn open(path: &Path) -> Result<OwnedFd, ClientError> {
    let opened = files::open_path(path, Mode::ReadWrite, Fit::Disk);
    opened.map(OwnedFd::from).map_err(|error| ClientError::Address {
        address: path.display().to_string(),
        why: format!("{}; an increment goes to the image of an earlier backup", reason(&error)),
    })
}

fn has_bitmap(client: &mut Client, disk: &str, name: &str) -> Result<bool, ClientError> {
    let disks = client.execute("query-block", json!({}))?;
    let mut disks = disks.as_array().into_iter().flatten();
    let bitmaps = disks.find(|other| other["device"] == disk).map(|disk| &disk["inserted"]["dirty-bitmaps"]);
    Ok(bitmaps.and_then(Value::as_array).into_iter().flatten().any(|bitmap| bitmap["name"] == name))
}
