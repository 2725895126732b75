//! Predicts a migration by running the real engine, protocol, forecast and policy on a virtual wire and clock, with a guest that
//! consists of page counts only. Terabytes take milliseconds.
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

/// The conditions of a planned migration.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Scenario {
    /// Guest memory in bytes.
    pub memory: u64,
    /// Bytes of the memory that are zero and stay zero.
    pub zero: u64,
    /// What the guest writes.
    pub writes: Writes,
    /// Number of vCPUs. Those of a bursty guest write at independent times.
    pub vcpus: u32,
    /// The connection.
    pub connection: Connection,
    /// The time of the pause besides the pages.
    pub pause: Pause,
    /// Time from the beginning to the first page, besides answers: connections, and the comparison of both machines.
    pub setup: Duration,
    /// Time after each round, while the guest runs: writing disk images back, and other work before the next pages.
    pub after_round: Duration,
    /// The parameters that the guest's owner has set; `multifd` and `xbzrle` do not affect a plan.
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
    /// At all times and places equally.
    #[default]
    Steady,
    /// Each vCPU writes in a fifth of the time, five times as fast, 200 ms at a time.
    Bursty,
    /// For 10 s at 1.75 times the rate, then for 10 s at a quarter of it and to another working set.
    Phased,
    /// Nine of ten writes are to a tenth of the working set.
    HotSpot,
}

/// The connection of a migration.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Connection {
    /// Speed in bytes a second.
    pub bytes_per_second: u64,
    /// Round-trip time.
    pub round_trip: Duration,
    /// The longest delay of an answer beyond the round-trip time.
    pub jitter: Duration,
    /// Fraction of all packets that is lost, from 0 to below 1.
    pub loss: f64,
}

/// The time of a pause besides the pages. Defaults are assumptions: the report of a real migration has measured figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pause {
    /// Time until the guest stands still.
    pub stop: Duration,
    /// Time for the destination to load the devices.
    pub load: Duration,
    /// Bytes of the devices' state.
    pub device_bytes: u64,
}

/// The result of a plan.
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
    /// The engine's report of the round.
    pub round: Round,
    /// Time from the beginning to the decision after the round.
    pub over: Duration,
    /// Bytes of guest memory still to be sent at that time.
    pub remaining_bytes: u64,
    /// The measured speed of the wire in bytes a second.
    pub bytes_per_second: u64,
    /// The measured bytes of pages that the guest dirties a second. A page counts once a round.
    pub dirty_bytes_per_second: u64,
    /// Throttle of this round.
    pub throttle_percent: u8,
    /// The predicted pause, if it had begun at that time.
    pub expected_downtime: Duration,
}

/// The most rounds of a plan, if nothing else ends it.
pub const MOST_ROUNDS: u32 = 200;

impl Scenario {
    /// A guest with this much memory and one vCPU that writes nothing, on a wire with this speed in bytes a second and a round
    /// trip of 0.2 ms.
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

    /// Checks that such a migration is possible.
    ///
    /// # Errors
    /// `Misuse`, with the fault.
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

/// An exbibyte: its number of pages is exact in an `f64`.
const MOST_MEMORY: u64 = 1 << 60;
/// The most bytes of device state: a plan creates the state as a whole.
const MOST_STATE: u64 = 1 << 30;
/// The maximum of KVM (`KVM_MAX_VCPUS`, arch/x86/include/asm/kvm_host.h).
const MOST_VCPUS: u32 = 4096;
/// Keeps all sums of times within their range.
const LONGEST_WORK: Duration = Duration::from_secs(24 * 60 * 60);
/// A round trip and a jitter of this length stay within the source's timeout.
const LONGEST_WAY: Duration = Duration::from_secs(5);

impl Pause {
    /// Stops within 1 ms and 20 µs for each vCPU, loads within 2 ms and 150 µs for each vCPU, and has 64 KiB of state and 8 KiB
    /// for each vCPU.
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
    /// True if the guest runs at the destination.
    pub fn is_completed(&self) -> bool {
        self.phase == SourcePhase::Completed
    }
}

/// Runs the plan. If nothing else ends it, it gives up after [`MOST_ROUNDS`], unless the parameters have a limit.
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
    // The length of a chunk does not change its cost here, so chunks are as long as allowed: a tenth of a second.
    let longest_chunk = (round_down(world::bytes_per_second(&scenario.connection)) / 10).max(CHUNK);
    let memory = Memory { section: Box::new(section), pages: figures, ram: &ram, longest_chunk };
    let mut options = SourceOptions::new("planned");
    // The parts of the pause are given, and measured by rehearsals.
    options.switch_over_cost = Duration::ZERO;
    let host = Host { channel: &mut world.clone(), clock: &world, machine: &mut machine, sections: &mut sections };
    let departure = source::send(host, memory, &options, &control);
    // Unless the guest was paused, the last round is not recorded yet.
    notes.round_over();
    let rounds = notes.with(&departure.report.rounds);
    let reason = departure.error.map(|error| error.message().to_owned());
    Ok(Plan { phase: departure.phase, reason, report: departure.report, rounds })
}

/// Rounds down to an integer; a value out of range becomes the nearest one in range.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates here, which is what is wanted"
)]
fn round_down(number: f64) -> u64 {
    number as u64
}
