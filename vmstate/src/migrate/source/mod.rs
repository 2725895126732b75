//! The source: sends a running guest, and ends with the guest running here, or with the destination's confirmation that it runs
//! there. A blocking driver: [`SourceProtocol`] decides what to do next, and `phase.rs` has the phase diagrams.

mod departed;
mod page_channels;
mod postcopy;
mod recovery;
mod rehearsal;
mod replies;
mod rounds;
mod switch_over;
mod throttled;

use std::sync::Arc;
use std::time::Duration;

use self::replies::unexpected;
use self::throttled::Throttled;
use crate::channel::{Channel, Clock};
use crate::codec::{Limits, Outbox, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::Control;
use crate::migrate::forecast::Measured;
use crate::migrate::multifd::Senders;
use crate::migrate::pace::Pace;
use crate::migrate::phase::{Phase, SourcePhase};
use crate::migrate::protocol::{SourceAction, SourceEvent, SourceProtocol, Timing, ping};
use crate::migrate::release::check_release;
use crate::migrate::report::{DepartureReport, Downtime, Slowdown};
use crate::migrate::save::{Saved, Saver, SendPhase};
use crate::migrate::wire::{ANSWERS, Link, Timeout, is_timeout};
use crate::migrate::{Claim, Machine, Over, Peer};
use crate::ram::multifd::PageChannels;
use crate::ram::{
    DirtyLog, EngineSection, GuestRam, PageFigures, RamBlock, RamSection, RamSettings, announces_shared, shares_memory,
};
use crate::section::Sections;
use crate::stream::{Command, Element, IGNORE_SHARED, Reply, put_configuration, put_header};

/// The parts that a source works with.
#[expect(missing_debug_implementations, reason = "nothing of it can be shown")]
pub struct Outgoing<'a, 's> {
    /// The channel to the destination.
    pub channel: &'a mut dyn Channel,
    /// The clock.
    pub clock: &'a dyn Clock,
    /// The machine; its guest may run.
    pub machine: &'a mut dyn Machine,
    /// The machine's devices.
    pub sections: &'a mut Sections<'s>,
    /// The guest's memory.
    pub ram: &'a dyn GuestRam,
    /// The dirty log.
    pub log: &'a mut dyn DirtyLog,
}

/// Options of a source that are fixed for the migration. Parameters that may change meanwhile are in [`Control`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SourceOptions {
    /// Machine type, as `microvm`; the destination's must be the same.
    pub machine_type: String,
    /// The longest wait for an answer of the destination, and for a destination that reads nothing, while the guest runs. Once it
    /// is paused, [`Parameters::pause_budget`](crate::migrate::Parameters::pause_budget) bounds all waits.
    pub answer: Duration,
    /// How long to wait, after a commit that the destination did not confirm, for exclusive resources that another process still
    /// holds.
    pub claim_timeout: Duration,
    /// The part of the expected downtime that is not measured in advance, mainly the hand-over. The measurements of
    /// [`Machine::rehearse`] are added.
    pub switch_over_cost: Duration,
    /// Sends the pages instead of the main channel. For one migration.
    pub page_channels: Option<Senders>,
}

impl SourceOptions {
    /// Answers within 10 s, 5 s to claim the resources, devices within 5 ms.
    pub fn new(machine_type: impl Into<String>) -> Self {
        Self {
            machine_type: machine_type.into(),
            answer: Duration::from_secs(10),
            claim_timeout: Duration::from_secs(5),
            switch_over_cost: Duration::from_millis(5),
            page_channels: None,
        }
    }
}

/// The result of a source.
#[derive(Debug)]
#[non_exhaustive]
pub struct Departure {
    /// Where the guest runs: a [final](SourcePhase::is_final) phase.
    pub phase: SourcePhase,
    /// The error, unless the migration completed. It also says if the guest should run here again and could not be resumed.
    pub error: Option<Error>,
    /// The measurements.
    pub report: DepartureReport,
}

/// Bytes handed to the channel at once.
pub(super) const CHUNK: u64 = 1 << 20;
/// Time between two attempts to take the exclusive resources back.
const RETRY: Duration = Duration::from_millis(10);
/// How long to wait for the reason of a destination that broke the connection.
const REASON_TIMEOUT: Duration = Duration::from_millis(100);

/// The parts of a source besides guest memory.
pub(super) struct Host<'a, 's> {
    pub(super) channel: &'a mut dyn Channel,
    pub(super) clock: &'a dyn Clock,
    pub(super) machine: &'a mut dyn Machine,
    pub(super) sections: &'a mut Sections<'s>,
}

/// Guest memory, with its pages.
pub(super) struct Memory<'a> {
    pub(super) section: Box<dyn EngineSection + 'a>,
    /// The figures that `section` updates.
    pub(super) pages: Arc<PageFigures>,
    /// The memory from which the channel reads the pages.
    pub(super) ram: &'a dyn GuestRam,
    /// The most bytes of pages that are collected at once.
    pub(super) longest_chunk: u64,
}

/// Sends the guest. Returns when this side has ended.
pub fn run(outgoing: Outgoing<'_, '_>, options: &SourceOptions, control: &Control) -> Departure {
    let Outgoing { channel, clock, machine, sections, ram, log } = outgoing;
    let page_channels = PageChannels::from(options.page_channels.as_ref());
    let section = RamSection::outgoing(ram, log).with(&page_channels);
    let longest_chunk = if options.page_channels.is_some() { page_channels::PORTION } else { CHUNK };
    let memory = Memory { pages: section.figures(), section: Box::new(section), ram, longest_chunk };
    send(Host { channel, clock, machine, sections }, memory, options, control)
}

/// As for [`run`], with any section in place of guest memory.
pub(super) fn send(host: Host<'_, '_>, memory: Memory<'_>, options: &SourceOptions, control: &Control) -> Departure {
    let Host { channel, clock, machine, sections } = host;
    let Memory { section, pages, ram, longest_chunk } = memory;
    let page_channels = PageChannels::from(options.page_channels.as_ref());
    let _over = Over(page_channels.clone());
    let begun = clock.now();
    let span = tracing::info_span!("migration", side = "source", phase = ?SourcePhase::Setup);
    let _inside = span.enter();
    let ram_bytes = ram.blocks().iter().map(|block| block.len).sum();
    control.publish(|progress| {
        progress.phase = Phase::Source(SourcePhase::Setup);
        progress.ram_bytes = ram_bytes;
    });
    let migratable = sections.check_migratable().and_then(|()| check_release(sections));
    if let Err(error) = migratable {
        control.publish(|progress| progress.phase = Phase::Source(SourcePhase::Failed));
        return Departure { phase: SourcePhase::Failed, error: Some(error), report: DepartureReport::default() };
    }
    let saver = Saver::new(sections, section, clock);
    let wire =
        Link::new(channel, ram, clock, control, Strictness::Strict, Limits::default(), ANSWERS).with(&page_channels);
    let (protocol, first) = SourceProtocol::begin();
    let mut source = Source {
        protocol,
        wire,
        clock,
        machine: Throttled::new(machine),
        saver,
        pages,
        longest_chunk,
        shares_memory: shares_memory(ram),
        announces_shared: announces_shared(ram),
        peer: Peer::Vmstate,
        announced_postcopy: false,
        is_postcopy: false,
        is_gone: false,
        blocks: ram.blocks(),
        named: None,
        options,
        control,
        begun,
        reason: None,
        answered: None,
        measured: Measured::new(),
        pace: Pace::default(),
        waited: Duration::ZERO,
        unprobed: None,
        synced: begun,
        rehearsed: None,
        rests_until: None,
        paused_for_rehearsals: Duration::ZERO,
        buffer: Outbox::new(),
        saved: Vec::new(),
        report: DepartureReport::default(),
        downtime: Downtime::default(),
        mark: begun,
        expected_pause: Duration::ZERO,
        pause_budget: control.parameters().pause_budget(),
        span: span.clone(),
    };
    source.drive(first);
    source.end()
}

struct Source<'a, 's> {
    /// The span of the whole migration, with its phase.
    span: tracing::Span,
    protocol: SourceProtocol,
    wire: Link<'a>,
    clock: &'a dyn Clock,
    machine: Throttled<'a>,
    saver: Saver<'a, 's>,
    /// Figures of guest memory, for reports.
    pages: Arc<PageFigures>,
    longest_chunk: u64,
    /// True if some of guest memory is shared and not sent.
    shares_memory: bool,
    /// True if the stream says that memory is shared.
    announces_shared: bool,
    peer: Peer,
    /// True if post-copy was announced to the destination.
    announced_postcopy: bool,
    /// True if the guest is handed over in post-copy.
    is_postcopy: bool,
    /// In post-copy: true if the destination runs the guest.
    is_gone: bool,
    blocks: &'a [RamBlock],
    /// The block of the destination's last request for pages.
    named: Option<usize>,
    options: &'a SourceOptions,
    control: &'a Control,
    begun: Duration,
    /// The first error.
    reason: Option<Error>,
    /// The destination's last answer to a ping.
    answered: Option<Reply>,
    measured: Measured,
    pace: Pace,
    /// Time spent waiting for the bandwidth limit since the last chunk.
    waited: Duration,
    /// When page channels were given pages after which no probe was sent.
    unprobed: Option<Duration>,
    /// When the dirty logs were last read.
    synced: Duration,
    /// When the pause was last rehearsed after a round.
    rehearsed: Option<Duration>,
    /// A switch-over was postponed because the guest had just been paused for a rehearsal: the guest runs until this moment.
    rests_until: Option<Duration>,
    /// How long the guest was paused for rehearsals.
    paused_for_rehearsals: Duration,
    buffer: Outbox,
    /// The sections that were sent whole, for the self-description.
    saved: Vec<Saved>,
    report: DepartureReport,
    downtime: Downtime,
    /// When the last part of the downtime ended.
    mark: Duration,
    /// The expected pause when it was decided upon.
    expected_pause: Duration,
    /// The pause budget when the guest was paused.
    pause_budget: Duration,
}

impl Source<'_, '_> {
    /// Executes one action after another, until there is none.
    fn drive(&mut self, first: SourceAction) {
        let mut action = first;
        let mut phase = self.protocol.phase();
        while action != SourceAction::End {
            let event = self.carry_out(action);
            if matches!(phase, SourcePhase::Setup | SourcePhase::Rounds) {
                self.pause_budget = self.control.parameters().pause_budget_for(self.expected_pause);
            }
            let timing = Timing {
                answer: self.options.answer,
                pause_budget: self.pause_budget,
                claim_timeout: self.options.claim_timeout,
                retry: RETRY,
                settle: Duration::ZERO,
            };
            action = self.protocol.handle(event, self.clock.now(), &timing);
            let now = self.protocol.phase();
            if now != phase {
                phase = now;
                self.span.record("phase", tracing::field::debug(phase));
                tracing::info!("phase");
                self.control.publish(|progress| progress.phase = Phase::Source(phase));
            }
        }
    }

    fn carry_out(&mut self, action: SourceAction) -> SourceEvent {
        match action {
            SourceAction::SendHandshake => self.send_handshake().map(|()| SourceEvent::Done),
            SourceAction::Round => self.round_and_mode().map(SourceEvent::RoundOver),
            SourceAction::Pause => self.pause().map(|()| SourceEvent::Done),
            SourceAction::SendRest(until) => self.send_rest(until).map(|()| SourceEvent::Done),
            SourceAction::SendPackage(until) => self.send_package(until).map(|()| SourceEvent::Done),
            SourceAction::SendRun(until) => self.send_run(until).map(|()| SourceEvent::Done),
            SourceAction::Serve => self.serve().map(|()| SourceEvent::Done),
            SourceAction::Reconnect => Ok(self.reconnect()),
            SourceAction::Recover(until) => self.recover(until).map(|()| SourceEvent::Done),
            SourceAction::Await(until) => match self.await_reply(Timeout::Until(until)) {
                Ok(reply) => {
                    self.answered = Some(reply);
                    Ok(SourceEvent::Replied(reply))
                }
                Err(broken) => Err(self.refusal_or(broken)),
            },
            SourceAction::RefuseCancels => self.refuse_cancels().map(|()| SourceEvent::Done),
            SourceAction::Release => self.machine.release().map(|()| SourceEvent::Done),
            // A destination that has taken over may close the connection before everything is sent: its final answer must still
            // be read.
            SourceAction::SendEnd(until) => {
                self.wire.send(&mut self.buffer, Timeout::Until(until)).map(|()| SourceEvent::Done)
            }
            // A QEMU does not advance the fence, so an unchanged fence does not prove that the guest has not run there.
            SourceAction::Claim if self.peer == Peer::Qemu => Ok(SourceEvent::Claimed(Claim::Undecidable)),
            SourceAction::Claim => self.machine.claim().map(SourceEvent::Claimed),
            SourceAction::Sleep(until) => {
                self.clock.sleep(until.saturating_sub(self.clock.now()));
                Ok(SourceEvent::Deadline)
            }
            SourceAction::Advance => self.machine.advance().map(|()| SourceEvent::Done),
            SourceAction::Resume => self.machine.resume().map(|()| SourceEvent::Done),
            SourceAction::End => Ok(SourceEvent::Done),
        }
        .unwrap_or_else(|error| self.record_failure(action, error))
    }

    /// Keeps the first error, and returns the kind of failure of `action` as an event for the protocol.
    fn record_failure(&mut self, action: SourceAction, error: Error) -> SourceEvent {
        let event = match error.kind() {
            ErrorKind::Cancelled if self.control.is_cancelled() => SourceEvent::Cancelled,
            // A disk's I/O error says nothing about the wire.
            _ if action.is_the_machines() => SourceEvent::Refused,
            ErrorKind::Io if is_timeout(&error) => SourceEvent::Deadline,
            ErrorKind::Io | ErrorKind::Malformed | ErrorKind::Incompatible => SourceEvent::Broken,
            _ => SourceEvent::Refused,
        };
        self.reason = Some(match (self.reason.take(), action) {
            (Some(first), SourceAction::Resume | SourceAction::Advance) => {
                let message = format!("{first}; and the guest could not be resumed here");
                Error::new(first.kind(), message).with_source(error)
            }
            (Some(first), _) => first,
            (None, _) if event == SourceEvent::Deadline && self.protocol.phase() == SourcePhase::SwitchOver => {
                over_budget(self.pause_budget, error)
            }
            (None, _) => error,
        });
        event
    }

    fn send_handshake(&mut self) -> Result<()> {
        let out = self.buffer.bytes_mut();
        put_header(out);
        put_configuration(out, &self.options.machine_type, self.announces_shared.then_some(IGNORE_SHARED));
        Element::Command(Command::OpenReturnPath).write(out);
        self.meet()?;
        self.announce_postcopy()?;
        let out = &mut self.buffer;
        self.saved.extend(self.saver.put_devices(out.bytes_mut(), (self.peer, SendPhase::Early))?);
        self.saver.start(out, self.peer)?;
        Element::Command(Command::Ping(ping::HANDSHAKE)).write(out.bytes_mut());
        // The destination receives the first section only after that: if a page channel breaks before, it waits for the next
        // source.
        self.await_synced(self.running())?;
        self.flush(self.running())
    }

    /// Identifies the destination before anything is sent that only some accept. A release whose schema is known is one of this
    /// library, and may be older than this ping.
    fn meet(&mut self) -> Result<()> {
        Element::Command(Command::Ping(ping::IDENTIFY)).write(self.buffer.bytes_mut());
        self.flush(self.running())?;
        let until = self.clock.now().saturating_add(self.options.answer);
        self.peer = match self.await_reply(Timeout::Until(until))? {
            Reply::Pong(ping::VMSTATE) => Peer::Vmstate,
            Reply::Pong(ping::IDENTIFY) if self.saver.has_release() => Peer::Vmstate,
            Reply::Pong(ping::IDENTIFY) => Peer::Qemu,
            other => return Err(unexpected(other)),
        };
        tracing::debug!(peer = ?self.peer, "met");
        self.machine.peer_identified(self.peer)
    }

    /// Publishes the last figures, cleans up, and returns the result.
    fn end(mut self) -> Departure {
        let phase = self.protocol.phase();
        if phase == SourcePhase::Completed && !self.is_postcopy {
            self.downtime.commit = self.lap();
        }
        self.throttle(0);
        self.publish();
        self.control.memory_sent(self.pages.heat());
        let mut sections = self.saver.saved_in_pause(&self.saved);
        self.report.total = self.clock.now().saturating_sub(self.begun);
        self.report.pages = self.pages.moved();
        let completed = phase == SourcePhase::Completed;
        self.report.downtime = completed.then_some(self.downtime);
        self.report.slowdown = self.slowdown();
        self.control.publish(|progress| {
            progress.elapsed = self.report.total;
            progress.downtime = self.report.downtime;
        });
        if completed {
            if !self.is_postcopy {
                self.machine.departed();
            }
            self.send_description();
            self.receive_times(&mut sections);
        }
        self.control.sections_went(sections);
        self.report.bytes = self.wire.sent();
        let error = self.reason.or_else(|| self.answered.map(unexpected)).filter(|_| !completed);
        Departure { phase, error, report: self.report }
    }

    /// Throttles the guest by this percentage, if the machine can; 0 ends the throttle.
    fn throttle(&mut self, percent: u8) {
        self.machine.set(percent);
        let throttle = self.machine.percent().unwrap_or_default();
        self.control.publish(|progress| progress.throttle_percent = throttle);
    }

    fn slowdown(&self) -> Slowdown {
        Slowdown {
            throttled: self.machine.throttled(),
            rehearsed: self.paused_for_rehearsals,
            highest_throttle_percent: self.machine.highest(),
        }
    }

    /// How long a destination may read nothing while the guest runs.
    fn running(&self) -> Timeout {
        Timeout::Silence(self.options.answer)
    }

    /// Sends and empties the buffer.
    fn flush(&mut self, timeout: Timeout) -> Result<()> {
        let sent = self.wire.send(&mut self.buffer, timeout);
        self.buffer.clear();
        sent.map_err(|broken| self.refusal_or(broken))
    }

    /// Makes the pages pending that were written so far. In the last stage the guest is paused.
    fn sync(&mut self, is_last_stage: bool) -> Result<()> {
        let parameters = self.control.parameters();
        let xbzrle_cache = parameters.xbzrle.then_some(parameters.xbzrle_cache_size);
        self.pages.set_settings(RamSettings { xbzrle_cache, is_last_stage, is_postcopy: self.is_postcopy });
        self.saver.sync()
    }

    fn publish(&mut self) {
        let (sent, pending) = (self.pages.moved(), self.pages.pending_bytes());
        let pending_of_sections = self.saver.pending_registered();
        let (xbzrle, slowdown, bytes) = (self.pages.xbzrle(), self.slowdown(), self.wire.sent());
        let elapsed = self.clock.now().saturating_sub(self.begun);
        let bytes_per_second = round_down(self.measured.wire.bytes_per_second().unwrap_or_default());
        self.control.publish(|progress| {
            (progress.elapsed, progress.setup) = (elapsed, self.report.setup);
            (progress.bytes, progress.remaining_bytes) = (bytes, pending);
            progress.remaining_section_bytes = pending_of_sections;
            (progress.normal_pages, progress.zero_pages) = (sent.normal, sent.zero);
            (progress.xbzrle, progress.slowdown) = (xbzrle, slowdown);
            progress.bytes_per_second = bytes_per_second;
        });
    }
}

fn over_budget(budget: Duration, error: Error) -> Error {
    let message = format!(
        "{}; the guest is paused for {budget:.1?} at most and so runs on here; a higher pause budget or downtime limit \
         would help",
        error.message()
    );
    Error::new(ErrorKind::Io, message).with_source(error)
}

/// Rounds down to an integer; a value out of range becomes the nearest one in range.
#[expect(clippy::cast_possible_truncation, reason = "`as` saturates here, which is what is wanted")]
fn round_down(number: f64) -> u64 {
    number as u64
}
