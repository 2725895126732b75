//! State that the driver publishes: run state, the migration's figures and parameters, and events. Readers never wait for the
//! driver.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::Add;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use vmstate::migrate::{Control, DestinationPhase, Parameters, Phase, Progress, Round, SectionReport};
use vmstate::ram::HeatMap;

use crate::config::{Address, Tls};
use crate::devices::virtio::net::Announcing;
use crate::migration::bitmaps::SharedMapping;
use crate::migration::block_time::{BlockClock, BlockTime};
use crate::migration::disk::{DiskCount, DiskFigures};
use crate::sync::lock;
use crate::vm::backup::{JobEvent, Jobs};
use crate::vm::dirty_rate::DirtyRate;
use crate::vm::inventory::Inventory;
use crate::vm::migration::replaceable::Recovery;
use crate::vm::migration::status::MigrationStatus;
use crate::vm::request::Refusal;
use crate::vm::state::RunState;

/// The current migration, or the last one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MigrationInfo {
    /// Phase. At a source it becomes final when the driver has handled the end, at a destination when the guest runs.
    pub phase: Phase,
    /// Whether a cancel was granted.
    pub cancelled: bool,
    /// State of the wait before the switch-over.
    pub hold: Hold,
    /// Figures of the engine.
    pub figures: Progress,
    /// How long vCPUs have waited for pages in post-copy, where a destination measures that.
    pub block_time: Option<BlockTime>,
    /// Figures of the disks whose content is sent, at a source that sends it.
    pub disk: Option<DiskFigures>,
    /// Reason of the end, if there is one to report.
    pub error: Option<String>,
}

impl MigrationInfo {
    /// QMP's status.
    pub fn status(&self) -> MigrationStatus {
        match (MigrationStatus::of(self.phase, self.cancelled), self.hold) {
            (MigrationStatus::Setup | MigrationStatus::Active, Hold::Waits) => MigrationStatus::PreSwitchover,
            (MigrationStatus::Setup | MigrationStatus::Active, Hold::Over) => MigrationStatus::Device,
            (status, _) => status,
        }
    }
}

/// Wait before the switch-over, with the guest stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// No wait.
    #[default]
    None,
    /// Waits until a client continues the migration.
    Waits,
    /// A client has continued the migration.
    Over,
}

/// Default parameters: QEMU's, and its limit of 128 MiB/s.
pub fn default_parameters() -> Parameters {
    let mut parameters = Parameters::default();
    parameters.max_bandwidth = NonZeroU64::new(128 << 20);
    parameters
}

/// A change that subscribers are notified of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The run state changed.
    RunState {
        /// State before.
        old: RunState,
        /// State now.
        new: RunState,
    },
    /// The machine was reset.
    Reset {
        /// Whether the guest requested the reset.
        by_guest: bool,
    },
    /// The power button was pressed.
    PowerDown,
    /// A source begins the round with this number.
    MigrationPass(u32),
    /// The migration's status changed.
    Migration(MigrationStatus),
    /// A backup job has failed, and will end.
    JobError {
        /// Name of the job.
        id: String,
        /// Whether the disk could not be read; else the target could not be written.
        reads: bool,
    },
    /// A backup job has ended.
    Job(JobEvent),
    /// The process ends at the user's request; [`RunState::Shutdown`] is the guest's own power-off.
    Quit,
}

/// Takes an event without blocking; `false` ends the subscription.
type Subscriber = Box<dyn Fn(Event) -> bool + Send>;

/// State that the driver publishes, readable at any time, also while the driver is busy.
pub struct Published {
    run_state: Mutex<RunState>,
    /// Engine's handle on the migration that `migration` describes.
    control: Mutex<Option<Control>>,
    migration: Mutex<MigrationInfo>,
    parameters: Mutex<Parameters>,
    inventory: Mutex<Inventory>,
    announcing: Mutex<Announcing>,
    /// Whether migrations hand the guest's memory over.
    transfers: AtomicBool,
    /// Whether the guest runs in another process of this host, which continues with this process's descriptors.
    is_handed_over: AtomicBool,
    pauses_before_switchover: Mutex<bool>,
    measures_block_time: Mutex<bool>,
    sends_dirty_bitmaps: Mutex<bool>,
    bitmap_mapping: SharedMapping,
    /// Block-time measurement of the migration that `migration` describes.
    block_clock: Mutex<Option<BlockClock>>,
    /// Counts of the disks whose content the migration that `migration` describes sends.
    disk_counts: Mutex<Vec<Arc<DiskCount>>>,
    dirty_rate: Mutex<DirtyRate>,
    jobs: Jobs,
    tls: Mutex<Tls>,
    /// Channel for addresses at which a destination waits for its source again, while it waits.
    recovery: Mutex<Option<Sender<Recovery>>>,
    subscribers: Mutex<Vec<Subscriber>>,
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published")
            .field("run_state", &self.run_state)
            .field("migration", &self.migration)
            .field("parameters", &self.parameters)
            .finish_non_exhaustive()
    }
}

impl Published {
    pub(super) fn new(state: RunState) -> Self {
        Self {
            run_state: Mutex::new(state),
            control: Mutex::default(),
            migration: Mutex::default(),
            parameters: Mutex::new(default_parameters()),
            inventory: Mutex::default(),
            announcing: Mutex::default(),
            transfers: AtomicBool::default(),
            is_handed_over: AtomicBool::default(),
            pauses_before_switchover: Mutex::default(),
            measures_block_time: Mutex::default(),
            sends_dirty_bitmaps: Mutex::default(),
            bitmap_mapping: SharedMapping::default(),
            block_clock: Mutex::default(),
            disk_counts: Mutex::default(),
            dirty_rate: Mutex::default(),
            jobs: Jobs::default(),
            tls: Mutex::default(),
            recovery: Mutex::default(),
            subscribers: Mutex::default(),
        }
    }

    /// The run state last published.
    pub fn run_state(&self) -> RunState {
        *lock(&self.run_state)
    }

    /// Publishes the run state, which is unchanged or one that [may follow](RunState::may_become).
    pub fn set_run_state(&self, state: RunState) {
        let old = std::mem::replace(&mut *lock(&self.run_state), state);
        debug_assert!(old == state || old.may_become(state), "{old:?} to {state:?}");
        if old != state {
            self.notify(Event::RunState { old, new: state });
        }
    }

    /// Current state of the migration.
    pub fn migration(&self) -> MigrationInfo {
        let mut info = lock(&self.migration).clone();
        if let Some(control) = self.control() {
            info.figures = control.progress();
        }
        if let Some(clock) = &*lock(&self.block_clock) {
            info.block_time = Some(clock.time());
        }
        let disks = lock(&self.disk_counts);
        info.disk = disks.iter().map(|count| count.figures()).reduce(Add::add).or(info.disk);
        info
    }

    /// Rounds that are over, of the current migration or the last one.
    pub fn rounds(&self) -> Vec<Round> {
        self.control().as_ref().map(Control::rounds).unwrap_or_default()
    }

    /// How often the migration has sent each part of guest memory.
    pub fn heat(&self) -> HeatMap {
        self.control().as_ref().map(Control::heat).unwrap_or_default()
    }

    /// Sections that were sent in the migration's pause, once it is over.
    pub fn sections(&self) -> Vec<SectionReport> {
        self.control().as_ref().map(Control::sections).unwrap_or_default()
    }

    /// Returns the engine's handle. It is queried without the lock, which all other queries need, since its lists may be long.
    fn control(&self) -> Option<Control> {
        lock(&self.control).clone()
    }

    /// Publishes a new migration in `phase`; `control` is the engine's handle on it.
    pub(super) fn begin_migration(self: &Arc<Self>, phase: Phase, control: &Control) {
        *lock(&self.control) = Some(control.clone());
        *lock(&self.block_clock) = None;
        lock(&self.disk_counts).clear();
        self.update_migration(|info| *info = MigrationInfo { phase, ..Default::default() });
        let published = Arc::downgrade(self);
        if matches!(phase, Phase::Source(_)) {
            let published = Arc::downgrade(self);
            control.watch_rounds(move |round| {
                if let Some(published) = published.upgrade() {
                    published.notify(Event::MigrationPass(round));
                }
            });
        }
        control.watch(move |phase| {
            // The driver publishes the end once it has handled it. At a destination the guest runs then, and the driver defers
            // requests that have to wait until the engine has ended, too.
            let is_shown = !phase.is_final() || phase == Phase::Destination(DestinationPhase::Completed);
            if let Some(published) = published.upgrade().filter(|_| is_shown) {
                published.update_migration(|info| info.phase = phase);
            }
        });
    }

    /// Changes the published state of the migration.
    pub fn update_migration(&self, change: impl FnOnce(&mut MigrationInfo)) {
        let (old, new) = {
            let mut migration = lock(&self.migration);
            let old = migration.status();
            change(&mut migration);
            (old, migration.status())
        };
        if old != new {
            self.notify(Event::Migration(new));
        }
    }

    /// The migration parameters last published.
    pub fn parameters(&self) -> Parameters {
        *lock(&self.parameters)
    }

    /// Publishes the migration parameters.
    pub fn set_parameters(&self, parameters: Parameters) {
        *lock(&self.parameters) = parameters;
    }

    /// How an arriving guest is announced to the network.
    pub fn announcing(&self) -> Announcing {
        *lock(&self.announcing)
    }

    /// Changes how an arriving guest is announced to the network.
    pub fn set_announcing(&self, announcing: Announcing) {
        *lock(&self.announcing) = announcing;
    }

    /// Whether migrations hand the guest's memory over, as in QEMU's mode `cpr-transfer`.
    pub fn transfers(&self) -> bool {
        self.transfers.load(Ordering::Relaxed)
    }

    /// Whether the guest runs in another process of this host, which continues with this process's descriptors.
    pub fn is_handed_over(&self) -> bool {
        self.is_handed_over.load(Ordering::Relaxed)
    }

    /// Records that the guest runs in another process of this host, which continues with this process's descriptors.
    pub(super) fn set_handed_over(&self) {
        self.is_handed_over.store(true, Ordering::Relaxed);
    }

    /// Sets whether later migrations hand the guest's memory over.
    pub fn set_transfers(&self, transfers: bool) {
        self.transfers.store(transfers, Ordering::Relaxed);
    }

    /// Whether a migration from here waits before its switch-over.
    pub fn pauses_before_switchover(&self) -> bool {
        *lock(&self.pauses_before_switchover)
    }

    /// Changes whether a migration from here waits before its switch-over.
    pub fn set_pauses_before_switchover(&self, pauses: bool) {
        *lock(&self.pauses_before_switchover) = pauses;
    }

    /// Whether a destination here measures how long its vCPUs wait for pages in post-copy.
    pub fn measures_block_time(&self) -> bool {
        *lock(&self.measures_block_time)
    }

    /// Changes whether a destination here measures how long its vCPUs wait for pages in post-copy, from the next source on.
    pub fn set_measures_block_time(&self, measures: bool) {
        *lock(&self.measures_block_time) = measures;
    }

    /// Whether a migration from here sends the dirty bitmaps of disks.
    pub fn sends_dirty_bitmaps(&self) -> bool {
        *lock(&self.sends_dirty_bitmaps)
    }

    /// Changes whether migrations that begin here from now on send the dirty bitmaps of disks.
    pub fn set_sends_dirty_bitmaps(&self, sends: bool) {
        *lock(&self.sends_dirty_bitmaps) = sends;
    }

    /// Names under which dirty bitmaps migrate, which a user may change at any time; the next migration uses them.
    pub fn bitmap_mapping(&self) -> &SharedMapping {
        &self.bitmap_mapping
    }

    /// Begins to measure how long vCPUs wait for pages of the source that has just connected, if that is enabled; the figures
    /// are published.
    pub(super) fn begin_block_time(&self) -> Option<BlockClock> {
        let clock = self.measures_block_time().then(|| BlockClock::new(self.inventory().vcpu_threads));
        lock(&self.block_clock).clone_from(&clock);
        clock
    }

    /// Publishes the figures of disks whose content the migration that has just begun sends.
    pub(super) fn set_disk_counts(&self, counts: Vec<Arc<DiskCount>>) {
        *lock(&self.disk_counts) = counts;
    }

    /// How fast the guest dirties its memory, as last measured.
    pub fn dirty_rate(&self) -> DirtyRate {
        *lock(&self.dirty_rate)
    }

    /// Publishes how fast the guest dirties its memory.
    pub fn set_dirty_rate(&self, rate: DirtyRate) {
        *lock(&self.dirty_rate) = rate;
    }

    /// Backup jobs.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// Parts of the machine, as last published.
    pub fn inventory(&self) -> Inventory {
        lock(&self.inventory).clone()
    }

    /// Publishes the parts of the machine.
    pub fn set_inventory(&self, inventory: Inventory) {
        *lock(&self.inventory) = inventory;
    }

    /// How the connections of migrations are encrypted, as last published.
    pub fn tls(&self) -> Tls {
        lock(&self.tls).clone()
    }

    /// Publishes how the connections of migrations are encrypted.
    pub fn set_tls(&self, tls: Tls) {
        *lock(&self.tls) = tls;
    }

    /// In post-copy: closes the connection; returns false if there is no post-copy.
    pub(super) fn disconnect(&self) -> bool {
        self.control().as_ref().is_some_and(Control::disconnect)
    }

    /// Sets the channel for addresses while a destination waits for its source again; `None` when it does not wait any more.
    pub(super) fn set_recovery(&self, addresses: Option<Sender<Recovery>>) {
        *lock(&self.recovery) = addresses;
    }

    /// Makes a destination also wait for its source at `at`.
    ///
    /// # Errors
    /// The destination does not wait for its source, or cannot listen there.
    pub(super) fn recover(&self, at: Address) -> Result<(), Refusal> {
        // QEMU's message (`qmp_migrate_recover`, migration/migration.c).
        let not_paused = || Refusal("Migrate recover can only be run when postcopy is paused.".into());
        let addresses = lock(&self.recovery).clone().ok_or_else(not_paused)?;
        let (answer, answers) = channel();
        addresses.send(Recovery { at, answer }).map_err(|_| not_paused())?;
        // The source may have connected meanwhile.
        answers.recv().map_err(|_| not_paused())?
    }

    pub(super) fn subscribe(&self, subscriber: Subscriber) {
        lock(&self.subscribers).push(subscriber);
    }

    pub(crate) fn notify(&self, event: Event) {
        lock(&self.subscribers).retain(|subscriber| subscriber(event.clone()));
    }
}
