//! One migration on the virtual wire, from its setup to its outcome.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use vmstate::migrate::destination::{self, Arrival, DestinationOptions, Incoming};
use vmstate::migrate::source::{self, Departure, Outgoing, SourceOptions};
use vmstate::migrate::{Control, Parameters};
use vmstate::section::{Section, Sections};

use super::device::Device;
use super::flash::Flash;
use super::guest::{Guest, Load};
use super::vm::{Lock, Vm};
use super::world::{Fault, Side, World};

/// The setup of a run; tests change the parts that they are about.
pub struct Setup {
    pub world: World,
    pub source: Vm,
    pub destination: Vm,
    pub source_devices: Vec<Device>,
    pub destination_devices: Vec<Device>,
    /// Sections in parts of either side, from instance id 0 on.
    pub source_flashes: Vec<Flash>,
    pub destination_flashes: Vec<Flash>,
    pub source_options: SourceOptions,
    pub destination_options: DestinationOptions,
    pub source_control: Control,
    pub destination_control: Control,
}

/// The outcome of a run.
pub struct Outcome {
    pub world: World,
    pub departure: Departure,
    pub arrival: Arrival,
    pub source: Vm,
    pub destination: Vm,
    pub source_devices: Vec<Device>,
    pub destination_devices: Vec<Device>,
}

/// Changes parameters as the migration's owner does.
pub fn set(control: &Control, change: impl FnOnce(&mut Parameters)) {
    let mut parameters = control.parameters();
    change(&mut parameters);
    control.set_parameters(parameters).unwrap();
}

pub const MACHINE: &str = "testvm";

impl Setup {
    pub fn set_max_rounds(&self, rounds: Option<u32>) {
        set(&self.source_control, |parameters| parameters.max_rounds = rounds);
    }

    /// A running source and a waiting destination with the same blocks and two devices, on an unlimited wire.
    pub fn new(blocks: &[(&str, u64)], fault: Option<Fault>) -> Self {
        Self::with(blocks, World::new(fault, None, Duration::ZERO), Load::default())
    }

    pub fn with(blocks: &[(&str, u64)], world: World, load: Load) -> Self {
        let lock: Lock = Lock::default();
        lock.lock().unwrap().holder = Some(Side::Source);
        let machine = |side| Vm {
            side,
            guest: Guest::new(&world, blocks, load),
            world: world.clone(),
            lock: Some(lock.clone()),
            running: side == Side::Source,
            refuses: None,
            rehearses: false,
            touches: None,
            touches_after: Duration::ZERO,
            rehearsed: None,
            throttled_ends: None,
            pause_takes: Duration::ZERO,
            loads_within: Duration::ZERO,
            cleans_up_within: Duration::ZERO,
            paused: None,
            pause_lasted: None,
            released: false,
            arriving: 0,
            departed: 0,
            sent_at_resume: None,
            cancels_at: None,
            cancel_granted: None,
            holds_until: None,
        };
        let (source, destination) = (machine(Side::Source), machine(Side::Destination));
        source.guest.set_running(true);
        let devices = |fill: u8| {
            let device =
                |length| Device { register: u32::from(fill) * 0x0101, fifo: vec![fill; length], ..Device::default() };
            vec![device(3), device(40)]
        };
        Self {
            source,
            destination,
            source_devices: devices(0x11),
            destination_devices: devices(0),
            source_flashes: Vec::new(),
            destination_flashes: Vec::new(),
            source_options: SourceOptions::new(MACHINE),
            destination_options: DestinationOptions::new(MACHINE),
            source_control: Control::default(),
            destination_control: Control::default(),
            world,
        }
    }

    /// The source of `outcome`, which runs the guest, tries again with a new destination.
    pub fn again(outcome: Outcome, blocks: &[(&str, u64)]) -> Self {
        assert!(outcome.source.running);
        let world = World::new(None, None, Duration::ZERO);
        let mut setup = Self::with(blocks, world, Load::default());
        setup.source.guest = outcome.source.guest.moved(&setup.world);
        setup.source_devices = outcome.source_devices;
        setup
    }

    /// Runs both sides to their end.
    pub fn run(mut self) -> Outcome {
        let mut source_devices = std::mem::take(&mut self.source_devices);
        let mut destination_devices = std::mem::take(&mut self.destination_devices);
        let (here, there) = (std::mem::take(&mut self.source_flashes), std::mem::take(&mut self.destination_flashes));
        let mut here = sections(&mut source_devices, here);
        let mut there = sections(&mut destination_devices, there);
        let outcome = self.run_with(&mut here, &mut there);
        drop((here, there));
        Outcome { source_devices, destination_devices, ..outcome }
    }

    /// Runs both sides to their end, with these sections instead of the setup's devices.
    pub fn run_with(self, here: &mut Sections<'_>, there: &mut Sections<'_>) -> Outcome {
        let Self { world, mut source, mut destination, source_devices, destination_devices, .. } = self;
        let _pinned = Pinned::here();
        let (departure, arrival) = thread::scope(|scope| {
            let arriving = scope.spawn(|| {
                world.begin(Side::Destination);
                let result = destination::run(
                    Incoming {
                        channel: &mut world.end(Side::Destination),
                        clock: &world.end(Side::Destination),
                        ram: &destination.guest.clone(),
                        machine: &mut destination,
                        sections: there,
                    },
                    &self.destination_options,
                    &self.destination_control,
                );
                if world.is_dead(Side::Destination) {
                    destination.bury();
                }
                world.finish(Side::Destination);
                result
            });
            world.begin(Side::Source);
            // A source that panics closes its end as well.
            let departure = catch_unwind(AssertUnwindSafe(|| {
                source::run(
                    Outgoing {
                        channel: &mut world.end(Side::Source),
                        clock: &world.end(Side::Source),
                        ram: &source.guest.clone(),
                        log: &mut source.guest.clone(),
                        machine: &mut source,
                        sections: here,
                    },
                    &self.source_options,
                    &self.source_control,
                )
            }));
            if world.is_dead(Side::Source) {
                source.bury();
            }
            world.finish(Side::Source);
            let arrival = arriving.join().unwrap();
            (departure.unwrap_or_else(|panic| resume_unwind(panic)), arrival)
        });
        Outcome { world, departure, arrival, source, destination, source_devices, destination_devices }
    }
}

fn sections(devices: &mut [Device], flashes: Vec<Flash>) -> Sections<'_> {
    let mut sections = Sections::new();
    for flash in flashes {
        sections.add_iterative(flash).unwrap();
    }
    for (instance, device) in (0..).zip(devices) {
        sections.register("device", instance, device as &mut dyn Section).unwrap();
    }
    sections
}

/// Keeps this thread, and the threads it starts, on one processor until dropped. The two sides take turns, and waking a thread on
/// another processor takes longer than most turns.
struct Pinned(CpuSet);

impl Pinned {
    fn here() -> Self {
        let before = sched_getaffinity(None).expect("a thread may ask for its own processors");
        let mut here = CpuSet::new();
        here.set(sched_getcpu());
        sched_setaffinity(None, &here).expect("a thread may run where it runs");
        Self(before)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.0);
    }
}
