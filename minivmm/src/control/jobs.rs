//! Backup jobs of disks: `drive-backup`, also as an action of a transaction, and the commands and events of jobs.
//!
//! Facts: QEMU's `blockdev.c` (`do_backup_common`, `drive_backup_action`) and `qapi/block-core.json`.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::config::Address;
use crate::control::bitmaps::{find, text};
use crate::control::commands::{Arguments, Failure};
use crate::control::descriptors::Caller;
use crate::control::kind::{Kind, Member, needed, optional};
use crate::control::table::{Command, Event};
use crate::control::transaction::{Step, carry_out};
use crate::devices::virtio::blk::{Stop, Transaction};
use crate::vm::{BackupTerms, BitmapMode, Handle, Job, JobEvent, Request, Target};

/// Name of the command and of the action.
pub(super) const BACKUP: &str = "drive-backup";

const FULL: &str = "full";
const INCREMENTAL: &str = "incremental";
const BITMAP: &str = "bitmap";
const EXISTING: &str = "existing";
const MODES: [(&str, BitmapMode); 3] =
    [("on-success", BitmapMode::OnSuccess), ("never", BitmapMode::Never), ("always", BitmapMode::Always)];

const ALWAYS_ENDS: &str = "a job ends by itself when it is complete";
const REPORTS: &str = "an error ends the job, and the guest goes on";

/// Rows of the command table.
pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::new(
            BACKUP,
            "begins a [backup](minivmm-devices.md#an-incremental-backup): a job that copies the disk `device`, as it is now, to the raw image `target` while the guest \
             runs. `sync` is `full`, `incremental` (the dirty clusters of `bitmap`, which become clean if the job succeeds) or `bitmap` (the same, but `bitmap-mode` says when they \
             become clean). `mode` is `absolute-paths`, the default, for a new file, which has its name once it is complete; or `existing` for a file of the disk's size, \
             which a confined machine gets by `getfd`, as `fd:NAME`. `job-id` is the disk's name if it is not given, `speed` is in bytes a second. Refused while a migration is under way",
            |caller, arguments| carry_out(caller, [Step::Backup(PreparedBackup::new(caller, arguments)?)]),
        )
        .takes([
            optional("job-id", Kind::Text),
            needed("device", Kind::Text),
            needed("sync", Kind::word([FULL, INCREMENTAL, BITMAP])),
            optional("speed", Kind::Integer),
            optional("bitmap", Kind::Text),
            optional("bitmap-mode", Kind::word(MODES.map(|(name, _)| name))),
            needed("target", Kind::Text),
            optional("format", Kind::Text),
            optional("mode", Kind::word([EXISTING, "absolute-paths"])),
        ])
        .lacks(&[
            ("auto-finalize", ALWAYS_ENDS),
            ("auto-dismiss", ALWAYS_ENDS),
            ("on-source-error", REPORTS),
            ("on-target-error", REPORTS),
            ("compress", "a raw image is not compressed"),
        ]),
        Command::new("query-block-jobs", "the backup jobs, the newest first", |handle, _| {
            Ok(handle.jobs().all().iter().map(|job| shown(job)).collect())
        })
        .gives(Kind::list(Kind::object(job_kind()))),
        Command::new(
            "block-job-cancel",
            "cancels the job `device`; BLOCK_JOB_CANCELLED follows. `force` makes no difference",
            cancel,
        )
        .takes([needed("device", Kind::Text), optional("force", Kind::Switch)]),
    ]
}

/// Rows of the event table.
pub(super) fn events() -> Vec<Event> {
    let end = || {
        let figures = ["len", "offset", "speed"].map(|figure| needed(figure, Kind::Integer));
        [needed("type", Kind::word(["backup"])), needed("device", Kind::Text)].into_iter().chain(figures)
    };
    vec![
        Event::new(
            "BLOCK_JOB_COMPLETED",
            "a job has ended: its backup is complete and on the disk, or it has failed, and there is an `error`",
            end().chain([optional("error", Kind::Text)]),
        ),
        Event::new("BLOCK_JOB_CANCELLED", "a job was cancelled, and has ended", end()),
        Event::new(
            "BLOCK_JOB_ERROR",
            "a job could not read its disk or write its target, and will end",
            [
                needed("device", Kind::Text),
                needed("operation", Kind::word(["read", "write"])),
                needed("action", Kind::word(["report"])),
            ],
        ),
    ]
}

fn job_kind() -> Vec<Member> {
    let switches = ["auto-finalize", "auto-dismiss", "busy", "paused", "ready"];
    let words = [
        needed("type", Kind::word(["backup"])),
        needed("device", Kind::Text),
        needed("io-status", Kind::word(["ok"])),
        needed("status", Kind::word(["running"])),
    ];
    let figures = ["len", "offset", "speed"].map(|figure| needed(figure, Kind::Integer));
    let switches = switches.map(|switch| needed(switch, Kind::Switch));
    words.into_iter().chain(figures).chain(switches).collect()
}

fn shown(job: &Job) -> Value {
    let (offset, len) = job.backup().progress();
    json!({
        "auto-finalize": true,
        "io-status": "ok",
        "device": job.id(),
        "auto-dismiss": true,
        "busy": false,
        "len": len,
        "offset": offset,
        "status": "running",
        "paused": false,
        "speed": job.speed(),
        "ready": false,
        "type": "backup",
    })
}

/// Name and data of the event of a job's end.
pub(super) fn ended(end: &JobEvent) -> (&'static str, Value) {
    let (offset, len) = end.progress;
    let mut data = json!({"device": end.id, "len": len, "offset": offset, "speed": end.speed, "type": "backup"});
    match &end.outcome {
        Ok(()) => ("BLOCK_JOB_COMPLETED", data),
        Err(Stop::Cancelled) => ("BLOCK_JOB_CANCELLED", data),
        Err(Stop::Read(why) | Stop::Write(why)) => {
            data["error"] = why.as_str().into();
            ("BLOCK_JOB_COMPLETED", data)
        }
    }
}

fn cancel(caller: &Caller, arguments: Arguments) -> Result<Value, Failure> {
    let id = text(&arguments, "device");
    let not_found = || Failure { class: "DeviceNotActive", desc: format!("Block job '{id}' not found") };
    caller.jobs().find(id).ok_or_else(not_found)?.backup().cancel();
    Ok(json!({}))
}

/// A job whose target is open, and which has not begun. Dropped, it leaves nothing.
pub(super) struct PreparedBackup {
    handle: Handle,
    job: Arc<Job>,
    disk: usize,
    arguments: Arguments,
}

impl PreparedBackup {
    /// Opens the target; the driver does.
    ///
    /// # Errors
    /// An argument does not fit, the target cannot be opened, or the disk has a job.
    pub(super) fn new(caller: &Caller, arguments: Arguments) -> Result<Self, Failure> {
        let node = text(&arguments, "device");
        let unknown = || Failure::generic(format!("Cannot find device='{node}' nor node-name='{node}'"));
        let disk = find(&caller.inventory().disks, node).ok_or_else(unknown)?;
        if let Some(format) = arguments.text("format").filter(|format| *format != "raw") {
            let remedy = "a backup is a raw image, which qemu-img converts";
            return Err(Failure::generic(format!("Unknown file format '{format}': {remedy}")));
        }
        let speed = u64::try_from(arguments.integer("speed").unwrap_or(0));
        let speed = speed.map_err(|_| Failure::generic("Parameter 'speed' expects a non-negative value"))?;
        let id = arguments.text("job-id").unwrap_or(node).to_owned();
        if !is_well_formed(&id) {
            return Err(Failure::generic(format!("Invalid job ID '{id}'")));
        }
        let terms = BackupTerms { id: id.clone(), disk, target: target(caller, &arguments)?, speed };
        caller.ask(Request::Backup(terms))?;
        let job = caller.jobs().find(&id).ok_or_else(|| Failure::generic(format!("Block job '{id}' not found")))?;
        Ok(Self { handle: caller.handle.clone(), job, disk, arguments })
    }

    /// Decides what is copied, and makes the job's bitmap busy; returns what becomes of that.
    ///
    /// # Errors
    /// The bitmap is missing or busy, or its arguments do not fit each other.
    pub(super) fn prepare(&self, transaction: &mut Transaction<'_>) -> Result<Option<(String, BitmapMode)>, Failure> {
        let (sync, name, mode) =
            (text(&self.arguments, "sync"), self.arguments.text("bitmap"), self.arguments.text("bitmap-mode"));
        let mode = match mode {
            Some(mode) if sync == INCREMENTAL && name.is_some() && mode != MODES[0].0 => {
                let why = format!("Bitmap sync mode must be 'on-success' when using sync mode '{sync}'");
                return Err(Failure::generic(why));
            }
            None if sync == INCREMENTAL => Some(MODES[0].0),
            mode => mode,
        };
        let Some(name) = name else {
            return match mode {
                _ if sync != FULL => {
                    Err(Failure::generic(format!("must provide a valid bitmap name for '{sync}' sync mode")))
                }
                Some(_) => Err(Failure::generic("Cannot specify bitmap sync mode without a bitmap")),
                None => {
                    self.job.backup().set_parts(None);
                    Ok(None)
                }
            };
        };
        let unknown = |_| Failure::generic(format!("Bitmap '{name}' could not be found"));
        transaction.find(self.disk, name).map_err(unknown)?;
        let mode = MODES.into_iter().find(|(known, _)| mode == Some(known));
        let (word, mode) =
            mode.ok_or_else(|| Failure::generic("Bitmap sync mode must be given when providing a bitmap"))?;
        let parts = transaction.back_up(self.disk, name)?;
        if mode == BitmapMode::Never && sync == FULL {
            let why =
                format!("Bitmap sync mode '{word}' has no meaningful effect when combined with sync mode '{sync}'");
            return Err(Failure::generic(why));
        }
        self.job.backup().set_parts((sync != FULL).then_some(parts));
        Ok(Some((name.to_owned(), mode)))
    }

    /// Begins the job, while the transaction that made its bitmap busy holds the locks.
    pub(super) fn begin(&self, bitmap: Option<(String, BitmapMode)>) {
        self.job.begin(bitmap);
    }
}

impl Drop for PreparedBackup {
    fn drop(&mut self) {
        self.handle.jobs().give_up(&self.job);
    }
}

fn target(caller: &Caller, arguments: &Arguments) -> Result<Target, Failure> {
    let path = text(arguments, "target");
    let exists = arguments.text("mode") == Some(EXISTING);
    let Some(name) = path.strip_prefix("fd:") else {
        return Ok(if exists { Target::Existing(path.into()) } else { Target::New(path.into()) });
    };
    if !exists {
        return Err(Failure::generic(format!("Could not create '{path}': a passed file exists; give mode existing")));
    }
    let mut address = Address::Descriptor { name: name.into(), passed: None };
    caller.descriptors.put_into(&mut address)?;
    match address {
        Address::Descriptor { name, passed: Some(passed) } => Ok(Target::Passed(name, passed)),
        _ => Err(Failure::generic(format!("File descriptor named '{name}' has not been found"))),
    }
}

/// Whether a name can be a job's (`id_wellformed` in QEMU's util/id.c).
fn is_well_formed(id: &str) -> bool {
    let others = |other: char| other.is_ascii_alphanumeric() || "-._".contains(other);
    id.starts_with(|first: char| first.is_ascii_alphabetic()) && id.chars().all(others)
}
