//! The driver: the one thread that changes the machine's run state. The states are drawn in `state.rs`, what may be asked in
//! which of them is in `queue.rs`.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmstate::channel::Listener;

use crate::config::Config;
use crate::error::{Result, say};
use crate::memory::Ram;
use crate::migration::sections::MachineState;
use crate::vm::backends::Backends;
use crate::vm::handle::Handle;
use crate::vm::keyboard::Keyboard;
use crate::vm::machine::Machine;
use crate::vm::migration::{self, Incoming, LeftStanding, Outgoing, incoming, schema};
use crate::vm::published::Shared;
use crate::vm::queue::{Decision, Queue, UnderWay, decide};
use crate::vm::request::{AnyRequest, DeviceRequest, EngineRequest, Refusal, Request};
use crate::vm::state::RunState;

/// How long vCPUs and disk I/O in flight are given at a stop. A vCPU comes out of the kernel within microseconds, on a loaded
/// host within milliseconds; a host whose disk needs longer than this has other worries.
const PATIENCE: Duration = Duration::from_secs(10);

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
    pub(super) queue: Queue,
    pub(super) shared: Arc<Shared>,
    pub(super) handle: Handle,
    keyboard: Keyboard,
    /// State on its way between the kernel and a migration stream.
    pub(super) state: Arc<Mutex<MachineState>>,
    /// The outgoing migration, while there is one.
    pub(super) outgoing: Option<Outgoing>,
    /// The incoming migration, while there is one.
    pub(super) incoming: Option<Incoming>,
    /// The guest has stood since a migration, and is claimed before it goes on.
    pub(super) left_standing: Option<LeftStanding>,
    /// Where the source of an incoming migration is awaited, until the driver runs.
    listener: Option<Listener>,
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
        let keyboard = Keyboard::new(&machine.devices.serial, &shared);
        let state = Arc::new(Mutex::new(MachineState::new(machine.vcpus.len())));
        let listener = config.incoming.as_ref().map(incoming::listen).transpose()?;
        Ok(Self {
            config,
            ram,
            backends,
            machine,
            queue: Queue::new(requests),
            shared,
            handle,
            keyboard,
            state,
            outgoing: None,
            incoming: None,
            left_standing: None,
            listener,
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

    /// Starts the machine and serves requests until it ends.
    pub fn run(mut self) -> End {
        let end = self.serve_all();
        // Whoever waits for an answer is told that there will be none.
        drop(self.queue);
        migration::give_up(self.outgoing, self.incoming);
        end
    }

    fn serve_all(&mut self) -> End {
        if self.shared.run_state() == RunState::Prelaunch {
            self.start();
        }
        if let Some(listener) = self.listener.take()
            && let Err(Outcome::Ended(end)) = self.receive(listener)
        {
            return end;
        }
        loop {
            // This driver holds a handle, so the channel never closes.
            let Some((request, answer)) = self.queue.next() else { return End::Quit };
            let decision = decide(&request, self.shared.run_state(), self.under_way());
            let cancelled = match decision {
                Decision::CancelAndDefer | Decision::CancelOrRefuse => self.cancel_migration(&request),
                Decision::Accept | Decision::Refuse(_) | Decision::Defer => Ok(()),
            };
            let outcome = match (decision, cancelled) {
                (Decision::Accept, _) => self.serve(request),
                (Decision::Refuse(why), _) => Err(Refusal(why).into()),
                (Decision::CancelOrRefuse, Err(refusal)) => Err(refusal.into()),
                (Decision::Defer | Decision::CancelAndDefer | Decision::CancelOrRefuse, _) => {
                    self.queue.defer((request, answer));
                    continue;
                }
            };
            let (reply, end) = match outcome {
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

    fn serve(&mut self, request: AnyRequest) -> std::result::Result<(), Outcome> {
        match request {
            AnyRequest::User(request) => self.serve_user(request)?,
            AnyRequest::Device(DeviceRequest::Reset) => self.reset()?,
            AnyRequest::Device(DeviceRequest::PoweredOff) => {
                self.shared.set_run_state(RunState::Shutdown);
                return Err(Outcome::Ended(End::PoweredOff));
            }
            AnyRequest::Device(DeviceRequest::Failed(why)) => self.fail(why)?,
            AnyRequest::Engine(EngineRequest::Rehearse(with)) => self.rehearse(with)?,
            AnyRequest::Engine(EngineRequest::Pause(within)) => self.switch_over(within)?,
            AnyRequest::Engine(EngineRequest::Introduced) => self.introduced()?,
            AnyRequest::Engine(EngineRequest::Loaded) => self.write_state()?,
            AnyRequest::Engine(EngineRequest::Resume) => self.go_on(),
            AnyRequest::Engine(EngineRequest::Ended(end)) => self.ended(end)?,
        }
        Ok(())
    }

    fn serve_user(&mut self, request: Request) -> std::result::Result<(), Outcome> {
        match request {
            Request::Stop => self.stop()?,
            Request::Cont => self.cont(false)?,
            Request::ContUnproved => self.cont(true)?,
            Request::Quit => return Err(Outcome::Ended(End::Quit)),
            Request::PowerDown => {
                self.machine.devices.ged.lock().unwrap_or_else(PoisonError::into_inner).press_power_button();
            }
            Request::Reset => self.reset()?,
            Request::Migrate(address) => self.migrate(address, None)?,
            Request::MigrateToRelease(address, file) => self.migrate(address, Some(schema::read(&file)?))?,
            Request::DumpSchema(file) => schema::write(&self.parts(), &file)?,
            // One that is under way was cancelled when this was asked, and has ended.
            Request::MigrateCancel => {}
            Request::MigrateSetParameters(change) => self.set_migration_parameters(change),
        }
        Ok(())
    }

    pub(super) fn start(&self) {
        self.machine.devices.resume();
        self.machine.resume_vcpus();
        self.shared.set_run_state(RunState::Running);
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

    fn under_way(&self) -> UnderWay {
        match (&self.outgoing, &self.incoming) {
            (Some(_), _) => UnderWay::Outgoing,
            (None, Some(_)) => UnderWay::Incoming,
            (None, None) => UnderWay::Nothing,
        }
    }

    fn stop(&mut self) -> std::result::Result<(), Refusal> {
        match self.shared.run_state() {
            RunState::Running => {
                self.rest(PATIENCE)?;
                self.shared.set_run_state(RunState::Paused);
            }
            RunState::InMigrate => self.arrives_stopped(true),
            _ => {}
        }
        Ok(())
    }

    /// `vouched`: the user has seen to it that no other process runs the guest.
    fn cont(&mut self, vouched: bool) -> std::result::Result<(), Refusal> {
        match self.shared.run_state() {
            RunState::InMigrate => self.arrives_stopped(false),
            RunState::Paused | RunState::PostMigrate if self.left_standing.is_some() => self.take_back(vouched)?,
            RunState::Prelaunch | RunState::Paused => self.start(),
            _ => {}
        }
        Ok(())
    }

    /// Everything but RAM is made anew, and the kernel is loaded again.
    fn reset(&mut self) -> std::result::Result<(), Outcome> {
        let running = self.shared.run_state() == RunState::Running;
        if running {
            self.rest(PATIENCE)?;
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
        if running {
            self.start();
        }
        Ok(())
    }

    /// True if a user can reach it.
    pub(super) fn can_be_asked(&self) -> bool {
        self.config.control.is_some()
    }

    /// A machine that can be asked stays, to be looked at; another one has no use any more.
    fn fail(&self, why: String) -> std::result::Result<(), Outcome> {
        if !self.can_be_asked() {
            return Err(Outcome::Ended(End::Failed(why)));
        }
        say(&why);
        let _ = self.machine.pause_vcpus(PATIENCE);
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
