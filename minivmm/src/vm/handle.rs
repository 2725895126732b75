//! How other threads reach the driver: requests with an answer, and published state that never blocks.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
    pub downtime: Option<Duration>,
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
#[derive(Debug)]
pub struct Shared {
    run_state: Mutex<RunState>,
    migration: Mutex<MigrationInfo>,
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
        let shared = Arc::new(Shared { run_state: Mutex::new(state), migration: Mutex::default() });
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

    /// The run state last published.
    pub fn run_state(&self) -> RunState {
        self.shared.run_state()
    }

    /// The migration figures last published.
    pub fn migration(&self) -> MigrationInfo {
        self.shared.migration()
    }
}

impl Shared {
    /// The run state last published.
    pub fn run_state(&self) -> RunState {
        *self.run_state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Publishes the run state.
    pub fn set_run_state(&self, state: RunState) {
        *self.run_state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = state;
    }

    /// The migration figures last published.
    pub fn migration(&self) -> MigrationInfo {
        self.migration.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Changes the published figures.
    pub fn update_migration(&self, change: impl FnOnce(&mut MigrationInfo)) {
        change(&mut self.migration.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}
