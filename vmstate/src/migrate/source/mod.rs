//! The source: sends a running guest, and is left with either the guest running here or the destination's word that it
//! runs there. The phases are drawn in `phase.rs`.

mod rounds;
mod switch_over;

use std::time::Duration;

use crate::channel::{Channel, Clock};
use crate::codec::{Limits, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::Control;
use crate::migrate::forecast::Measured;
use crate::migrate::phase::{Phase, SourcePhase};
use crate::migrate::report::{Downtime, Report};
use crate::migrate::save::{self, Turn};
use crate::migrate::wire::{ANSWERS, Patience, Wire};
use crate::migrate::{Claim, Machine};
use crate::ram::{DirtyLog, GuestRam, PAGE_SIZE, RamSender};
use crate::section::Sections;
use crate::stream::{Command, Element, Reply, SelfDescription, put_configuration, put_header};

/// What a source works with.
#[expect(missing_debug_implementations, reason = "nothing of it can be shown")]
pub struct Outgoing<'a, 's> {
    /// To the destination.
    pub channel: &'a mut dyn Channel,
    /// Time.
    pub clock: &'a dyn Clock,
    /// The machine; its guest may run.
    pub machine: &'a mut dyn Machine,
    /// Its devices.
    pub sections: &'a mut Sections<'s>,
    /// Its memory.
    pub ram: &'a dyn GuestRam,
    /// Who tells which pages were written.
    pub log: &'a mut dyn DirtyLog,
}

/// How a source goes about it. What may change on the way is in [`Control`].
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// Machine type, as `microvm`; the destination's must be the same.
    pub machine_type: String,
    /// The longest wait for an answer of the destination. The guest is paused during the last two.
    pub answer: Duration,
    /// Expected time to pause the guest and to save and load its devices; part of the expected downtime.
    pub switch_over_cost: Duration,
    /// Gives up after so many rounds.
    pub max_rounds: Option<u32>,
    /// Gives up after so much time.
    pub max_total: Option<Duration>,
}

impl SourceOptions {
    /// Answers within 10 s, devices within 5 ms, any number of rounds.
    pub fn new(machine_type: impl Into<String>) -> Self {
        Self {
            machine_type: machine_type.into(),
            answer: Duration::from_secs(10),
            switch_over_cost: Duration::from_millis(5),
            max_rounds: None,
            max_total: None,
        }
    }
}

/// How a source ended.
#[derive(Debug)]
pub struct Departure {
    /// Where the guest is: a [final](SourcePhase::is_final) phase.
    pub phase: SourcePhase,
    /// Why, unless completed. If the guest should run here again and could not be resumed, it says so.
    pub error: Option<Error>,
    /// What it took.
    pub report: Report,
}

/// The pings: of the introduction, as QEMU numbers it; whether all is loaded; whether a round has arrived. QEMU's
/// post-copy uses 2 to 4.
const HELLO: u32 = 1;
const READY: u32 = 5;
const ROUND: u32 = 6;
/// Bytes handed to the channel at once.
const CHUNK: usize = 1 << 20;
/// Sends the guest. Returns when this side is over.
pub fn run(outgoing: Outgoing<'_, '_>, options: &SourceOptions, control: &Control) -> Departure {
    let Outgoing { channel, clock, machine, sections, ram, log } = outgoing;
    let begun = clock.now();
    control.publish(|progress| {
        progress.phase = Phase::Source(SourcePhase::Setup);
        progress.ram_bytes = ram.blocks().iter().map(|block| block.len).sum();
    });
    let ram = match sections.check_migratable().and_then(|()| RamSender::start(ram, log)) {
        Ok(ram) => ram,
        Err(error) => {
            control.publish(|progress| progress.phase = Phase::Source(SourcePhase::Failed));
            return Departure { phase: SourcePhase::Failed, error: Some(error), report: Report::default() };
        }
    };
    let wire = Wire::new(channel, clock, control, Strictness::Strict, Limits::default(), ANSWERS);
    let mut source = Source {
        wire,
        clock,
        machine,
        sections,
        ram,
        options,
        control,
        begun,
        phase: SourcePhase::Setup,
        paused: false,
        measured: Measured::new(),
        synced: begun,
        buffer: Vec::new(),
        described: save::describe(&options.machine_type),
        report: Report::default(),
        downtime: None,
        mark: begun,
    };
    let outcome = source.hand_over();
    source.end(outcome)
}

struct Source<'a, 's> {
    wire: Wire<'a>,
    clock: &'a dyn Clock,
    machine: &'a mut dyn Machine,
    sections: &'a mut Sections<'s>,
    ram: RamSender<'a>,
    options: &'a SourceOptions,
    control: &'a Control,
    begun: Duration,
    phase: SourcePhase,
    paused: bool,
    measured: Measured,
    /// When the log was last read.
    synced: Duration,
    buffer: Vec<u8>,
    /// What was sent so far.
    described: SelfDescription,
    report: Report,
    downtime: Option<Downtime>,
    /// When the last lap of the downtime ended.
    mark: Duration,
}

impl Source<'_, '_> {
    fn hand_over(&mut self) -> Result<()> {
        self.introduce()?;
        self.rounds()?;
        self.switch_over()?;
        self.commit()
    }

    fn introduce(&mut self) -> Result<()> {
        let out = &mut self.buffer;
        put_header(out);
        put_configuration(out, &self.options.machine_type);
        Element::Command(Command::OpenReturnPath).write(out);
        Element::Command(Command::Ping(HELLO)).write(out);
        save::put_devices(out, self.sections, Turn::Early, &mut self.described)?;
        save::put_ram_start(out, &self.ram);
        self.ask(HELLO)?;
        self.report.setup = self.clock.now().saturating_sub(self.begun);
        self.enter(SourcePhase::Rounds);
        Ok(())
    }

    /// Makes sure that one side has the guest, and ends.
    fn end(mut self, outcome: Result<()>) -> Departure {
        let (phase, error) = match (outcome, self.phase) {
            (Ok(()), _) => (SourcePhase::Completed, None),
            (Err(error), SourcePhase::Commit) => self.reclaim(error),
            (Err(error), _) => self.take_back(error),
        };
        self.enter(phase);
        self.publish();
        self.report.total = self.clock.now().saturating_sub(self.begun);
        self.report.bytes = self.wire.sent();
        self.report.pages = self.ram.sent();
        if phase == SourcePhase::Completed {
            self.report.downtime = self.downtime;
        }
        self.control.publish(|progress| {
            progress.elapsed = self.report.total;
            progress.downtime = self.report.downtime;
        });
        Departure { phase, error, report: self.report }
    }

    /// The destination was told to take over, and did not say that it has.
    fn reclaim(&mut self, error: Error) -> (SourcePhase, Option<Error>) {
        match self.machine.claim() {
            Ok(Claim::Won) => self.take_back(error),
            Ok(Claim::Held | Claim::Moved) => (SourcePhase::Unacknowledged, Some(error)),
            Ok(Claim::Undecidable) => (SourcePhase::Undecided, Some(error)),
            Err(refused) => {
                let message = format!("{}; and whether the destination runs could not be found out", error.message());
                (SourcePhase::Undecided, Some(Error::new(error.kind(), message).with_source(refused)))
            }
        }
    }

    fn take_back(&mut self, error: Error) -> (SourcePhase, Option<Error>) {
        let cancelled = self.control.is_cancelled() && error.kind() == ErrorKind::Cancelled;
        let phase = if cancelled { SourcePhase::Cancelled } else { SourcePhase::Failed };
        if !self.paused {
            return (phase, Some(error));
        }
        match self.machine.resume() {
            Ok(()) => (phase, Some(error)),
            Err(refused) => {
                let message = format!("{error}; and the guest could not be resumed here");
                (phase, Some(Error::new(error.kind(), message).with_source(refused)))
            }
        }
    }

    /// Sends the buffer, and empties it.
    fn flush(&mut self) -> Result<()> {
        let sent = self.wire.send(&self.buffer);
        self.buffer.clear();
        // A destination that failed says why before it closes.
        sent.map_err(|broken| match self.await_reply() {
            Err(refused) if refused.kind() == ErrorKind::Peer => refused,
            _ => broken,
        })
    }

    /// Sends the buffer, which holds the ping `number`, and waits for the answer.
    fn ask(&mut self, number: u32) -> Result<()> {
        self.flush()?;
        self.await_pong(number)
    }

    fn await_pong(&mut self, expected: u32) -> Result<()> {
        match self.await_reply()? {
            Reply::Pong(value) if value == expected => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    fn await_reply(&mut self) -> Result<Reply> {
        let deadline = self.clock.now().saturating_add(self.options.answer);
        self.wire.decode(Patience::Until(deadline), Reply::read).and_then(refuse)
    }

    fn enter(&mut self, phase: SourcePhase) {
        debug_assert!(self.phase.may_become(phase), "{:?} to {phase:?}", self.phase);
        tracing::debug!(?phase, "source");
        self.phase = phase;
        self.control.publish(|progress| progress.phase = Phase::Source(phase));
    }

    fn publish(&self) {
        let sent = self.ram.sent();
        self.control.publish(|progress| {
            progress.elapsed = self.clock.now().saturating_sub(self.begun);
            progress.setup = self.report.setup;
            progress.bytes = self.wire.sent();
            progress.remaining_bytes = self.ram.pending_pages() * PAGE_SIZE;
            (progress.normal_pages, progress.zero_pages) = (sent.normal, sent.zero);
            progress.bytes_per_second = whole(self.measured.wire.bytes_per_second().unwrap_or_default());
        });
    }
}

fn refuse(reply: Reply) -> Result<Reply> {
    match reply {
        Reply::Shut(status) if status != 0 => {
            let message = format!("the destination refused the guest (status {status}): its own log says why");
            Err(Error::new(ErrorKind::Peer, message))
        }
        other => Ok(other),
    }
}

fn unexpected(reply: Reply) -> Error {
    Error::new(ErrorKind::Malformed, format!("the destination answered {reply:?}, which nobody asked for"))
}

/// To the next lower integer; what does not fit becomes the nearest that does.
#[expect(clippy::cast_possible_truncation, reason = "`as` saturates here, which is what is wanted")]
fn whole(number: f64) -> u64 {
    number as u64
}
