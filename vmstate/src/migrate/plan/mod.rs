//! A migration foretold: the engine, its protocol, forecast and policy as they are, on a virtual wire and clock, with a guest of
//! which only counts of pages exist. Terabytes take milliseconds.
//!
//! ```
//! use std::time::Duration;
//! use vmstate::migrate::plan::{Scenario, run};
//!
//! // 4 TiB, of which 64 GiB are written with 2 GB/s, on a wire of 100 Gbit/s.
//! let mut scenario = Scenario::new(4 << 40, 12_500_000_000);
//! scenario.writes.bytes_per_second = 2_000_000_000;
//! scenario.writes.working_set = 64 << 30;
//! let plan = run(&scenario)?;
//! assert!(plan.is_completed());
//! assert!(plan.report.total > Duration::from_secs(352) && plan.report.total < Duration::from_secs(430));
//! assert!(plan.report.downtime.is_some_and(|downtime| downtime.total() <= Duration::from_millis(300)));
//! # Ok::<(), vmstate::Error>(())
//! ```

mod memory;
mod parts;
mod remedies;
mod world;
mod writes;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub use remedies::Remedies;

use self::parts::{Notes, PlannedDevices, PlannedMachine, PlannedMemory};
use self::world::{NoRam, World};
use super::control::Control;
use super::parameters::Parameters;
use super::phase::SourcePhase;
use super::report::{DepartureReport, Round};
use super::source::{self, CHUNK, Host, Memory, SourceOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::PageFigures;
use crate::section::{Section, Sections};

/// What a migration would meet.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Scenario {
    /// Guest memory in bytes.
    pub memory: u64,
    /// Bytes of the memory that are zero and stay zero.
    pub zero: u64,
    /// What the guest writes.
    pub writes: Writes,
    /// vCPUs. Those of a bursty guest write each in its own time.
    pub vcpus: u32,
    /// The connection.
    pub connection: Connection,
    /// What the pause takes besides the pages.
    pub pause: Pause,
    /// From the beginning to the first page, besides answers: connections, and the comparison of both machines.
    pub setup: Duration,
    /// After each round, while the guest runs: disk images that are written back, and what else pages wait for.
    pub after_round: Duration,
    /// What the owner of the guest has set; `multifd` and `xbzrle` make no difference to a plan.
    pub parameters: Parameters,
    /// Seed of the random numbers: the same seed gives the same plan.
    pub seed: u64,
}

/// How a guest writes its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Writes {
    /// Bytes of pages written a second on average: a page counts with each write, also if it was written before.
    pub bytes_per_second: u64,
    /// Bytes of memory that are written at all, at random places. At most all memory that is not zero.
    pub working_set: u64,
    /// When and where.
    pub pattern: Pattern,
}

/// When and where a guest writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pattern {
    /// At all times and places alike.
    #[default]
    Steady,
    /// Each vCPU writes in a fifth of the time, five times as fast, 200 ms at a time.
    Bursty,
    /// For 10 s with 1.75 times the rate, then for 10 s with a quarter of it and to another working set.
    Phased,
    /// Nine writes of ten go to a tenth of the working set.
    HotSpot,
}

/// What carries the migration.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Connection {
    /// Bytes a second.
    pub bytes_per_second: u64,
    /// Round-trip time.
    pub round_trip: Duration,
    /// The longest delay of an answer beyond the round-trip time.
    pub jitter: Duration,
    /// Fraction of all packets that is lost, from 0 to below 1.
    pub loss: f64,
}

/// What a pause takes besides the pages. Defaults are assumptions: a real migration's report has the real figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pause {
    /// Until the guest stands still.
    pub stop: Duration,
    /// For the destination to load what stood still.
    pub load: Duration,
    /// Bytes of the devices' state.
    pub device_bytes: u64,
}

/// A migration that was played.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// Last phase of the migration: `Completed` or `Failed`.
    pub phase: SourcePhase,
    /// Why it failed: the engine's own sentence.
    pub reason: Option<String>,
    /// The engine's report.
    pub report: DepartureReport,
    /// Each round, with what was known at its end.
    pub rounds: Vec<PlannedRound>,
}

/// A round of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedRound {
    /// As the engine reports it.
    pub round: Round,
    /// When it was decided what follows, since the beginning.
    pub over: Duration,
    /// Bytes of guest memory still to send then.
    pub remaining_bytes: u64,
    /// Bytes a second that the wire was measured to have.
    pub bytes_per_second: u64,
    /// Bytes of pages that the guest was measured to dirty a second. A page counts once a round.
    pub dirty_bytes_per_second: u64,
    /// Throttle of this round.
    pub throttle_percent: u8,
    /// The pause, had it begun then.
    pub expected_downtime: Duration,
}

/// Rounds of a plan that nothing else ends.
pub const MOST_ROUNDS: u32 = 200;

impl Scenario {
    /// A guest of so much memory that writes nothing, with one vCPU, on a wire of so many bytes a second with a round trip of
    /// 0.2 ms.
    pub fn new(memory: u64, bytes_per_second: u64) -> Self {
        Self {
            memory,
            zero: 0,
            writes: Writes::default(),
            vcpus: 1,
            connection: Connection {
                bytes_per_second,
                round_trip: Duration::from_micros(200),
                jitter: Duration::ZERO,
                loss: 0.0,
            },
            pause: Pause::with_vcpus(1),
            setup: Duration::ZERO,
            after_round: Duration::ZERO,
            parameters: Parameters::default(),
            seed: 0,
        }
    }

    /// Whether there can be such a migration.
    ///
    /// # Errors
    /// `Misuse`, with what is wrong.
    pub fn check(&self) -> Result<()> {
        let Self { memory, zero, vcpus, connection, pause, setup, after_round, .. } = *self;
        let misuse = |message: &str| Err(Error::new(ErrorKind::Misuse, message));
        if memory == 0 || memory > MOST_MEMORY || zero > memory {
            return misuse("a guest has a byte to an exbibyte of memory, and no more of it is zero");
        }
        if connection.bytes_per_second == 0 || !(0.0..1.0).contains(&connection.loss) {
            return misuse("a wire has at least a byte a second, and loses 0 % to less than 100 % of its packets");
        }
        if connection.round_trip.max(connection.jitter) >= LONGEST_WAY {
            return misuse("an answer comes within 5 s, jitter included: a source waits for 10 s");
        }
        if pause.device_bytes > MOST_STATE {
            return misuse("the state of a machine's devices has a gibibyte at most");
        }
        if setup.max(after_round) > LONGEST_WORK {
            return misuse("there is a day at most before the first page and after each round");
        }
        if !(1..=MOST_VCPUS).contains(&vcpus) {
            return misuse("a guest has 1 to 4096 vCPUs");
        }
        self.parameters.check()
    }
}

/// An exbibyte: its pages can be counted exactly in a `f64`.
const MOST_MEMORY: u64 = 1 << 60;
/// Most bytes of device state: a plan builds the state as a whole.
const MOST_STATE: u64 = 1 << 30;
/// KVM has no more (`KVM_MAX_VCPUS`, arch/x86/include/asm/kvm_host.h).
const MOST_VCPUS: u32 = 4096;
/// No sum of times leaves its range then.
const LONGEST_WORK: Duration = Duration::from_secs(24 * 60 * 60);
/// Both ways and a jitter of this length stay within the source's timeout.
const LONGEST_WAY: Duration = Duration::from_secs(5);

impl Pause {
    /// Stops within 1 ms and 20 µs a vCPU, loads within 2 ms and 150 µs a vCPU, and has 64 KiB of state and 8 KiB a vCPU.
    pub fn with_vcpus(vcpus: u32) -> Self {
        let each = |micros: u64| Duration::from_micros(micros.saturating_mul(u64::from(vcpus)));
        Self {
            stop: Duration::from_millis(1).saturating_add(each(20)),
            load: Duration::from_millis(2).saturating_add(each(150)),
            device_bytes: (64 << 10) + (8 << 10) * u64::from(vcpus),
        }
    }
}

impl Plan {
    /// The guest runs at the destination.
    pub fn is_completed(&self) -> bool {
        self.phase == SourcePhase::Completed
    }
}

/// Plays the migration. One that nothing would end gives up after [`MOST_ROUNDS`], unless the parameters say when.
///
/// # Errors
/// As [`Scenario::check`].
pub fn run(scenario: &Scenario) -> Result<Plan> {
    scenario.check()?;
    let world = World::new(scenario);
    let (control, mut parameters) = (Control::default(), scenario.parameters);
    if parameters.deadline.is_none() && parameters.max_rounds.is_none() {
        parameters.max_rounds = Some(MOST_ROUNDS);
    }
    control.set_parameters(parameters)?;
    let devices = PlannedDevices::new(scenario.pause.device_bytes);
    let mut sections = Sections::new();
    sections.register("devices", 0, Box::new(devices) as Box<dyn Section>)?;
    let notes = Notes::new(&control);
    let mut machine = PlannedMachine { world: world.clone(), scenario: *scenario, notes: Rc::clone(&notes) };
    let (figures, ram) = (Arc::<PageFigures>::default(), NoRam::new(scenario.memory));
    let section = PlannedMemory { world: world.clone(), figures: Arc::clone(&figures), notes: Rc::clone(&notes) };
    // A chunk costs the same however long it is, so that it is as long as a chunk may be: a tenth of a second.
    let longest_chunk = (whole(world::bytes_per_second(&scenario.connection)) / 10).max(CHUNK);
    let memory = Memory { section: Box::new(section), pages: figures, ram: &ram, longest_chunk };
    let mut options = SourceOptions::new("planned");
    // The pause's parts are given, and measured by rehearsals.
    options.switch_over_cost = Duration::ZERO;
    let host = Host { channel: &mut world.clone(), clock: &world, machine: &mut machine, sections: &mut sections };
    let departure = source::send(host, memory, &options, &control);
    // Unless the guest was paused, the last one is not noted yet.
    notes.round_over();
    let rounds = notes.with(&departure.report.rounds);
    let reason = departure.error.map(|error| error.message().to_owned());
    Ok(Plan { phase: departure.phase, reason, report: departure.report, rounds })
}

/// To the next lower integer; what does not fit becomes the nearest that does.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates here, which is what is wanted"
)]
fn whole(number: f64) -> u64 {
    number as u64
}
