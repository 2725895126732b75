//! Backup jobs: each copies a disk, as it was when the job began, to a raw image, on a thread of its own.
//!
//! A job is made in two steps, because several jobs begin at one instant: the driver opens the target, which can take long, and
//! starts the thread; then the client's thread, which holds the locks of the disks' bitmaps, begins the job. A job that does not
//! begin leaves nothing.
//!
//! Facts: QEMU's `blockdev.c` (`do_backup_common`), `block/backup.c` and `blockjob.c`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use crate::config::Descriptor;
use crate::devices::virtio::blk::{Backup, Earlier, Image, SECTOR, Stop, node_name};
use crate::error::{chain, reason};
use crate::files::{self, Fit, Mode};
use crate::sandbox::{self, Kind};
use crate::sync::{lock, wait, wait_within};
use crate::vm::new_file::NewFile;
use crate::vm::published::{Event, Published};
use crate::vm::request::Refusal;

/// Most bytes that are copied at once, as QEMU's (`BLOCK_COPY_MAX_BUFFER`).
const PIECE: u64 = 1 << 20;

/// What a job copies, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupTerms {
    /// Name of the job.
    pub id: String,
    /// Index of the disk.
    pub disk: usize,
    /// The backup.
    pub target: Target,
    /// Most bytes a second; 0: no limit.
    pub speed: u64,
}

/// Image to which a backup goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A new file, which gets its name once the backup is complete.
    New(PathBuf),
    /// A file of the disk's size.
    Existing(PathBuf),
    /// As [`Existing`](Self::Existing), passed under this name.
    Passed(String, Descriptor),
}

/// What becomes of the bitmap of a backup (QEMU's `BitmapSyncMode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapMode {
    /// The clusters of a complete backup are clean.
    OnSuccess,
    /// All clusters stay dirty.
    Never,
    /// Each cluster that was copied is clean.
    Always,
}

/// A backup job.
#[derive(Debug)]
pub struct Job {
    terms: BackupTerms,
    image: Arc<Image>,
    backup: Arc<Backup>,
    /// Begins the job with its bitmap; dropped: the job does not begin.
    begin: Mutex<Option<Sender<JobBitmap>>>,
}

/// Name and mode of a job's bitmap, if it has one.
type JobBitmap = Option<(String, BitmapMode)>;

/// End of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEvent {
    /// Name of the job.
    pub id: String,
    /// Bytes that are copied, and all bytes of the backup.
    pub progress: (u64, u64),
    /// Most bytes a second; 0: no limit.
    pub speed: u64,
    /// Whether the backup is complete.
    pub outcome: Result<(), Stop>,
}

/// All jobs, the newest first.
#[derive(Debug, Default)]
pub struct Jobs {
    list: Mutex<Vec<Arc<Job>>>,
    removed: Condvar,
}

impl Job {
    /// Name of the job.
    pub fn id(&self) -> &str {
        &self.terms.id
    }

    /// Most bytes a second; 0: no limit.
    pub fn speed(&self) -> u64 {
        self.terms.speed
    }

    /// The copy that the job makes.
    pub fn backup(&self) -> &Backup {
        &self.backup
    }

    /// Begins the job: the backup is the disk as it is now. The caller holds the lock of the disk's bitmaps, one of which was made
    /// busy if the job has a bitmap.
    pub fn begin(&self, bitmap: JobBitmap) {
        if let Some(begin) = lock(&self.begin).take() {
            self.image.copy_before_write().begin_backup(&self.backup);
            // The thread waits for this.
            let _ = begin.send(bitmap);
        }
    }

    /// Body of the job's thread; `new` is the name of a new target.
    fn run(&self, begins: &Receiver<JobBitmap>, mut new: Option<NewFile>, shared: &Published) {
        let Ok(bitmap) = begins.recv() else {
            drop(new);
            return shared.jobs().remove(self);
        };
        self.copy();
        let finished = self.backup.finish();
        let outcome = finished.and_then(|()| new.as_mut().map_or(Ok(()), NewFile::take_place).map_err(Stop::write));
        drop(new);
        self.image.copy_before_write().end_backup();
        self.backup.release();
        if let Some((name, mode)) = bitmap {
            let earlier = match (mode, &outcome) {
                (BitmapMode::OnSuccess | BitmapMode::Always, Ok(())) => Earlier::Copied,
                (BitmapMode::Always, Err(_)) => Earlier::CopiedExcept(self.backup.pending()),
                (BitmapMode::OnSuccess, Err(_)) | (BitmapMode::Never, _) => Earlier::Kept,
            };
            self.image.bitmaps().end_backup(&name, &earlier);
        }
        // Before the events: a client may begin the next job as soon as it sees the end of this one.
        shared.jobs().remove(self);
        let id = self.terms.id.clone();
        match &outcome {
            Err(Stop::Read(_)) => shared.notify(Event::JobError { id: id.clone(), reads: true }),
            Err(Stop::Write(_)) => shared.notify(Event::JobError { id: id.clone(), reads: false }),
            Ok(()) | Err(Stop::Cancelled) => {}
        }
        shared.notify(Event::Job(JobEvent { id, progress: self.backup.progress(), speed: self.terms.speed, outcome }));
    }

    /// Copies all clusters, no faster than the job's speed.
    fn copy(&self) {
        self.image.copy_before_write().await_earlier_change();
        let (begun, mut copied) = (Instant::now(), 0);
        while let Some(bytes) = self.backup.step(&self.image, PIECE) {
            copied += bytes;
            if self.terms.speed > 0 {
                let due = Duration::from_secs_f64(copied as f64 / self.terms.speed as f64);
                self.backup.pause(due.saturating_sub(begun.elapsed()));
            }
        }
    }
}

impl Jobs {
    fn list(&self) -> MutexGuard<'_, Vec<Arc<Job>>> {
        lock(&self.list)
    }

    /// All jobs, the newest first.
    pub fn all(&self) -> Vec<Arc<Job>> {
        self.list().clone()
    }

    /// The job of this name.
    pub fn find(&self, id: &str) -> Option<Arc<Job>> {
        self.list().iter().find(|job| job.id() == id).cloned()
    }

    fn remove(&self, job: &Job) {
        self.list().retain(|other| other.id() != job.id());
        self.removed.notify_all();
    }

    /// Ends a job that has not begun, and waits until it has left nothing.
    pub fn give_up(&self, job: &Arc<Job>) {
        if lock(&job.begin).take().is_none() {
            return;
        }
        let mut list = self.list();
        while list.iter().any(|other| Arc::ptr_eq(other, job)) {
            list = wait(&self.removed, list);
        }
    }

    /// Cancels all jobs, and waits for their ends within this time.
    pub(super) fn cancel_all(&self, within: Duration) {
        let end = Instant::now() + within;
        let mut list = self.list();
        for job in list.iter() {
            drop(lock(&job.begin).take());
            job.backup.cancel();
        }
        while !list.is_empty() && Instant::now() < end {
            list = wait_within(&self.removed, list, end.saturating_duration_since(Instant::now()));
        }
    }

    /// Opens the target of a job, and starts its thread, which waits for [`Job::begin`].
    ///
    /// # Errors
    /// The disk has a job, the name is in use, or the target cannot be used; QEMU's text if it has one.
    pub fn make(shared: &Arc<Published>, images: &[Arc<Image>], terms: &BackupTerms) -> Result<(), Refusal> {
        let image = images.get(terms.disk).ok_or_else(|| Refusal("the disk is gone".into()))?;
        shared.jobs().check(terms)?;
        let (file, path, new) = open(&terms.target).map_err(Refusal)?;
        let target = Image::locked(file, &path, image.bytes()).map_err(|error| Refusal(chain(&error)))?;
        let could_not =
            |error: io::Error| Refusal(format!("Could not create '{}': {}", path.display(), reason(&error)));
        match new {
            Some(_) => target.empty().map_err(could_not)?,
            None => {
                let bytes = target.resource().bytes().map_err(|error| Refusal(chain(&error)))?;
                if bytes / SECTOR != image.sectors() {
                    return Err(Refusal("Source and target image have different sizes".into()));
                }
            }
        }
        let backup = Backup::new(target, new.is_some()).map_err(|error| Refusal(error.to_string()))?;
        let (begin, begins) = channel();
        let (begin, image, backup) = (Mutex::new(Some(begin)), Arc::clone(image), Arc::new(backup));
        let job = Arc::new(Job { terms: terms.clone(), image, backup, begin });
        shared.jobs().list().insert(0, Arc::clone(&job));
        let (its, published) = (Arc::clone(&job), Arc::clone(shared));
        let spawned = sandbox::spawn(Kind::Backup, "backup", move || its.run(&begins, new, &published));
        spawned.map(drop).map_err(|error| {
            shared.jobs().remove(&job);
            Refusal(format!("cannot spawn a thread: {error}"))
        })
    }

    fn check(&self, terms: &BackupTerms) -> Result<(), Refusal> {
        let list = self.list();
        if list.iter().any(|job| job.terms.disk == terms.disk) {
            let node = node_name(terms.disk);
            return Err(Refusal(format!("Node '{node}' is busy: block device is in use by block job: backup")));
        }
        match list.iter().any(|job| job.id() == terms.id) {
            true => Err(Refusal(format!("Job ID '{}' already in use", terms.id))),
            false => Ok(()),
        }
    }
}

/// Opens a target; returns it, its path, and the name of a new file.
fn open(target: &Target) -> Result<(File, PathBuf, Option<NewFile>), String> {
    match target {
        Target::New(path) => match NewFile::create(path, OFlag::empty()) {
            Ok((new, file)) => Ok((file, path.clone(), Some(new))),
            Err((there, error)) if error.kind() == io::ErrorKind::AlreadyExists => Err(format!(
                "Could not create '{}': it exists already; name a new file, or give mode existing",
                there.display()
            )),
            Err((_, error)) => Err(format!("Could not create '{}': {}", path.display(), reason(&error))),
        },
        Target::Existing(path) if sandbox::is_armed() => Err(format!(
            "Could not open '{}': a confined machine opens no existing file for writing; pass it with getfd, and name it as fd:NAME",
            path.display()
        )),
        Target::Existing(path) => {
            let opened = files::open_path(path, Mode::ReadWrite, Fit::Disk);
            let file = opened.map_err(|error| format!("Could not open '{}': {}", path.display(), reason(&error)))?;
            Ok((file, path.clone(), None))
        }
        Target::Passed(name, descriptor) => {
            let file = descriptor.duplicate().map(File::from).and_then(|file| files::check_disk(&file).map(|()| file));
            let file = file.map_err(|error| format!("Could not open 'fd:{name}': {}", reason(&error)))?;
            Ok((file, Path::new(&format!("fd:{name}")).into(), None))
        }
    }
}
