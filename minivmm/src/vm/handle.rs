//! How other threads reach the driver: requests with an answer, and published state that never blocks.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmstate::migrate::{Control, Downtime, Progress};

use crate::config::Address;

/// Run states, named as QMP's `RunState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Built, not started.
    Prelaunch,
    /// vCPUs run.
    Running,
    /// Stopped by request.
    Paused,
    /// Waits for, or receives, a migration.
    InMigrate,
    /// Stopped for the switch-over of an outgoing migration.
    FinishMigrate,
    /// Handed over to the destination.
    PostMigrate,
    /// The guest powered off.
    Shutdown,
    /// A vCPU failed.
    InternalError,
}

impl RunState {
    /// QMP's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::InMigrate => "inmigrate",
            Self::FinishMigrate => "finish-migrate",
            Self::PostMigrate => "postmigrate",
            Self::Shutdown => "shutdown",
            Self::InternalError => "internal-error",
        }
    }
}

/// States of a migration, named as QMP's `MigrationStatus`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MigrationStatus {
    /// There was none.
    #[default]
    None,
    /// Connecting.
    Setup,
    /// Rounds.
    Active,
    /// Switch-over.
    Device,
    /// Done.
    Completed,
    /// Failed; the source runs on.
    Failed,
    /// Being cancelled.
    Cancelling,
    /// Cancelled; the source runs on.
    Cancelled,
}

impl MigrationStatus {
    /// QMP's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "active",
            Self::Device => "device",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Figures of the migration that runs, or of the last one.
#[derive(Clone, Debug, Default)]
pub struct MigrationInfo {
    /// Where it stands.
    pub status: MigrationStatus,
    /// Since it began, or whole.
    pub total_time: Duration,
    /// Measured, once complete.
    pub downtime: Option<Downtime>,
    /// Predicted, while it runs.
    pub expected_downtime: Option<Duration>,
    /// Connecting and starting the dirty log.
    pub setup_time: Duration,
    /// Bytes sent.
    pub transferred: u64,
    /// Guest RAM in bytes.
    pub total: u64,
    /// Bytes of guest RAM left to send.
    pub remaining: u64,
    /// Pages sent whole.
    pub normal_pages: u64,
    /// Pages sent as zero.
    pub zero_pages: u64,
    /// Rounds: synchronisations of the dirty bitmap.
    pub rounds: u64,
    /// Pages the guest dirties a second.
    pub dirty_pages_rate: u64,
    /// Bytes a second sent.
    pub bandwidth: u64,
    /// Why it failed.
    pub error: Option<String>,
}

impl MigrationInfo {
    fn take(&mut self, progress: &Progress) {
        self.total_time = progress.elapsed;
        self.downtime = progress.downtime;
        self.expected_downtime = progress.expected_downtime;
        self.setup_time = progress.setup;
        self.transferred = progress.bytes;
        self.total = progress.ram_bytes;
        self.remaining = progress.remaining_bytes;
        self.normal_pages = progress.normal_pages;
        self.zero_pages = progress.zero_pages;
        self.rounds = progress.rounds.into();
        self.dirty_pages_rate = progress.dirty_pages_per_second;
        self.bandwidth = progress.bytes_per_second;
    }
}

/// Limits of outgoing migrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationParameters {
    /// Longest pause of the guest.
    pub downtime_limit: Duration,
    /// Bytes a second; 0 is no limit.
    pub max_bandwidth: u64,
}

impl Default for MigrationParameters {
    /// QEMU's defaults: 300 ms, 128 MiB/s.
    fn default() -> Self {
        Self { downtime_limit: Duration::from_millis(300), max_bandwidth: 128 << 20 }
    }
}

/// A change that subscribers hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The run state changed.
    RunState {
        /// Before.
        old: RunState,
        /// Now.
        new: RunState,
    },
    /// The migration's status changed.
    Migration(MigrationStatus),
    /// The process ends on the user's request, whatever the guest does; [`RunState::Shutdown`] is the guest's doing.
    Quit,
}

/// Takes an event without blocking; `false` ends the subscription.
type Subscriber = Box<dyn Fn(Event) -> bool + Send>;

/// How an outgoing migration ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Departed {
    /// The destination runs the guest.
    Sent,
    /// The guest stayed here, because this went wrong.
    Failed(String),
    /// The guest stayed here, on request.
    Cancelled,
    /// The destination holds the disk images, so the guest is there; its last word did not come.
    Unacknowledged(String),
    /// Nothing tells whether the destination runs the guest. It stays paused here.
    Undecided(String),
}

/// What the driver can be asked to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Stop the vCPUs and drain the devices.
    Stop,
    /// Run.
    Cont,
    /// End the process.
    Quit,
    /// Press the power button.
    PowerDown,
    /// Reset the machine: asked for by the guest, or by the user.
    Reset,
    /// From the machine itself: the guest powered off.
    PoweredOff,
    /// From the machine itself: a vCPU cannot go on, and why.
    Fail(String),
    /// From the migration thread, at the source: stop the guest and read its state.
    SwitchOver,
    /// From the migration thread, at the destination: the guest fits this machine; show it the processor that it knows.
    Introduced,
    /// From the migration thread, at the destination: all sections are loaded; give the kernel its state.
    Loaded,
    /// From the migration thread: the guest goes on on this side.
    GoOn,
    /// From the migration thread, at the source: it has ended.
    Departed(Departed),
    /// From the migration thread, at the destination: it has ended, or why it failed.
    Arrived(Result<(), String>),
    /// Begin an outgoing migration; answered as soon as it has begun.
    Migrate(Address),
    /// Cancel the outgoing migration; answered once it has ended.
    MigrateCancel,
    /// Change limits, also of a running migration; `None` leaves one as it is.
    MigrateSetParameters {
        /// Longest pause of the guest.
        downtime_limit: Option<Duration>,
        /// Bytes a second; 0 is no limit.
        max_bandwidth: Option<u64>,
    },
}

/// Why a request was not carried out: one sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// A request on its way, with the place for its answer.
pub type Envelope = (Request, Sender<Result<(), Refusal>>);

/// State the driver publishes; readable at any time, also while the driver is busy.
pub struct Shared {
    run_state: Mutex<RunState>,
    /// Figures of the migration under way, as the engine publishes them.
    control: Mutex<Option<Control>>,
    migration: Mutex<MigrationInfo>,
    parameters: Mutex<MigrationParameters>,
    subscribers: Mutex<Vec<Subscriber>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("run_state", &self.run_state)
            .field("migration", &self.migration)
            .field("parameters", &self.parameters)
            .finish_non_exhaustive()
    }
}

/// A way to reach the driver, for any thread.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: Sender<Envelope>,
    shared: Arc<Shared>,
}

impl Handle {
    /// A handle, and what the driver keeps of it.
    pub fn new(state: RunState) -> (Self, Receiver<Envelope>, Arc<Shared>) {
        let (requests, receiver) = channel();
        let shared = Arc::new(Shared {
            run_state: Mutex::new(state),
            control: Mutex::default(),
            migration: Mutex::default(),
            parameters: Mutex::default(),
            subscribers: Mutex::default(),
        });
        (Self { requests, shared: Arc::clone(&shared) }, receiver, shared)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The driver's refusal, or that it has ended.
    pub fn ask(&self, request: Request) -> Result<(), Refusal> {
        let gone = || Refusal("the machine has ended".into());
        let (answer, answers) = channel();
        self.requests.send((request, answer)).map_err(|_| gone())?;
        answers.recv().map_err(|_| gone())?
    }

    /// Asks without waiting: for threads that the driver itself waits for.
    pub fn tell(&self, request: Request) {
        // A driver that has ended needs no telling.
        let _ = self.requests.send((request, channel().0));
    }

    /// The run state last published.
    pub fn run_state(&self) -> RunState {
        self.shared.run_state()
    }

    /// The migration figures last published.
    pub fn migration(&self) -> MigrationInfo {
        self.shared.migration()
    }

    /// The migration limits last published.
    pub fn parameters(&self) -> MigrationParameters {
        self.shared.parameters()
    }

    /// Calls `subscriber` at each change from now on, on the thread that publishes it: it must not block nor use this
    /// handle. It is dropped once it returns `false`.
    pub fn subscribe(&self, subscriber: impl Fn(Event) -> bool + Send + 'static) {
        lock(&self.shared.subscribers).push(Box::new(subscriber));
    }

    /// Tells the subscribers that the user ends the process.
    pub fn announce_quit(&self) {
        self.shared.notify(Event::Quit);
    }
}

impl Shared {
    /// The run state last published.
    pub fn run_state(&self) -> RunState {
        *lock(&self.run_state)
    }

    /// Publishes the run state.
    pub fn set_run_state(&self, state: RunState) {
        let old = std::mem::replace(&mut *lock(&self.run_state), state);
        if old != state {
            self.notify(Event::RunState { old, new: state });
        }
    }

    /// The migration figures now.
    pub fn migration(&self) -> MigrationInfo {
        let mut info = lock(&self.migration).clone();
        if let Some(control) = &*lock(&self.control) {
            info.take(&control.progress());
        }
        info
    }

    /// A migration begins, whose figures `control` has.
    pub fn begin_migration(&self, control: &Control) {
        *lock(&self.control) = Some(control.clone());
        self.update_migration(|info| *info = MigrationInfo { status: MigrationStatus::Setup, ..Default::default() });
    }

    /// Changes the published figures.
    pub fn update_migration(&self, change: impl FnOnce(&mut MigrationInfo)) {
        let (old, new) = {
            let mut migration = lock(&self.migration);
            let old = migration.status;
            change(&mut migration);
            (old, migration.status)
        };
        if old != new {
            self.notify(Event::Migration(new));
        }
    }

    /// The migration limits last published.
    pub fn parameters(&self) -> MigrationParameters {
        *lock(&self.parameters)
    }

    /// Publishes the migration limits.
    pub fn set_parameters(&self, parameters: MigrationParameters) {
        *lock(&self.parameters) = parameters;
    }

    fn notify(&self, event: Event) {
        lock(&self.subscribers).retain(|subscriber| subscriber(event));
    }
}

/// Each lock guards one value that is replaced whole, so a panicked holder leaves nothing half-made.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
