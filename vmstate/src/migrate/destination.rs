//! The destination: receives a guest, and runs it only once everything is loaded and checked, the source has sent its final
//! message, and this side holds the guest's exclusive resources. A blocking driver: [`DestinationProtocol`] decides what to do
//! next, and `phase.rs` has the phase diagrams.

mod answers;
mod postcopy;
mod recovery;

use std::sync::Arc;
use std::time::Duration;

use super::control::Control;
use super::load::{Loaded, Loader};
use super::multifd::Receivers;
use super::phase::{DestinationPhase, Phase};
use super::postcopy_ram::PostcopyRam;
use super::protocol::{DestinationAction, DestinationEvent, DestinationProtocol, Timing, ping};
use super::report::{ArrivalReport, Takeover};
use super::wire::{Link, STREAM, Timeout, is_timeout, timed_out};
use super::{Claim, Machine, Over};
use crate::channel::{Channel, Clock};
use crate::codec::{Limits, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::mapped::FileThreads;
use crate::ram::multifd::PageChannels;
use crate::ram::{GuestRam, PageCount, PageFigures, RamSection, announces_shared};
use crate::section::Sections;
use crate::stream::{Command, Reply};

/// The parts that a destination works with.
#[expect(missing_debug_implementations, reason = "nothing of it can be shown")]
pub struct Incoming<'a, 's> {
    /// The channel to the source.
    pub channel: &'a mut dyn Channel,
    /// The clock.
    pub clock: &'a dyn Clock,
    /// The machine; its guest does not run, and it holds no exclusive resource.
    pub machine: &'a mut dyn Machine,
    /// The machine's devices.
    pub sections: &'a mut Sections<'s>,
    /// The guest's memory.
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
    /// Limits on the cost of each section.
    pub limits: Limits,
    /// The longest time until the handshake (everything before the first page) is complete.
    pub handshake: Duration,
    /// A source that is silent for this long is given up.
    pub silence: Option<Duration>,
    /// At the commit: how long to wait for exclusive resources that another process holds.
    pub claim_timeout: Duration,
    /// Also accepts pages from page channels, if the source has them. For one migration.
    pub page_channels: Option<Receivers>,
    /// The threads that read pages from their places in a file, on each of which a worker runs; `None`: the calling thread reads
    /// them. For one migration.
    pub file_threads: Option<FileThreads>,
}

impl DestinationOptions {
    /// Strict, default limits, 10 s for the handshake, a minute of silence, a second to claim the resources.
    pub fn new(machine_type: impl Into<String>) -> Self {
        Self {
            machine_type: machine_type.into(),
            strictness: Strictness::default(),
            limits: Limits::default(),
            handshake: Duration::from_secs(10),
            silence: Some(Duration::from_secs(60)),
            claim_timeout: Duration::from_secs(1),
            page_channels: None,
            file_threads: None,
        }
    }
}

/// The result of a destination.
#[derive(Debug)]
#[non_exhaustive]
pub struct Arrival {
    /// Where the guest runs: a [final](DestinationPhase::is_final) phase.
    pub phase: DestinationPhase,
    /// The error, unless the migration completed.
    pub error: Option<Error>,
    /// True if neither memory nor devices were changed: another source may try. Only early sections may have been loaded.
    pub pristine: bool,
    /// The measurements.
    pub report: ArrivalReport,
}

impl Arrival {
    /// The report of a completed migration, or the error.
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

/// How long the destination waits for the source's self-description, which it does not need.
const DESCRIPTION: Duration = Duration::from_secs(1);
/// How long sending the final answer to the source may take: it is a few bytes, and the guest waits.
const FINAL_ANSWER: Duration = Duration::from_millis(100);
/// Time between two reports to the machine that pages have arrived.
const ARRIVING: Duration = Duration::from_millis(50);
/// Time between two attempts to take the exclusive resources.
const RETRY: Duration = Duration::from_millis(10);
/// How long a QEMU has to take its image's lock back once the connection is closed. It does so some milliseconds after it has
/// noticed the close; if the QEMU did receive the answer that the guest runs here, the guest stands still for this time.
const SETTLE: Duration = Duration::from_millis(50);

/// Receives the guest. Returns when this side has ended; the source has then been informed, if that was possible.
pub fn run(incoming: Incoming<'_, '_>, options: &DestinationOptions, control: &Control) -> Arrival {
    let Incoming { channel, clock, machine, sections, ram } = incoming;
    let span = tracing::info_span!("migration", side = "destination", phase = ?DestinationPhase::Setup);
    let _inside = span.enter();
    let ram_bytes = ram.blocks().iter().map(|block| block.len).sum();
    control.publish(|progress| {
        progress.phase = Phase::Destination(DestinationPhase::Setup);
        progress.ram_bytes = ram_bytes;
    });
    let memory = &PostcopyRam::new(ram);
    let page_channels = PageChannels::from(options.page_channels.as_ref());
    let _over = Over(page_channels.clone());
    let silence = options.silence.map_or(Timeout::Endless, Timeout::Silence);
    let wire =
        Link::new(channel, memory, clock, control, options.strictness, options.limits, STREAM).with(&page_channels);
    let ram_section = RamSection::incoming(memory).with(&page_channels).reading_on(options.file_threads.clone());
    let pages = ram_section.figures();
    let loader = Loader::new(
        wire.serving(memory),
        sections,
        Box::new(ram_section),
        !ram.blocks().is_empty(),
        options.strictness,
    );
    let begun = clock.now();
    let timing = Timing {
        answer: options.handshake,
        pause_budget: Duration::MAX,
        claim_timeout: options.claim_timeout,
        retry: RETRY,
        settle: SETTLE,
    };
    let (protocol, first) = DestinationProtocol::begin(begun, &timing);
    let mut destination = Destination {
        protocol,
        loader,
        memory,
        package: Package::None,
        pages,
        clock,
        machine,
        control,
        machine_type: &options.machine_type,
        announces_shared: announces_shared(ram),
        silence,
        timing,
        begun,
        stream: Stream::Unopened,
        asked: None,
        stopped: false,
        reported_at: begun,
        answers: false,
        accepts_times: false,
        takeover: Takeover::default(),
        pristine: true,
        reason: None,
        span: span.clone(),
    };
    destination.drive(first);
    destination.end()
}

struct Destination<'a, 's> {
    /// The span of the whole migration, with its phase.
    span: tracing::Span,
    protocol: DestinationProtocol,
    loader: Loader<'a, 's>,
    /// Guest memory, as post-copy uses it.
    memory: &'a PostcopyRam<'a>,
    package: Package,
    /// Figures of guest memory, for the report.
    pages: Arc<PageFigures>,
    clock: &'a dyn Clock,
    machine: &'a mut dyn Machine,
    control: &'a Control,
    machine_type: &'a str,
    /// True if the stream has to say that some of guest memory is shared and not sent.
    announces_shared: bool,
    silence: Timeout,
    timing: Timing,
    begun: Duration,
    stream: Stream,
    /// A ping that was read and not yet passed to the protocol.
    asked: Option<u32>,
    /// True if the source's pause was passed to the protocol.
    stopped: bool,
    /// When the machine was last informed of arrived pages.
    reported_at: Duration,
    /// True if the source listens, and has not received the final answer.
    answers: bool,
    /// True if the source is one of this library, which understands the times.
    accepts_times: bool,
    takeover: Takeover,
    pristine: bool,
    /// The first error.
    reason: Option<Error>,
}

/// The state of the package of devices, in post-copy.
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
    /// Header and configuration were read.
    Opened,
    /// The handshake is complete, and was passed to the protocol.
    HandshakeComplete,
}

impl Destination<'_, '_> {
    /// Executes one action after another, until there is none.
    fn drive(&mut self, first: DestinationAction) {
        let mut action = first;
        while action != DestinationAction::End {
            let phase = self.protocol.phase();
            let event = self.carry_out(action).unwrap_or_else(|error| self.record_failure(action, error));
            action = self.protocol.handle(event, self.clock.now(), &self.timing);
            let now = self.protocol.phase();
            self.pristine &= matches!(now, DestinationPhase::Setup | DestinationPhase::Failed);
            if now != phase {
                publish_phase(now, &self.span, self.control);
            }
        }
    }

    fn carry_out(&mut self, action: DestinationAction) -> Result<DestinationEvent> {
        let done = |()| DestinationEvent::Done;
        match action {
            DestinationAction::Receive(until) => self.receive(until.map_or(self.silence, Timeout::Until)),
            DestinationAction::Compare => {
                if !self.answers {
                    self.machine.no_return_path();
                }
                self.machine.compare().map(done)
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
                let sent = self.send_final_answer(Reply::Shut(0)).map(done);
                sent.inspect_err(|error| {
                    tracing::warn!("the source could not be informed that the guest runs here: {error}")
                })
            }
            DestinationAction::ConfirmRun => self.confirm_run().map(done),
            DestinationAction::TakePages => self.take_pages(),
            DestinationAction::Reconnect => Ok(self.recovery().1.reconnect()),
            DestinationAction::Recover(until) => self.recovery().1.recover(until).map(done),
            DestinationAction::AwaitClose(until) => {
                self.loader.wire.await_close(until).map(|()| DestinationEvent::Closed)
            }
            DestinationAction::Advance => {
                // Earlier errors did not prevent the completion.
                self.reason = None;
                self.machine.advance().map(done)
            }
            DestinationAction::Resume => {
                let begun = self.clock.now();
                if let Err(error) = self.resume_machine() {
                    // An error of the machine: errors of the wire are handled within.
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
                // The source finds out in any case, from the broken channel or its own timeout.
                let _ = self.send_final_answer(Reply::Shut(1));
                Ok(DestinationEvent::Done)
            }
            DestinationAction::End => Ok(DestinationEvent::Done),
        }
    }

    /// Called if guest memory does not fit, before the machines are compared: compares them as well, so that the source gets all
    /// differences at once.
    fn with_all_that_differs(&mut self, error: Error) -> Error {
        if self.stream != Stream::Opened || error.kind() != ErrorKind::Incompatible {
            return error;
        }
        self.machine.compare().err().unwrap_or(error)
    }

    /// Keeps the first error, and returns the kind of failure as an event for the protocol.
    fn record_failure(&mut self, action: DestinationAction, error: Error) -> DestinationEvent {
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

    /// Reads the stream until there is an event for the protocol.
    fn receive(&mut self, timeout: Timeout) -> Result<DestinationEvent> {
        self.loader.set_timeout(timeout);
        if self.stream == Stream::Unopened {
            self.loader.check_migratable()?;
            let verdict = self.loader.read_configuration(self.machine_type, self.announces_shared)?;
            self.stream = Stream::Opened;
            if let Err(refused) = verdict {
                self.look_for_return_path();
                return Err(refused);
            }
        }
        loop {
            if self.stream == Stream::Opened && self.loader.is_handshake_complete()? {
                self.stream = Stream::HandshakeComplete;
                return Ok(DestinationEvent::HandshakeComplete);
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
            // A source that keeps sending never lets a wait for its next byte expire.
            if matches!(timeout, Timeout::Until(moment) if self.clock.now() >= moment) {
                return Err(timed_out("the source does not complete its handshake"));
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
                // QEMU does the same (`loadvm_process_command`, migration/savevm.c).
                Loaded::Command(Command::Ping(value)) if !self.answers => {
                    let message = format!("ping {value} came before the return path was opened");
                    return Err(Error::new(ErrorKind::Malformed, message).at(offset));
                }
                Loaded::Command(Command::Ping(number)) => {
                    self.accepts_times |= number == ping::IDENTIFY;
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
            if self.stream == Stream::HandshakeComplete && !self.stopped {
                self.report_pages();
            }
        }
    }

    /// Informs the machine of arrived pages, unless it was informed just before.
    fn report_pages(&mut self) {
        let now = self.clock.now();
        // In post-copy, accessing pages could block.
        if now.saturating_sub(self.reported_at) >= ARRIVING && !self.memory.listens() {
            self.reported_at = now;
            self.machine.arriving();
        }
    }

    /// Finishes this side; the source may still be sending.
    fn end(mut self) -> Arrival {
        let phase = self.protocol.phase();
        let total = self.clock.now().saturating_sub(self.begun);
        let bytes = self.loader.wire.taken();
        let completed = phase == DestinationPhase::Completed;
        match phase {
            DestinationPhase::Completed => self.send_times(),
            DestinationPhase::Failed => self.memory.give_up(),
            _ => {}
        }
        self.publish();
        self.control.sections_went(std::mem::take(&mut self.loader.whole));
        self.control.publish(|progress| {
            progress.takeover = completed.then_some(self.takeover);
            progress.phase = Phase::Destination(phase);
        });
        if completed {
            // The guest already runs: the rest of the stream is up to the source, which may be slow.
            let deadline = self.clock.now().saturating_add(DESCRIPTION);
            if let Err(error) = self.loader.drop_description(Timeout::Until(deadline)) {
                tracing::debug!("no self-description: {error}");
            }
            self.publish();
        }
        let report = ArrivalReport { total, bytes, pages: self.moved() };
        let pristine = self.pristine && self.loader.has_only_early_sections();
        Arrival { phase, error: self.reason, pristine, report }
    }

    /// Pages that have come.
    fn moved(&self) -> PageCount {
        self.pages.moved().and(self.loader.wire.urgent_pages())
    }

    fn publish(&self) {
        let (received, bytes) = (self.moved(), self.loader.wire.taken());
        let elapsed = self.clock.now().saturating_sub(self.begun);
        let waits = self.memory.waits();
        self.control.publish(|progress| {
            progress.page_waits = waits.unwrap_or(progress.page_waits);
            (progress.elapsed, progress.bytes) = (elapsed, bytes);
            (progress.normal_pages, progress.zero_pages) = (received.normal, received.zero);
        });
    }
}

/// The event for an error of the stream once the guest may run here: over another connection, the source may still succeed.
fn event_of(error: &Error) -> DestinationEvent {
    match error.kind() {
        ErrorKind::Io if is_timeout(error) => DestinationEvent::Deadline,
        ErrorKind::Io | ErrorKind::Malformed | ErrorKind::Incompatible => DestinationEvent::Broken,
        _ => DestinationEvent::Refused,
    }
}

/// Publishes the phase that has begun; the last phase is published together with the figures.
fn publish_phase(phase: DestinationPhase, span: &tracing::Span, control: &Control) {
    span.record("phase", tracing::field::debug(phase));
    tracing::info!("phase");
    if !phase.is_final() {
        control.publish(|progress| progress.phase = Phase::Destination(phase));
    }
}

/// Why a claim was not won.
fn lost(claim: Claim) -> Option<&'static str> {
    match claim {
        Claim::Won | Claim::Undecidable => None,
        Claim::Held => Some("another process, the source most likely, holds the guest's exclusive resources"),
        Claim::Moved => Some("someone has run a guest on its exclusive resources since the source released them"),
    }
}
