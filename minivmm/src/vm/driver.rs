//! The driver: the one thread that changes the machine's run state.
//!
//! ```text
//!  Prelaunch ──start──► Running ◄──cont/stop──► Paused
//!  InMigrate ──arrived──►  │ ▲ └─vCPU fails──► InternalError
//!  FinishMigrate ◄─switch-over─┴─taken back─►    FinishMigrate ──handed over──► PostMigrate
//!                          │ └─reset─┘
//!                          └─guest powers off──► Shutdown, and the process ends
//! ```

use std::io::Write;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::config::Config;
use crate::devices::serial::Serial;
use crate::error::Result;
use crate::memory::Ram;
use crate::migration::sections::MachineState;
use crate::vm::backends::Backends;
use crate::vm::devices::Shared as SharedDevice;
use crate::vm::handle::{Envelope, Handle, Refusal, Request, RunState, Shared};
use crate::vm::incoming::Door;
use crate::vm::machine::Machine;
use crate::vm::underway::Underway;

/// Disk I/O in flight is given this long at a stop; a host whose disk needs longer has other worries.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// Why the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered off.
    PoweredOff,
    /// The user asked for it.
    Quit,
    /// It could not go on, and there was no one left to ask: why.
    Failed(String),
}

/// A machine with its driver.
#[derive(Debug)]
pub struct Vm {
    config: Config,
    pub(super) ram: Ram,
    pub(super) backends: Backends,
    pub(super) machine: Machine,
    requests: Receiver<Envelope>,
    pub(super) shared: Arc<Shared>,
    pub(super) handle: Handle,
    /// The serial port of the machine as it is now; a reset makes a new one.
    keyboard: Keyboard,
    /// State on its way between the kernel and a migration stream.
    pub(super) state: Arc<Mutex<MachineState>>,
    /// The outgoing migration, while there is one.
    pub(super) underway: Option<Underway>,
    /// Where the source of an incoming migration is awaited, until the driver runs.
    door: Option<Door>,
}

/// Where typed bytes go.
#[derive(Clone, Debug)]
pub struct Keyboard(Arc<Mutex<SharedDevice<Serial>>>);

impl Keyboard {
    /// Gives `bytes` to the serial port and says how many it took.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let serial = Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
        serial.enqueue(bytes)
    }

    fn plug_into(&self, serial: &SharedDevice<Serial>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(serial);
    }
}

impl Vm {
    /// Builds the machine of `config`, at rest; its serial port prints to `console`.
    ///
    /// # Errors
    /// Any; see [`Error`](crate::error::Error).
    pub fn new(config: Config, console: Box<dyn Write + Send>) -> Result<Self> {
        let state = if config.incoming.is_some() { RunState::InMigrate } else { RunState::Prelaunch };
        let (handle, requests, shared) = Handle::new(state);
        let ram = Ram::new(config.memory)?;
        let backends = Backends::open(&config, console)?;
        let machine = Machine::new(&config, &ram, &backends, &handle)?;
        if let (None, Some(kernel)) = (&config.incoming, &config.kernel) {
            machine.load(&config, kernel)?;
            backends.advance(&config)?;
        }
        let keyboard = Keyboard(Arc::new(Mutex::new(Arc::clone(&machine.devices.serial))));
        let state = Arc::new(Mutex::new(MachineState::new(machine.vcpus.len())));
        let door = config.incoming.as_ref().map(Door::open).transpose()?;
        Ok(Self { config, ram, backends, machine, requests, shared, handle, keyboard, state, underway: None, door })
    }

    /// To reach the driver from other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// To reach the serial port from other threads.
    pub fn keyboard(&self) -> Keyboard {
        self.keyboard.clone()
    }

    /// Starts the machine and serves requests until it ends.
    pub fn run(mut self) -> End {
        if self.shared.run_state() == RunState::Prelaunch {
            self.start();
        }
        if let Some(door) = self.door.take()
            && let Err(Outcome::Ended(end)) = self.receive(door)
        {
            return end;
        }
        loop {
            // This driver holds a handle, so the channel never closes.
            let Ok((request, answer)) = self.requests.recv() else { return End::Quit };
            if request == Request::MigrateCancel {
                self.cancel_migration(answer);
                continue;
            }
            let quits = request == Request::Quit;
            let outcome = self.serve(request);
            let (reply, end) = match outcome {
                Ok(()) if quits => (Ok(()), Some(End::Quit)),
                Ok(()) => (Ok(()), None),
                Err(Outcome::Refused(refusal)) => (Err(refusal), None),
                Err(Outcome::Ended(end)) => (Ok(()), Some(end)),
            };
            // Who asked may be gone.
            let _ = answer.send(reply);
            if let Some(end) = end {
                return end;
            }
        }
    }

    fn serve(&mut self, request: Request) -> std::result::Result<(), Outcome> {
        match request {
            Request::Stop => self.stop()?,
            Request::Cont => self.cont()?,
            Request::Quit => {}
            Request::PowerDown => {
                self.machine.devices.ged.lock().unwrap_or_else(PoisonError::into_inner).press_power_button();
            }
            Request::Reset => self.reset()?,
            Request::PoweredOff => {
                self.shared.set_run_state(RunState::Shutdown);
                return Err(Outcome::Ended(End::PoweredOff));
            }
            Request::Fail(why) => self.fail(why)?,
            Request::Migrate(address) => self.migrate(address)?,
            Request::MigrateCancel => {}
            parameters @ Request::MigrateSetParameters { .. } => self.set_migration_parameters(&parameters),
            Request::SwitchOver => self.switch_over()?,
            Request::Loaded => self.write_state()?,
            Request::GoOn => self.go_on()?,
            Request::Departed(end) => self.departed(end)?,
            Request::Arrived(end) => self.arrived(end)?,
        }
        Ok(())
    }

    pub(super) fn start(&self) {
        self.machine.devices.resume();
        self.machine.resume_vcpus();
        self.shared.set_run_state(RunState::Running);
    }

    /// vCPUs first: then no new work comes while the devices finish theirs.
    pub(super) fn rest(&self) -> std::result::Result<(), Refusal> {
        self.machine.pause_vcpus().map_err(|error| Refusal(error.to_string()))?;
        self.machine.devices.pause(DRAIN_PATIENCE).map_err(|error| {
            self.machine.resume_vcpus();
            Refusal(error.to_string())
        })
    }

    fn stop(&self) -> std::result::Result<(), Refusal> {
        if self.shared.run_state() == RunState::Running {
            self.rest()?;
            self.shared.set_run_state(RunState::Paused);
        }
        Ok(())
    }

    fn cont(&self) -> std::result::Result<(), Refusal> {
        match self.shared.run_state() {
            RunState::Running => {}
            RunState::Prelaunch | RunState::Paused => self.start(),
            state => return Err(Refusal(format!("the machine is in state {} and cannot go on", state.as_str()))),
        }
        Ok(())
    }

    /// Everything but RAM is made anew, and the kernel is loaded again.
    pub(super) fn reset(&mut self) -> std::result::Result<(), Outcome> {
        if self.defer_reset() {
            return Ok(());
        }
        let state = self.shared.run_state();
        if !matches!(state, RunState::Running | RunState::Paused) {
            return Err(Refusal(format!("the machine is in state {} and cannot reset", state.as_str())).into());
        }
        if state == RunState::Running {
            self.rest()?;
        }
        let Some(kernel) = &self.config.kernel else {
            let what = "the guest reset, but this machine has no --kernel to boot again: start it with one";
            return Err(Outcome::Ended(End::Failed(what.into())));
        };
        let machine = Machine::new(&self.config, &self.ram, &self.backends, &self.handle);
        let machine = machine.and_then(|machine| machine.load(&self.config, kernel).map(|()| machine));
        self.machine =
            machine.map_err(|error| Outcome::Ended(End::Failed(format!("reset: {}", error.with_causes()))))?;
        self.keyboard.plug_into(&self.machine.devices.serial);
        if state == RunState::Running {
            self.start();
        }
        Ok(())
    }

    /// A machine that can be asked stays, to be looked at; another one has no use any more.
    fn fail(&self, why: String) -> std::result::Result<(), Outcome> {
        if self.config.control.is_none() {
            return Err(Outcome::Ended(End::Failed(why)));
        }
        eprintln!("minivmm: {why}");
        let _ = self.machine.pause_vcpus();
        self.shared.set_run_state(RunState::InternalError);
        Ok(())
    }
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
