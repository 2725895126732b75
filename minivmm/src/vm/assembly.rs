//! The machine with all that it owns: made, started, brought to rest and made anew. What may be asked of it is the driver's
//! (`driver.rs`), its side of migrations is in `migration/`.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::config::{Address, Config, ListenAt};
use crate::error::{Error, Result};
use crate::kvm;
use crate::memory::Ram;
use crate::migration::firmware::Firmware;
use crate::migration::ownership::SharedTickets;
use crate::migration::sections::{MachineState, Parts};
use crate::vm::backends::Backends;
use crate::vm::handle::Handle;
use crate::vm::inventory::Inventory;
use crate::vm::keyboard::Keyboard;
use crate::vm::machine::Machine;
use crate::vm::migration::ended::LeftStanding;
use crate::vm::migration::handover::{HandedOver, await_guest};
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
    /// The user asked for it.
    Quit,
    /// The machine could not go on, for this reason, and no client could be asked.
    Failed(String),
}

/// A machine with its driver.
#[derive(Debug)]
pub struct Vm {
    pub(super) config: Config,
    pub(super) ram: Ram,
    /// What came with the guest from a QEMU.
    pub(super) firmware: Firmware,
    pub(super) backends: Backends,
    pub(super) machine: Machine,
    pub(super) queue: Queue,
    pub(super) shared: Arc<Published>,
    pub(super) handle: Handle,
    keyboard: Keyboard,
    /// For migrations to a name.
    pub(super) look_up: LookUp,
    /// State on its way between the kernel and a migration stream.
    pub(super) state: Arc<Mutex<MachineState>>,
    /// The outgoing migration, while there is one.
    pub(super) outgoing: Option<Outgoing>,
    /// The incoming migration, while there is one.
    pub(super) incoming: Option<Incoming>,
    /// The guest has stood since a migration, and is claimed before it goes on.
    pub(super) left_standing: Option<LeftStanding>,
    /// Destination: the guest stands when it has arrived.
    pub(super) arrives_stopped: bool,
    /// Where the guest of an incoming migration comes from, until the driver runs.
    pub(super) origin: Option<Origin>,
}

impl Vm {
    /// Builds the machine of `config`, at rest; its serial port prints to `console`.
    ///
    /// # Errors
    /// Any; see [`Error`](crate::error::Error).
    pub fn new(mut config: Config, console: Box<dyn Write + Send>) -> Result<Self> {
        let state = if config.incoming.is_some() { RunState::InMigrate } else { RunState::Prelaunch };
        let (handle, queue, shared) = Handle::new(state);
        let handed_over = match &config.incoming {
            Some(ListenAt::Address(Address::Local(path))) => Some(await_guest(&path.clone(), &mut config)?),
            _ => None,
        };
        let (ram, handed_over) = match handed_over {
            Some(HandedOver { ram, socket }) => (ram, Some(Origin::HandedOver(socket))),
            None if config.shares_memory => (Ram::shared(config.memory)?, None),
            None => (Ram::new(config.memory)?, None),
        };
        let backends = Backends::open(&config, &ram, console)?;
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
        // Last of all, for it waits until each vCPU's thread has told its number.
        shared.set_inventory(Inventory::new(&config, &ram, &backends, &machine));
        Ok(Self {
            config,
            ram,
            firmware: Firmware::default(),
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
            left_standing: None,
            arrives_stopped: false,
            origin,
        })
    }

    /// To reach the driver from other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// To reach the serial port from other threads.
    pub fn keyboard(&self) -> Keyboard {
        self.keyboard.clone()
    }

    pub(super) fn start(&self) {
        self.machine.devices.resume();
        // Before the guest's first instruction: who sees what it does finds it running.
        self.shared.set_run_state(RunState::Running);
        self.machine.resume_vcpus();
    }

    /// vCPUs first: then no new work comes while the devices finish theirs. After an error all go on.
    pub(super) fn rest(&self, within: Duration) -> std::result::Result<(), Refusal> {
        let until = Instant::now() + within;
        self.machine.pause_vcpus(within).map_err(|error| Refusal(error.to_string()))?;
        self.machine.devices.pause(until.saturating_duration_since(Instant::now())).map_err(|error| {
            self.machine.resume_vcpus();
            Refusal(error.to_string())
        })
    }

    /// Everything but RAM is made anew, and the kernel is loaded again. The machine is at rest. A migration under way goes on
    /// with what was made.
    pub(super) fn remake(&mut self) -> std::result::Result<(), Outcome> {
        if self.backends.boot.is_none() {
            let what = "the guest reset, but this machine has no --kernel to boot again: start it with one";
            return Err(Outcome::Ended(End::Failed(what.into())));
        }
        self.make_anew().map_err(not_reset)?;
        let loaded = self.backends.boot.as_ref().map(|images| self.machine.load(&self.config, images));
        loaded.unwrap_or(Ok(())).map_err(not_reset)
    }

    /// Everything but RAM is made anew, as after power-on. The machine is at rest.
    pub(super) fn make_anew(&mut self) -> Result<()> {
        // First of all, for they would meet the new devices.
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

    /// The address at which the command line has this machine wait for a guest, if it names one.
    pub(super) fn awaited_at(&self) -> Option<Address> {
        match &self.config.incoming {
            Some(ListenAt::Address(address)) => Some(address.clone()),
            _ => None,
        }
    }

    /// True if a user can reach it.
    pub(super) fn can_be_asked(&self) -> bool {
        self.config.control.is_some()
    }

    /// What the sections of a migration's stream are made of.
    pub(super) fn parts(&self) -> Parts {
        Parts {
            state: Arc::clone(&self.state),
            vcpus: self.machine.vcpus.len(),
            tickets: SharedTickets::default(),
            devices: self.machine.devices.sections(),
            generation: Arc::clone(&self.machine.devices.generation),
            disks: Vec::new(),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn not_reset(error: Error) -> Outcome {
    Outcome::Ended(End::Failed(format!("reset: {}", error.with_causes())))
}

/// Why a request was not simply carried out.
pub(super) enum Outcome {
    Refused(Refusal),
    Ended(End),
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
