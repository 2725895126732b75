//! The machine and everything that it owns: making, starting, stopping and resetting it. The driver (`driver.rs`) handles
//! requests, and `migration/` its side of migrations.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::config::{Address, Config, ListenAt};
use crate::devices::serial::Sink;
use crate::error::{Error, Result};
use crate::kvm;
use crate::memory::{Ram, SharedCopy};
use crate::migration::bitmaps::{BitmapSection, SharedBitmaps};
use crate::migration::firmware::{Firmware, SEGMENT};
use crate::migration::ownership::SharedTickets;
use crate::migration::sections::{MachineState, Parts};
use crate::vm::backends::Backends;
use crate::vm::handle::Handle;
use crate::vm::inventory::Inventory;
use crate::vm::keyboard::Keyboard;
use crate::vm::machine::Machine;
use crate::vm::migration::ended::LeftStopped;
use crate::vm::migration::handover::HandedOver;
use crate::vm::migration::incoming::{self, Origin};
use crate::vm::migration::look_up::LookUp;
use crate::vm::migration::under_way::{Incoming, Outgoing};
use crate::vm::published::Published;
use crate::vm::queue::Queue;
use crate::vm::request::Refusal;
use crate::vm::state::RunState;

/// Why the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered off.
    PoweredOff,
    /// The user asked to end the machine.
    Quit,
    /// The machine could not continue, for this reason, and no client can reach it.
    Failed(String),
}

/// A machine with its driver.
#[derive(Debug)]
pub struct Vm {
    pub(super) config: Config,
    pub(super) ram: Ram,
    /// Firmware memory of a guest from a QEMU.
    pub(super) firmware: Firmware,
    /// Copy of the guest's memory that a QEMU has in a block of its own, if the memory can be handed over.
    pub(super) segment: Option<SharedCopy>,
    /// Blocks of a QEMU's firmware, by name, if the guest comes as in QEMU's mode `cpr-transfer`.
    pub(super) transferred: Option<BTreeMap<String, File>>,
    pub(super) backends: Backends,
    pub(super) machine: Machine,
    pub(super) queue: Queue,
    pub(super) shared: Arc<Published>,
    pub(super) handle: Handle,
    keyboard: Keyboard,
    /// Resolves host names for migrations.
    pub(super) look_up: LookUp,
    /// State that is passed between KVM and a migration stream.
    pub(super) state: Arc<Mutex<MachineState>>,
    /// The outgoing migration, while there is one.
    pub(super) outgoing: Option<Outgoing>,
    /// The incoming migration, while there is one.
    pub(super) incoming: Option<Incoming>,
    /// Set while a migration has left the guest stopped: the guest is claimed before it resumes.
    pub(super) left_stopped: Option<LeftStopped>,
    /// At a destination: whether the guest stays stopped when it arrives.
    pub(super) arrives_stopped: bool,
    /// Source of the incoming migration's guest, until the driver runs.
    pub(super) origin: Option<Origin>,
}

impl Vm {
    /// Builds the machine of `config`, paused; its serial port prints to `console`.
    ///
    /// # Errors
    /// Any; see [`Error`](crate::error::Error).
    pub fn new(mut config: Config, console: impl Into<Sink>) -> Result<Self> {
        let handed_over = HandedOver::awaited(&mut config)?;
        Self::taking_over(config, console, handed_over)
    }

    /// Builds the machine of `config`, paused, around the memory that was `handed_over`; its serial port prints to `console`.
    ///
    /// # Errors
    /// Any; see [`Error`](crate::error::Error).
    pub fn taking_over(config: Config, console: impl Into<Sink>, handed_over: Option<HandedOver>) -> Result<Self> {
        let state = if config.incoming.is_some() { RunState::InMigrate } else { RunState::Prelaunch };
        let (handle, queue, shared) = Handle::new(state);
        let (ram, handed_over, descriptors, transferred) = match handed_over {
            Some(HandedOver { ram, socket, descriptors, firmware }) => {
                (ram, Some(Origin::HandedOver(socket)), descriptors, firmware)
            }
            None if config.shares_memory => (Ram::shared(config.memory)?, None, BTreeMap::new(), None),
            None => (Ram::new(config.memory)?, None, BTreeMap::new(), None),
        };
        let segment = ram.descriptor().is_some().then(|| SharedCopy::new(SEGMENT)).transpose()?;
        let backends = Backends::open(&config, &ram, console.into(), descriptors)?;
        let kvm = config.kvm.as_deref().map_or_else(kvm::open, kvm::passed)?;
        let machine = Machine::new(&config, &ram, Arc::new(kvm), &backends, queue.waiting(), None)?;
        if let (None, Some(images)) = (&config.incoming, &backends.boot) {
            machine.load(&config, images)?;
            backends.advance(&config)?;
        }
        let keyboard = Keyboard::new(&machine.devices.serial, &shared);
        let state = Arc::new(Mutex::new(MachineState::new(machine.vcpus.len())));
        let origin = match (handed_over, &config.incoming) {
            (Some(origin), _) => Some(origin),
            (None, Some(at)) => incoming::listen_at(at, &config.tls)?,
            (None, None) => None,
        };
        shared.set_tls(config.tls.clone());
        let look_up = LookUp::start().map_err(Error::device)?;
        // Last, since it waits until each vCPU's thread has published its id.
        shared.set_inventory(Inventory::new(&config, &ram, &backends, &machine));
        Ok(Self {
            config,
            ram,
            firmware: Firmware::default(),
            segment,
            transferred,
            backends,
            machine,
            queue,
            shared,
            handle,
            keyboard,
            look_up,
            state,
            outgoing: None,
            incoming: None,
            left_stopped: None,
            arrives_stopped: false,
            origin,
        })
    }

    /// Returns a handle to the driver for other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Adds a descriptor of the process to those that are handed over with the guest to another process of this host.
    pub fn hand_over_also(&mut self, name: &'static str, descriptor: OwnedFd) {
        self.backends.of_process.push((name, descriptor));
    }

    /// Returns a handle to the serial port for other threads.
    pub fn keyboard(&self) -> Keyboard {
        self.keyboard.clone()
    }

    pub(super) fn start(&self) {
        self.machine.devices.resume();
        // Before the guest's first instruction: everybody who sees its effects finds the guest running.
        self.shared.set_run_state(RunState::Running);
        self.machine.resume_vcpus();
    }

    /// Pauses vCPUs first, so that devices get no new work while they finish theirs. After an error all run on.
    pub(super) fn pause_all(&self, within: Duration) -> std::result::Result<(), Refusal> {
        let until = Instant::now() + within;
        self.pause_vcpus(within)?;
        self.machine.devices.pause(until.saturating_duration_since(Instant::now())).map_err(|error| {
            self.machine.resume_vcpus();
            Refusal(format!("{error}{}", self.missing_memory().unwrap_or_default()))
        })
    }

    /// Pauses the vCPUs only. After an error all run on.
    pub(super) fn pause_vcpus(&self, within: Duration) -> std::result::Result<(), Refusal> {
        self.machine.pause_vcpus(within).map_err(|error| {
            let why = self.missing_memory().unwrap_or("; the host is overloaded or its KVM hangs");
            Refusal(format!("{error}{why}"))
        })
    }

    /// In post-copy the reason why a vCPU or a device may not stop: a signal does not end the kernel's wait for a missing page
    /// that it accesses itself for them (`handle_userfault`, fs/userfaultfd.c).
    fn missing_memory(&self) -> Option<&'static str> {
        let is_postcopy = self.shared.migration().status().is_postcopy();
        is_postcopy.then_some(
            "; it may wait for memory that is still at the source (post-copy): ask again when that migration has completed, after a recovery (migrate-recover) if its connection is broken",
        )
    }

    /// Resets the paused machine: makes everything but RAM anew, and loads the kernel. A migration under way continues with the
    /// new machine.
    pub(super) fn remake(&mut self) -> std::result::Result<(), Outcome> {
        if self.backends.boot.is_none() {
            let what = "the guest reset, but this machine has no --kernel to boot again: start it with one";
            return Err(Outcome::Ended(End::Failed(what.into())));
        }
        self.make_anew().map_err(not_reset)?;
        let loaded = self.backends.boot.as_ref().map(|images| self.machine.load(&self.config, images));
        loaded.unwrap_or(Ok(())).map_err(not_reset)
    }

    /// Makes everything but RAM anew, as after power-on. The machine is paused.
    pub(super) fn make_anew(&mut self) -> Result<()> {
        // First, since the vCPUs would access the new devices.
        self.machine.vcpus.clear();
        let waiting = self.queue.waiting();
        let kvm = Arc::clone(self.machine.kvm.kvm());
        let made = Machine::new(&self.config, &self.ram, kvm, &self.backends, waiting, Some(&self.machine.devices));
        let made = made.and_then(|mut made| {
            if let Some(outgoing) = &self.outgoing {
                outgoing.follow(&self.machine, &mut made)?;
            }
            Ok(made)
        });
        self.machine = made?;
        self.shared.set_inventory(Inventory::new(&self.config, &self.ram, &self.backends, &self.machine));
        Ok(())
    }

    /// Address of the command line at which this machine waits for a guest, if there is one.
    pub(super) fn awaited_at(&self) -> Option<Address> {
        match &self.config.incoming {
            Some(ListenAt::Address(address)) => Some(address.clone()),
            _ => None,
        }
    }

    /// Whether a user can reach the machine.
    pub(super) fn can_be_asked(&self) -> bool {
        self.config.control.is_some()
    }

    /// Parts of the machine that the sections of a migration stream describe.
    pub(super) fn parts(&self) -> Parts {
        Parts {
            state: Arc::clone(&self.state),
            vcpus: self.machine.vcpus.len(),
            tickets: SharedTickets::default(),
            devices: self.machine.devices.sections(),
            generation: Arc::clone(&self.machine.devices.generation),
            bitmaps: self.bitmaps(),
            disks: Vec::new(),
        }
    }

    fn bitmaps(&self) -> SharedBitmaps {
        let disks = self.backends.images.iter().map(|image| Arc::clone(image.bitmaps()));
        let section = BitmapSection::new(disks.collect(), self.shared.sends_dirty_bitmaps());
        Arc::new(Mutex::new(section.mapped(Arc::clone(self.shared.bitmap_mapping()))))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn not_reset(error: Error) -> Outcome {
    Outcome::Ended(End::Failed(format!("reset: {}", error.with_causes())))
}

/// Why a request was not carried out.
pub(super) enum Outcome {
    Refused(Refusal),
    Ended(End),
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
