//! The destination: takes a guest in, and runs it only once everything is loaded and checked, the source has said the
//! last word, and the guest's exclusive resources are here. A blocking driver: what to do next is decided by
//! [`DestinationProtocol`], the phases are drawn in `phase.rs`.

mod answers;
mod postcopy;
mod recovery;

use std::sync::Arc;
use std::time::Duration;

use super::control::Control;
use super::late::LateRam;
use super::load::{Loaded, Loader};
use super::multifd::Receivers;
use super::phase::{DestinationPhase, Phase};
use super::protocol::{DestinationAction, DestinationEvent, DestinationProtocol, Timing, ping};
use super::report::{ArrivalReport, Takeover};
use super::wire::{Link, STREAM, Timeout, is_timeout, timed_out};
use super::{Claim, Machine, Over};
use crate::channel::{Channel, Clock};
use crate::codec::{Limits, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::multifd::Beside;
use crate::ram::{GuestRam, PageFigures, RamSection, shares_memory};
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

/// Options of a destination.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DestinationOptions {
    /// Machine type, as `microvm`; the source's must be the same.
    pub machine_type: String,
    /// Which streams are accepted.
    pub strictness: Strictness,
    /// What each section may cost.
    pub limits: Limits,
    /// By when the introduction (everything before the first page) must be here.
    pub introduction: Duration,
    /// A source that sends nothing for so long is given up.
    pub silence: Option<Duration>,
    /// At the commit: how long to wait for exclusive resources that another process holds.
    pub claim_timeout: Duration,
    /// Takes pages from page channels, too, if the source has them. For one migration.
    pub page_channels: Option<Receivers>,
}

impl DestinationOptions {
    /// Strict, default limits, 10 s for the introduction, a minute of silence, a second to claim the resources.
    pub fn new(machine_type: impl Into<String>) -> Self {
        Self {
            machine_type: machine_type.into(),
            strictness: Strictness::default(),
            limits: Limits::default(),
            introduction: Duration::from_secs(10),
            silence: Some(Duration::from_secs(60)),
            claim_timeout: Duration::from_secs(1),
            page_channels: None,
        }
    }
}

/// How a destination ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Arrival {
    /// Where the guest is: a [final](DestinationPhase::is_final) phase.
    pub phase: DestinationPhase,
    /// Why, unless completed.
    pub error: Option<Error>,
    /// Neither memory nor devices were changed: another source may try. Only early sections may have loaded.
    pub pristine: bool,
    /// What it took.
    pub report: ArrivalReport,
}

impl Arrival {
    /// The report of a completed migration, or why it failed.
    ///
    /// # Errors
    /// [`Arrival::error`].
    pub fn into_result(self) -> Result<ArrivalReport> {
        match self.error {
            None => Ok(self.report),
            Some(error) => Err(error),
        }
    }
}

/// How long the source gets for its self-description, which nobody here needs.
const DESCRIPTION: Duration = Duration::from_secs(1);
/// How long the last word to the source may take: it is a few bytes, and the guest waits.
const LAST_WORD: Duration = Duration::from_millis(100);
/// Between two times that the machine is told of pages that have come.
const ARRIVING: Duration = Duration::from_millis(50);
/// Between two attempts to take the exclusive resources.
const RETRY: Duration = Duration::from_millis(10);
/// How long a QEMU gets to take its image's lock back once the connection is closed. It does so some milliseconds after it has noticed
/// that, and its guest stands still for so long when it did hear that the guest runs here.
const SETTLE: Duration = Duration::from_millis(50);

/// Takes the guest in. Returns when this side is over; the source has then been told how, if it could be.
pub fn run(incoming: Incoming<'_, '_>, options: &DestinationOptions, control: &Control) -> Arrival {
    let Incoming { channel, clock, machine, sections, ram } = incoming;
    let span = tracing::info_span!("migration", side = "destination", phase = ?DestinationPhase::Setup);
    let _inside = span.enter();
    let ram_bytes = ram.blocks().iter().map(|block| block.len).sum();
    control.publish(|progress| {
        progress.phase = Phase::Destination(DestinationPhase::Setup);
        progress.ram_bytes = ram_bytes;
    });
    let late = &LateRam::new(ram);
    let beside = Beside::from(options.page_channels.as_ref());
    let _over = Over(beside.clone());
    let silence = options.silence.map_or(Timeout::Endless, Timeout::Silence);
    let wire = Link::new(channel, late, clock, control, options.strictness, options.limits, STREAM).with(&beside);
    let memory = RamSection::incoming(late).with(&beside);
    let pages = memory.figures();
    let loader =
        Loader::new(wire.serving(late), sections, Box::new(memory), !ram.blocks().is_empty(), options.strictness);
    let begun = clock.now();
    let timing = Timing {
        answer: options.introduction,
        pause_budget: Duration::MAX,
        claim_timeout: options.claim_timeout,
        retry: RETRY,
        settle: SETTLE,
    };
    let (protocol, first) = DestinationProtocol::begin(begun, &timing);
    let mut destination = Destination {
        protocol,
        loader,
        late,
        package: Package::None,
        pages,
        clock,
        machine,
        control,
        machine_type: &options.machine_type,
        shares_memory: shares_memory(ram),
        silence,
        timing,
        begun,
        stream: Stream::Unopened,
        asked: None,
        stopped: false,
        told: begun,
        answers: false,
        knows_times: false,
        takeover: Takeover::default(),
        pristine: true,
        reason: None,
        span: span.clone(),
    };
    destination.drive(first);
    destination.end()
}

struct Destination<'a, 's> {
    /// Around all of the migration; says its phase.
    span: tracing::Span,
    protocol: DestinationProtocol,
    loader: Loader<'a, 's>,
    /// Guest memory, for post-copy.
    late: &'a LateRam<'a>,
    package: Package,
    /// Figures of guest memory, for the report.
    pages: Arc<PageFigures>,
    clock: &'a dyn Clock,
    machine: &'a mut dyn Machine,
    control: &'a Control,
    machine_type: &'a str,
    /// Some of guest memory does not come.
    shares_memory: bool,
    silence: Timeout,
    timing: Timing,
    begun: Duration,
    stream: Stream,
    /// A ping that was read and not yet reported.
    asked: Option<u32>,
    /// The source's pause was reported.
    stopped: bool,
    /// When the machine was last told of pages that have come.
    told: Duration,
    /// The source listens, and has not been told the end yet.
    answers: bool,
    /// The source is one of this library.
    knows_times: bool,
    takeover: Takeover,
    pristine: bool,
    /// The first thing that went wrong.
    reason: Option<Error>,
}

/// The package of the devices, in post-copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Package {
    None,
    /// The package ends at this stream offset.
    UpTo(u64),
    Loaded,
}

/// How far the stream was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Unopened,
    /// Header and configuration are read.
    Opened,
    /// The introduction is over, and was reported.
    Introduced,
}

impl Destination<'_, '_> {
    /// Carries out one action after the other, until there is none.
    fn drive(&mut self, first: DestinationAction) {
        let mut action = first;
        while action != DestinationAction::End {
            let phase = self.protocol.phase();
            let event = self.carry_out(action).unwrap_or_else(|error| self.went_wrong(action, error));
            action = self.protocol.handle(event, self.clock.now(), &self.timing);
            let now = self.protocol.phase();
            self.pristine &= matches!(now, DestinationPhase::Setup | DestinationPhase::Failed);
            if now != phase {
                tell_phase(now, &self.span, self.control);
            }
        }
    }

    fn carry_out(&mut self, action: DestinationAction) -> Result<DestinationEvent> {
        let done = |()| DestinationEvent::Done;
        match action {
            DestinationAction::Receive(until) => self.receive(until.map_or(self.silence, Timeout::Until)),
            DestinationAction::Compare => {
                if !self.answers {
                    self.machine.unheard();
                }
                self.machine.introduced().map(done)
            }
            DestinationAction::Load => {
                match self.package {
                    Package::None => self.loader.check_complete()?,
                    _ => self.loader.check_devices()?,
                }
                let begun = self.clock.now();
                self.load_machine()?;
                self.takeover.machine = self.clock.now().saturating_sub(begun);
                Ok(DestinationEvent::Done)
            }
            DestinationAction::Answer(number) => self.answer(Reply::Pong(ping::answer(number)), self.silence).map(done),
            DestinationAction::RefuseCancels => self.control.commit().map(done),
            DestinationAction::Claim => self.machine.claim().map(|claim| {
                if let Some(reason) = lost(claim) {
                    self.reason = Some(Error::new(ErrorKind::Peer, reason));
                }
                DestinationEvent::Claimed(claim)
            }),
            DestinationAction::Sleep(until) => {
                self.clock.sleep(until.saturating_sub(self.clock.now()));
                Ok(DestinationEvent::Deadline)
            }
            DestinationAction::Confirm if !self.answers => Ok(DestinationEvent::Unheard),
            DestinationAction::Confirm => {
                let told = self.last_word(Reply::Shut(0)).map(done);
                told.inspect_err(|error| {
                    tracing::warn!("the source could not be told that the guest runs here: {error}")
                })
            }
            DestinationAction::ConfirmRun => self.confirm_run().map(done),
            DestinationAction::TakePages => self.take_pages(),
            DestinationAction::Reconnect => Ok(self.recovery().1.reconnect()),
            DestinationAction::Recover(until) => self.recovery().1.recover(until).map(done),
            DestinationAction::AwaitParting(until) => {
                self.loader.wire.await_parting(until).map(|()| DestinationEvent::Parted)
            }
            DestinationAction::Advance => {
                // What went wrong before was no obstacle in the end.
                self.reason = None;
                self.machine.advance().map(done)
            }
            DestinationAction::Resume => {
                let begun = self.clock.now();
                if let Err(error) = self.resume_machine() {
                    // Of the machine: what the wire had is mended within.
                    self.reason.get_or_insert(error);
                    return Ok(DestinationEvent::Refused);
                }
                self.takeover.resume = self.clock.now().saturating_sub(begun);
                if self.package == Package::None {
                    self.machine.arrived();
                }
                Ok(DestinationEvent::Done)
            }
            DestinationAction::Refuse => {
                // The source finds out in any case, by the broken channel or by its own timeout.
                let _ = self.last_word(Reply::Shut(1));
                Ok(DestinationEvent::Done)
            }
            DestinationAction::End => Ok(DestinationEvent::Done),
        }
    }

    /// Guest memory that does not fit is found before the machines are compared: the source is told all that differs at once.
    fn with_all_that_differs(&mut self, error: Error) -> Error {
        if self.stream != Stream::Opened || error.kind() != ErrorKind::Incompatible {
            return error;
        }
        self.machine.introduced().err().unwrap_or(error)
    }

    /// Keeps the first error, and tells the protocol what kind of failure it is.
    fn went_wrong(&mut self, action: DestinationAction, error: Error) -> DestinationEvent {
        let event = match error.kind() {
            _ if matches!(action, DestinationAction::TakePages | DestinationAction::Recover(_)) => event_of(&error),
            ErrorKind::Cancelled => DestinationEvent::Cancelled,
            ErrorKind::Io if is_timeout(&error) => DestinationEvent::Deadline,
            ErrorKind::Io => DestinationEvent::Broken,
            _ => DestinationEvent::Refused,
        };
        self.reason.get_or_insert(error);
        event
    }

    /// Reads on until the protocol has to know of something.
    fn receive(&mut self, timeout: Timeout) -> Result<DestinationEvent> {
        self.loader.set_timeout(timeout);
        if self.stream == Stream::Unopened {
            self.loader.check_migratable()?;
            let verdict = self.loader.introduction(self.machine_type, self.shares_memory)?;
            self.stream = Stream::Opened;
            if let Err(refused) = verdict {
                self.look_for_return_path();
                return Err(refused);
            }
        }
        loop {
            if self.stream == Stream::Opened && self.loader.is_introduced()? {
                self.stream = Stream::Introduced;
                return Ok(DestinationEvent::Introduced);
            }
            if let Some(number) = self.asked.take() {
                let complete = match self.package {
                    Package::None => self.loader.is_last_ping(number == ping::READY),
                    _ => number == ping::READY,
                };
                return Ok(DestinationEvent::Asked { number, complete });
            }
            if self.loader.has_ended_parts() && !self.stopped {
                self.stopped = true;
                return Ok(DestinationEvent::Stopped);
            }
            // A source that goes on talking never lets a wait for its next byte end.
            if matches!(timeout, Timeout::Until(moment) if self.clock.now() >= moment) {
                return Err(timed_out("the source does not come to the end of its introduction"));
            }
            let offset = self.loader.wire.offset();
            let step = self.loader.step();
            match step.map_err(|error| self.with_all_that_differs(error))? {
                Loaded::Section => {}
                Loaded::Command(Command::OpenReturnPath) => self.answers = true,
                Loaded::Command(Command::SwitchoverStart) if self.stopped => {}
                Loaded::Command(Command::SwitchoverStart) => {
                    self.stopped = true;
                    return Ok(DestinationEvent::Stopped);
                }
                // So does QEMU (`loadvm_process_command`, migration/savevm.c).
                Loaded::Command(Command::Ping(value)) if !self.answers => {
                    let message = format!("ping {value} came before the way for its answer was opened");
                    return Err(Error::new(ErrorKind::Malformed, message).at(offset));
                }
                Loaded::Command(Command::Ping(number)) => {
                    self.knows_times |= number == ping::WHO;
                    self.asked = Some(number);
                }
                Loaded::Command(command) => {
                    if let Some(event) = self.postcopy(&command, timeout).map_err(|error| error.at(offset))? {
                        return Ok(event);
                    }
                }
                Loaded::Eof => return Ok(DestinationEvent::Ended),
            }
            self.check_package()?;
            self.publish();
            if self.stream == Stream::Introduced && !self.stopped {
                self.tell_of_pages();
            }
        }
    }

    /// Tells the machine of pages that have come, unless it was told just before.
    fn tell_of_pages(&mut self) {
        let now = self.clock.now();
        // Who looks at pages in post-copy would wait for them.
        if now.saturating_sub(self.told) >= ARRIVING && !self.late.listens() {
            self.told = now;
            self.machine.arriving();
        }
    }

    /// The source may still be sending.
    fn end(mut self) -> Arrival {
        let phase = self.protocol.phase();
        let total = self.clock.now().saturating_sub(self.begun);
        let bytes = self.loader.wire.taken();
        let completed = phase == DestinationPhase::Completed;
        match phase {
            DestinationPhase::Completed => self.tell_times(),
            DestinationPhase::Failed => self.late.give_up(),
            _ => {}
        }
        self.publish();
        self.control.sections_went(std::mem::take(&mut self.loader.whole));
        self.control.publish(|progress| {
            progress.takeover = completed.then_some(self.takeover);
            progress.phase = Phase::Destination(phase);
        });
        if completed {
            // The guest runs already: what is left is the source's to say, and it may be slow to.
            let deadline = self.clock.now().saturating_add(DESCRIPTION);
            if let Err(error) = self.loader.drop_description(Timeout::Until(deadline)) {
                tracing::debug!("no self-description: {error}");
            }
            self.publish();
        }
        let report = ArrivalReport { total, bytes, pages: self.pages.moved() };
        let pristine = self.pristine && self.loader.has_only_early_sections();
        Arrival { phase, error: self.reason, pristine, report }
    }

    fn publish(&self) {
        let (received, bytes) = (self.pages.moved(), self.loader.wire.taken());
        let elapsed = self.clock.now().saturating_sub(self.begun);
        let waits = self.late.waits();
        self.control.publish(|progress| {
            progress.page_waits = waits.unwrap_or(progress.page_waits);
            (progress.elapsed, progress.bytes) = (elapsed, bytes);
            (progress.normal_pages, progress.zero_pages) = (received.normal, received.zero);
        });
    }
}

/// What the protocol has to know of an error of the stream once the guest may run here: over another connection the source may do better.
fn event_of(error: &Error) -> DestinationEvent {
    match error.kind() {
        ErrorKind::Io if is_timeout(error) => DestinationEvent::Deadline,
        ErrorKind::Io | ErrorKind::Malformed | ErrorKind::Incompatible => DestinationEvent::Broken,
        _ => DestinationEvent::Refused,
    }
}

/// Tells the phase that has begun; the last one is told with the figures.
fn tell_phase(phase: DestinationPhase, span: &tracing::Span, control: &Control) {
    span.record("phase", tracing::field::debug(phase));
    tracing::info!("phase");
    if !phase.is_final() {
        control.publish(|progress| progress.phase = Phase::Destination(phase));
    }
}

/// Why a claim that was not won was not.
fn lost(claim: Claim) -> Option<&'static str> {
    match claim {
        Claim::Won | Claim::Undecidable => None,
        Claim::Held => Some("another process, the source most likely, holds the guest's exclusive resources"),
        Claim::Moved => Some("someone has run a guest on its exclusive resources since the source let them go"),
    }
}
