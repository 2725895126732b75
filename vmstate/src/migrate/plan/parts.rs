//! The parts of a planned migration in place of a machine: vCPUs that take time to stop, devices of a given size, memory as page
//! counts.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::world::World;
use super::{Pause, PlannedRound, Scenario};
use crate::codec::{Outbox, PageRun, Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::{Claim, Control, Machine, Peer, Rehearsal, Round};
use crate::ram::{EngineSection, PAGE_SIZE, PageFigures};
use crate::schema::Description;
use crate::section::{IterativeSection, Record, Section};

/// The vCPUs and their clock.
#[derive(Debug)]
pub(super) struct PlannedMachine {
    pub(super) world: World,
    pub(super) scenario: Scenario,
    pub(super) notes: Rc<Notes>,
}

impl Machine for PlannedMachine {
    fn peer_identified(&mut self, _: Peer) -> Result<()> {
        self.world.pass(self.scenario.setup);
        Ok(())
    }

    fn pause(&mut self, within: Duration) -> Result<()> {
        self.notes.round_over();
        let Pause { stop, .. } = self.scenario.pause;
        self.world.pass(stop.min(within));
        if stop > within {
            return Err(Error::new(ErrorKind::Io, "the guest does not stand still within the budget of the pause"));
        }
        self.world.set_running(false);
        Ok(())
    }

    fn prepare(&mut self, _: &dyn Fn() -> bool) -> Result<Duration> {
        // A round in which nothing was left to send has no chunk.
        self.notes.round_before();
        self.world.pass(self.scenario.after_round);
        Ok(Duration::ZERO)
    }

    fn rehearse(&mut self) -> Result<Option<Rehearsal>> {
        let Pause { stop, load, .. } = self.scenario.pause;
        self.world.pass(stop);
        self.world.set_running(false);
        Ok(Some(Rehearsal { stop, load }))
    }

    fn throttle(&mut self, percent: u8) -> bool {
        self.world.set_throttle(percent);
        true
    }

    fn throttled(&self) -> Duration {
        self.world.throttled()
    }

    fn loaded(&mut self) -> Result<()> {
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        self.world.set_running(true);
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        Ok(())
    }

    fn claim(&mut self) -> Result<Claim> {
        Ok(Claim::Held)
    }
}

/// The devices, as a number of bytes.
pub(super) struct PlannedDevices(Vec<u8>);

impl PlannedDevices {
    pub(super) fn new(bytes: u64) -> Self {
        Self(vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)])
    }
}

impl Section for PlannedDevices {
    fn description(&self) -> &'static Description {
        static DEVICES: Description = Description::undescribed("devices", 1, 1);
        &DEVICES
    }

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.bytes(&self.0);
        Ok(())
    }

    fn load(&mut self, _: &mut Reader<'_>, _: u32) -> Result<()> {
        Err(not_loaded())
    }
}

/// Collects the figures at the end of each round.
#[derive(Debug)]
pub(super) struct Notes {
    control: Control,
    rounds: RefCell<Vec<PlannedRound>>,
    /// The throttle of the current round.
    throttle_percent: Cell<u8>,
}

impl Notes {
    pub(super) fn new(control: &Control) -> Rc<Self> {
        Rc::new(Self { control: control.clone(), rounds: RefCell::default(), throttle_percent: Cell::new(0) })
    }

    /// Records the figures when a round was decided upon.
    pub(super) fn round_over(&self) {
        let progress = self.control.progress();
        let mut rounds = self.rounds.borrow_mut();
        // Not twice, nor for a round that the deadline has cut off.
        if rounds.len() >= usize::try_from(progress.rounds).unwrap_or(usize::MAX) {
            return;
        }
        rounds.push(PlannedRound {
            over: progress.elapsed,
            remaining_bytes: progress.remaining_bytes,
            bytes_per_second: progress.bytes_per_second,
            dirty_bytes_per_second: progress.dirty_pages_per_second.saturating_mul(PAGE_SIZE),
            throttle_percent: self.throttle_percent.get(),
            expected_downtime: progress.expected_downtime.unwrap_or_default(),
            ..PlannedRound::default()
        });
    }

    /// Records the previous round when a new one has begun.
    fn round_before(&self) {
        let begun = usize::try_from(self.control.progress().rounds).unwrap_or(usize::MAX);
        if self.rounds.borrow().len() + 1 < begun {
            self.round_over();
        }
    }

    fn chunk_of_round(&self, throttle_percent: u8) {
        self.round_before();
        self.throttle_percent.set(throttle_percent);
    }

    /// The recorded rounds, combined with the engine's report of each.
    pub(super) fn with(&self, report: &[Round]) -> Vec<PlannedRound> {
        let noted = self.rounds.take();
        noted.into_iter().zip(report).map(|(noted, &round)| PlannedRound { round, ..noted }).collect()
    }
}

/// Guest memory as page counts.
pub(super) struct PlannedMemory {
    pub(super) world: World,
    pub(super) figures: Arc<PageFigures>,
    pub(super) notes: Rc<Notes>,
}

impl PlannedMemory {
    fn publish(&self) {
        let (sent, pending) = self.world.pages();
        self.figures.set(sent, pending);
    }
}

impl EngineSection for PlannedMemory {}

impl IterativeSection for PlannedMemory {
    fn description(&self) -> &'static Description {
        static MEMORY: Description = Description::undescribed("ram", 4, 4);
        &MEMORY
    }

    fn setup(&mut self, _: &mut Outbox) -> Result<()> {
        self.publish();
        Ok(())
    }

    fn pending(&mut self) -> u64 {
        super::round_down(self.world.pending_bytes())
    }

    fn sync(&mut self) -> Result<()> {
        let dirtied = self.world.sync();
        self.figures.add_dirtied(super::round_down(dirtied.round()));
        self.publish();
        Ok(())
    }

    fn iterate(&mut self, out: &mut Outbox, budget: u64) -> Result<bool> {
        // The first chunk of a round, and not of a rehearsal or of the pause: the figures of the previous round are complete.
        if self.world.is_running() {
            self.notes.chunk_of_round(self.world.throttle());
        }
        let (taken, over) = self.world.take(budget);
        out.put_pages(PageRun { block: 0, offset: 0, len: taken.bytes });
        self.publish();
        Ok(over)
    }

    fn complete(&mut self, _: &mut Outbox) -> Result<()> {
        Ok(())
    }

    fn load_start(&mut self, _: &mut Reader<'_>, _: u32) -> Result<Record> {
        Err(not_loaded())
    }

    fn load_part(&mut self, _: &mut Reader<'_>, _: u32) -> Result<Record> {
        Err(not_loaded())
    }
}

fn not_loaded() -> Error {
    Error::new(ErrorKind::Misuse, "what is planned is loaded nowhere")
}
