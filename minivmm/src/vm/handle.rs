//! Access to the driver for other threads: a queue of requests, with or without an answer, and the published state.

use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, channel};

use vmstate::migrate::{Parameters, Round, SectionReport};
use vmstate::ram::HeatMap;

use crate::config::{Address, Tls};
use crate::devices::virtio::net::Announcing;
use crate::migration::bitmaps::BitmapMapping;
use crate::sync::lock;
use crate::vm::backup::Jobs;
use crate::vm::dirty_rate::DirtyRate;
use crate::vm::inventory::Inventory;
use crate::vm::published::{Event, MigrationInfo, Published};
use crate::vm::queue::{Queue, Waiting, gone};
use crate::vm::request::{AnyRequest, Refusal};
use crate::vm::state::RunState;

/// Access to the driver, for any thread.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: Arc<Waiting>,
    shared: Arc<Published>,
}

impl Handle {
    /// Makes a handle, and the driver's side of it.
    pub fn new(state: RunState) -> (Self, Queue, Arc<Published>) {
        let queue = Queue::new();
        let shared = Arc::new(Published::new(state));
        (Self { requests: Arc::clone(queue.waiting()), shared: Arc::clone(&shared) }, queue, shared)
    }

    /// Sends a request to the driver and waits for the answer.
    ///
    /// # Errors
    /// The driver's refusal, or that it has ended.
    pub fn ask(&self, request: impl Into<AnyRequest>) -> Result<(), Refusal> {
        let (answer, answers) = channel();
        self.requests.put((request.into(), answer))?;
        answers.recv().map_err(|_| gone())?
    }

    /// Sends a request to the driver and calls `meanwhile` repeatedly until the answer has come.
    ///
    /// # Errors
    /// The error of `meanwhile`, after which the answer is ignored. The inner error: as [`ask`](Self::ask).
    pub fn ask_meanwhile<E>(
        &self,
        request: impl Into<AnyRequest>,
        meanwhile: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<Result<(), Refusal>, E> {
        let (answer, answers) = channel();
        if let Err(refusal) = self.requests.put((request.into(), answer)) {
            return Ok(Err(refusal));
        }
        loop {
            match answers.try_recv() {
                Ok(answer) => return Ok(answer),
                Err(TryRecvError::Disconnected) => return Ok(Err(gone())),
                Err(TryRecvError::Empty) => meanwhile()?,
            }
        }
    }

    /// Sends a request without waiting for the answer, for threads that the driver waits for.
    pub fn send(&self, request: impl Into<AnyRequest>) {
        // If the driver has ended, nothing is to be done.
        let _ = self.requests.put((request.into(), channel().0));
    }

    /// In post-copy: closes the connection, so that another one can replace it. The driver, which may wait for a page, is not
    /// involved.
    ///
    /// # Errors
    /// There is no post-copy.
    pub fn pause_postcopy(&self) -> Result<(), Refusal> {
        match self.shared.disconnect() {
            true => Ok(()),
            // QEMU's message (`qmp_migrate_pause`, migration/migration.c).
            false => Err(Refusal(
                "migrate-pause is currently only supported during postcopy-active or postcopy-recover state".into(),
            )),
        }
    }

    /// At a destination in post-copy whose connection broke: also waits for the source at `at`. The driver is not involved.
    ///
    /// # Errors
    /// The destination does not wait for its source, or cannot listen there.
    pub fn recover_postcopy(&self, at: Address) -> Result<(), Refusal> {
        self.shared.recover(at)
    }

    /// Ends the machine, even if the driver is stuck.
    pub(super) fn fail(&self, why: String) {
        self.requests.fail(why);
    }

    /// The run state last published.
    pub fn run_state(&self) -> RunState {
        self.shared.run_state()
    }

    /// The migration as last published.
    pub fn migration(&self) -> MigrationInfo {
        self.shared.migration()
    }

    /// Whether a migration from here waits before its switch-over.
    pub fn pauses_before_switchover(&self) -> bool {
        self.shared.pauses_before_switchover()
    }

    /// Changes whether a migration from here waits before its switch-over.
    pub fn set_pauses_before_switchover(&self, pauses: bool) {
        self.shared.set_pauses_before_switchover(pauses);
    }

    /// Whether a destination here measures how long its vCPUs wait for pages in post-copy.
    pub fn measures_block_time(&self) -> bool {
        self.shared.measures_block_time()
    }

    /// Changes whether a destination here measures how long its vCPUs wait for pages in post-copy, from the next source on.
    pub fn set_measures_block_time(&self, measures: bool) {
        self.shared.set_measures_block_time(measures);
    }

    /// Whether a migration from here sends the dirty bitmaps of disks.
    pub fn sends_dirty_bitmaps(&self) -> bool {
        self.shared.sends_dirty_bitmaps()
    }

    /// Changes whether migrations that begin here from now on send the dirty bitmaps of disks.
    pub fn set_sends_dirty_bitmaps(&self, sends: bool) {
        self.shared.set_sends_dirty_bitmaps(sends);
    }

    /// Names under which dirty bitmaps migrate from here and to here, if they were set.
    pub fn bitmap_mapping(&self) -> Option<BitmapMapping> {
        lock(self.shared.bitmap_mapping()).clone()
    }

    /// Sets the names under which dirty bitmaps migrate, for migrations that begin from now on.
    pub fn set_bitmap_mapping(&self, mapping: BitmapMapping) {
        *lock(self.shared.bitmap_mapping()) = Some(mapping);
    }

    /// Rounds that are over, of the current migration or the last one.
    pub fn rounds(&self) -> Vec<Round> {
        self.shared.rounds()
    }

    /// How often that migration has sent each part of guest memory.
    pub fn heat(&self) -> HeatMap {
        self.shared.heat()
    }

    /// Sections that were sent in the migration's pause, once it is over.
    pub fn sections(&self) -> Vec<SectionReport> {
        self.shared.sections()
    }

    /// The migration parameters last published.
    pub fn parameters(&self) -> Parameters {
        self.shared.parameters()
    }

    /// How an arriving guest is announced to the network.
    pub fn announcing(&self) -> Announcing {
        self.shared.announcing()
    }

    /// Changes how guests that arrive from now on are announced to the network.
    pub fn set_announcing(&self, announcing: Announcing) {
        self.shared.set_announcing(announcing);
    }

    /// Whether migrations hand the guest's memory over, as in QEMU's mode `cpr-transfer`.
    pub fn transfers(&self) -> bool {
        self.shared.transfers()
    }

    /// Sets whether later migrations hand the guest's memory over.
    pub fn set_transfers(&self, transfers: bool) {
        self.shared.set_transfers(transfers);
    }

    /// Whether the guest runs in another process of this host, which continues with this process's descriptors.
    pub fn is_handed_over(&self) -> bool {
        self.shared.is_handed_over()
    }

    /// How fast the guest dirties its memory, as last measured.
    pub fn dirty_rate(&self) -> DirtyRate {
        self.shared.dirty_rate()
    }

    /// Backup jobs.
    pub fn jobs(&self) -> &Jobs {
        self.shared.jobs()
    }

    /// Parts of the machine.
    pub fn inventory(&self) -> Inventory {
        self.shared.inventory()
    }

    /// How the connections of migrations are encrypted, as last published.
    pub fn tls(&self) -> Tls {
        self.shared.tls()
    }

    /// Calls `subscriber` at each change from now on, on the publishing thread: it must neither block nor use this handle. A
    /// subscriber that returns `false` is dropped.
    pub fn subscribe(&self, subscriber: impl Fn(Event) -> bool + Send + 'static) {
        self.shared.subscribe(Box::new(subscriber));
    }

    /// Notifies the subscribers that the user ends the process.
    pub fn announce_quit(&self) {
        self.shared.notify(Event::Quit);
    }
}
