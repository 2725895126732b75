//! The destination: takes a guest in, and runs it only once everything is loaded and checked, the source has said the
//! last word, and the guest's exclusive resources are here. The phases are drawn in `phase.rs`.

use std::time::Duration;

use super::control::Control;
use super::load::{Loader, Step};
use super::phase::{DestinationPhase, Phase};
use super::report::Arrival;
use super::wire::{Patience, STREAM, Wire};
use super::{Claim, Machine};
use crate::channel::{Channel, Clock};
use crate::codec::{Limits, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::GuestRam;
use crate::section::Sections;
use crate::stream::{Command, Reply};

/// What a destination works with.
#[expect(missing_debug_implementations, reason = "nothing of it can be shown")]
pub struct Incoming<'a, 's> {
    /// To the source.
    pub channel: &'a mut dyn Channel,
    /// Time.
    pub clock: &'a dyn Clock,
    /// The machine, whose guest does not run and which holds no exclusive resource.
    pub machine: &'a mut dyn Machine,
    /// Its devices.
    pub sections: &'a mut Sections<'s>,
    /// Its memory.
    pub ram: &'a dyn GuestRam,
}

/// How a destination goes about it.
#[derive(Clone, Debug)]
pub struct DestinationOptions {
    /// Machine type, as `microvm`; the source's must be the same.
    pub machine_type: String,
    /// What is accepted.
    pub strictness: Strictness,
    /// What each section may cost.
    pub limits: Limits,
    /// A source that sends nothing for so long is given up.
    pub silence: Option<Duration>,
}

impl DestinationOptions {
    /// Strict, default limits, a minute of silence.
    pub fn new(machine_type: impl Into<String>) -> Self {
        Self {
            machine_type: machine_type.into(),
            strictness: Strictness::default(),
            limits: Limits::default(),
            silence: Some(Duration::from_secs(60)),
        }
    }
}

/// How long the source gets for its self-description, which nobody here needs.
const DESCRIPTION: Duration = Duration::from_secs(1);

/// Takes the guest in. Returns once it runs here.
///
/// # Errors
/// Whatever went wrong, with its place. The guest then does not run here, and the source has been told if it can be.
pub fn run(incoming: Incoming<'_, '_>, options: &DestinationOptions, control: &Control) -> Result<Arrival> {
    let Incoming { channel, clock, machine, sections, ram } = incoming;
    control.publish(|progress| {
        progress.phase = Phase::Destination(DestinationPhase::Setup);
        progress.ram_bytes = ram.blocks().iter().map(|block| block.len).sum();
    });
    let patience = options.silence.map_or(Patience::Endless, Patience::Silence);
    let wire = Wire::new(channel, clock, control, options.strictness, options.limits, STREAM);
    let loader = Loader::new(wire, sections, ram, options.strictness, patience);
    let (begun, phase) = (clock.now(), DestinationPhase::Setup);
    let mut destination = Destination { loader, clock, machine, control, begun, phase, answers: false };
    match destination.take_over(&options.machine_type) {
        Ok(()) => Ok(destination.settle()),
        Err(error) => Err(destination.fail(error)),
    }
}

struct Destination<'a, 's> {
    loader: Loader<'a, 's>,
    clock: &'a dyn Clock,
    machine: &'a mut dyn Machine,
    control: &'a Control,
    begun: Duration,
    phase: DestinationPhase,
    /// The source listens, and has not been told the end yet.
    answers: bool,
}

impl Destination<'_, '_> {
    fn take_over(&mut self, machine_type: &str) -> Result<()> {
        self.loader.check_migratable()?;
        self.loader.introduction(machine_type)?;
        self.enter(DestinationPhase::Receiving);
        loop {
            let offset = self.loader.wire.offset();
            match self.loader.step()? {
                Step::Section => {}
                Step::Command(command) => self.obey(command).map_err(|error| error.at(offset))?,
                Step::Eof => break,
            }
            if self.loader.ram_complete() {
                self.begin_loading();
            }
            self.publish();
        }
        self.loader.check_complete()?;
        self.begin_loading();
        if self.phase == DestinationPhase::Loading {
            self.machine.loaded()?;
        }
        self.enter(DestinationPhase::Commit);
        self.control.commit()?;
        match self.machine.claim()? {
            Claim::Won | Claim::Undecidable => {}
            Claim::Held | Claim::Moved => {
                let message = "another process, the source most likely, holds the guest's exclusive resources";
                return Err(Error::new(ErrorKind::Peer, message));
            }
        }
        // Said before the guest runs: a destination that dies before it has said so never ran the guest. And the guest
        // runs even if it cannot be said: the source will find the resources taken.
        if let Err(error) = self.answer(Reply::Shut(0)) {
            tracing::warn!("the source could not be told that the guest runs here: {error}");
        }
        self.answers = false;
        self.machine.resume()?;
        self.enter(DestinationPhase::Completed);
        Ok(())
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::OpenReturnPath => self.answers = true,
            Command::SwitchoverStart => self.begin_loading(),
            // So does QEMU (`loadvm_process_command`, migration/savevm.c).
            Command::Ping(value) if !self.answers => {
                let message = format!("ping {value} came before the way for its answer was opened");
                return Err(Error::new(ErrorKind::Malformed, message));
            }
            Command::Ping(value) => {
                // After the last pages a ping is the question whether the source may let go.
                if self.loader.ram_complete() {
                    self.loader.check_complete()?;
                    self.begin_loading();
                    if self.phase == DestinationPhase::Loading {
                        self.machine.loaded()?;
                        self.enter(DestinationPhase::Ready);
                    }
                }
                self.answer(Reply::Pong(value))?;
            }
        }
        Ok(())
    }

    fn answer(&mut self, reply: Reply) -> Result<()> {
        if !self.answers {
            return Ok(());
        }
        let mut bytes = Vec::new();
        reply.write(&mut bytes);
        self.loader.wire.send(&bytes)
    }

    /// The guest runs; the source may still be sending.
    fn settle(&mut self) -> Arrival {
        let total = self.clock.now().saturating_sub(self.begun);
        let bytes = self.loader.wire.offset();
        let deadline = self.clock.now().saturating_add(DESCRIPTION);
        if let Err(error) = self.loader.drop_description(Patience::Until(deadline)) {
            tracing::debug!("no self-description: {error}");
        }
        self.publish();
        Arrival { total, bytes, pages: self.loader.received() }
    }

    fn fail(&mut self, error: Error) -> Error {
        // The source finds out in any case, by the broken channel or by its own patience.
        let _ = self.answer(Reply::Shut(1));
        if self.phase != DestinationPhase::Completed {
            self.enter(DestinationPhase::Failed);
        }
        error
    }

    fn begin_loading(&mut self) {
        if self.phase == DestinationPhase::Receiving {
            self.enter(DestinationPhase::Loading);
        }
    }

    fn enter(&mut self, phase: DestinationPhase) {
        debug_assert!(self.phase.may_become(phase), "{:?} to {phase:?}", self.phase);
        tracing::debug!(?phase, "destination");
        self.phase = phase;
        self.control.publish(|progress| progress.phase = Phase::Destination(phase));
    }

    fn publish(&self) {
        let received = self.loader.received();
        self.control.publish(|progress| {
            progress.elapsed = self.clock.now().saturating_sub(self.begun);
            progress.bytes = self.loader.wire.offset();
            (progress.normal_pages, progress.zero_pages) = (received.normal, received.zero);
        });
    }
}
