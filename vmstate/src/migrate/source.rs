//! The source: sends a running guest, and is left with either the guest running here or the destination's word that it
//! runs there. The phases are drawn in `phase.rs`.

use std::time::Duration;

use super::control::Control;
use super::phase::{Phase, SourcePhase};
use super::policy::{self, Figures, Verdict};
use super::report::{Downtime, Report, Round};
use super::wire::{ANSWERS, Patience, Wire};
use super::{Machine, Reclaim, save};
use crate::channel::{Channel, Clock};
use crate::codec::{Limits, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::{DirtyLog, GuestRam, PAGE_SIZE, PageCount, RamSender};
use crate::section::Sections;
use crate::stream::{Command, Element, Reply, put_configuration, put_header};

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
/// A limited source sends so often, in chunks of the size that follows.
const PACE: Duration = Duration::from_millis(100);
/// Bytes that say something about the speed of the wire; fewer say more about its round trip.
const TELLING: u64 = 4 << 20;

/// Sends the guest. Returns when this side is over.
pub fn run(outgoing: Outgoing<'_, '_>, options: &SourceOptions, control: &Control) -> Departure {
    let Outgoing { channel, clock, machine, sections, ram, log } = outgoing;
    let begun = clock.now();
    control.publish(|progress| {
        progress.phase = Phase::Source(SourcePhase::Setup);
        progress.ram_bytes = ram.blocks().iter().map(|block| block.len).sum();
    });
    let ram = match RamSender::start(ram, log) {
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
        speed: None,
        buffer: Vec::new(),
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
    /// Bytes a second at full speed, once known.
    speed: Option<f64>,
    buffer: Vec<u8>,
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
        save::put_ram_start(out, &self.ram);
        self.report.round_trip = Duration::MAX;
        self.ask(HELLO)?;
        self.report.setup = self.clock.now().saturating_sub(self.begun);
        self.enter(SourcePhase::Rounds);
        Ok(())
    }

    /// Sends all pages, then those written meanwhile, until what is left fits into the downtime.
    fn rounds(&mut self) -> Result<()> {
        // A log that clears late reports everything once, so that there is something to clear.
        self.ram.sync()?;
        loop {
            let mut round = self.round()?;
            round.dirtied = self.ram.sync()?;
            let bytes_per_page = self.bytes_per_page();
            let dirtied = round.dirtied as f64 / round.duration.as_secs_f64().max(f64::EPSILON);
            self.report.rounds.push(round);
            let figures = Figures {
                pending_bytes: whole(self.ram.pending_pages() as f64 * bytes_per_page),
                dirty_bytes_per_second: dirtied * bytes_per_page,
                wire_bytes_per_second: self.speed.unwrap_or(f64::INFINITY),
                bandwidth_limit: self.control.bandwidth_limit(),
                round_trip: self.report.round_trip,
                switch_over_cost: self.options.switch_over_cost,
                elapsed: self.clock.now().saturating_sub(self.begun),
                rounds: u32::try_from(self.report.rounds.len()).unwrap_or(u32::MAX),
            };
            let limits = policy::Limits {
                downtime: self.control.downtime_limit(),
                rounds: self.options.max_rounds,
                total: self.options.max_total,
            };
            let (verdict, forecast) = policy::decide(&figures, &limits);
            tracing::debug!(?figures, ?verdict, ?forecast, "round over");
            self.publish();
            self.control.publish(|progress| {
                progress.dirty_pages_per_second = whole(dirtied);
                progress.expected_downtime = Some(forecast.downtime);
                progress.expected_total = forecast.total;
            });
            match verdict {
                Verdict::Iterate => {}
                Verdict::SwitchOver => return Ok(()),
                Verdict::GiveUp(reason) => return Err(Error::new(ErrorKind::Cancelled, format!("gave up: {reason}"))),
            }
        }
    }

    fn round(&mut self) -> Result<Round> {
        let (begun, bytes, pages) = (self.clock.now(), self.wire.sent(), self.ram.sent());
        self.control.publish(|progress| progress.rounds += 1);
        let mut slept = Duration::ZERO;
        loop {
            let chunk = match self.control.bandwidth_limit() {
                Some(limit) => usize::try_from(limit / 10).unwrap_or(CHUNK).clamp(1, CHUNK),
                None => CHUNK,
            };
            let sending = self.clock.now();
            let over = save::put_ram_part(&mut self.buffer, &mut self.ram, chunk)?;
            let bytes = self.buffer.len() as u64;
            self.flush()?;
            self.heed_replies()?;
            slept += self.pace(bytes, sending)?;
            self.publish();
            if over {
                break;
            }
        }
        // What was sent may still be in a socket's buffer: only the answer says that it went through the wire.
        Element::Command(Command::Ping(ROUND)).write(&mut self.buffer);
        self.ask(ROUND)?;
        let duration = self.clock.now().saturating_sub(begun);
        let bytes = self.wire.sent() - bytes;
        let busy = duration.saturating_sub(slept).as_secs_f64();
        if busy > 0.0 && (bytes >= TELLING || self.speed.is_none()) {
            self.speed = Some(bytes as f64 / busy);
        }
        let sent = self.ram.sent();
        let pages = PageCount { normal: sent.normal - pages.normal, zero: sent.zero - pages.zero };
        Ok(Round { duration, bytes, pages, dirtied: 0 })
    }

    /// Sleeps as long as `bytes`, begun to be sent at `begun`, last at the bandwidth limit. Returns how long it slept.
    fn pace(&mut self, bytes: u64, begun: Duration) -> Result<Duration> {
        let mut slept = Duration::ZERO;
        while let Some(limit) = self.control.bandwidth_limit() {
            let due = Duration::try_from_secs_f64(bytes as f64 / limit as f64).unwrap_or(Duration::MAX);
            let left = due.saturating_sub(self.clock.now().saturating_sub(begun));
            if left.is_zero() {
                break;
            }
            let nap = left.min(PACE);
            self.clock.sleep(nap);
            slept += nap;
            self.control.check()?;
        }
        Ok(slept)
    }

    /// Pauses the guest, sends the rest, and waits until the destination has all of it.
    fn switch_over(&mut self) -> Result<()> {
        self.enter(SourcePhase::SwitchOver);
        self.control.check()?;
        self.mark = self.clock.now();
        self.machine.pause()?;
        self.paused = true;
        let mut downtime = Downtime { pause: self.lap(), ..Downtime::default() };
        self.ram.sync()?;
        downtime.sync = self.lap();
        Element::Command(Command::SwitchoverStart).write(&mut self.buffer);
        while !save::put_ram_part(&mut self.buffer, &mut self.ram, CHUNK)? {
            self.flush()?;
        }
        save::put_ram_end(&mut self.buffer, &mut self.ram)?;
        self.flush()?;
        downtime.pages = self.lap();
        let described = save::put_devices(&mut self.buffer, self.sections, &self.options.machine_type)?;
        Element::Command(Command::Ping(READY)).write(&mut self.buffer);
        self.flush()?;
        downtime.devices = self.lap();
        // Written now, while the destination loads; sent with the end of the stream.
        Element::Eof.write(&mut self.buffer);
        described.write(&mut self.buffer);
        self.await_pong(READY)?;
        downtime.confirm = self.lap();
        self.downtime = Some(downtime);
        Ok(())
    }

    /// Gives the guest away. The buffer holds the end of the stream.
    fn commit(&mut self) -> Result<()> {
        self.control.commit()?;
        self.machine.release()?;
        self.enter(SourcePhase::Commit);
        let sent = self.wire.send(&self.buffer);
        // Even if not all of it could be sent: the end of the stream is its first byte.
        match self.await_reply() {
            Ok(Reply::Shut(0)) => {}
            Ok(reply) => return Err(unexpected(reply)),
            Err(error) => return Err(sent.err().unwrap_or(error)),
        }
        let commit = self.lap();
        if let Some(downtime) = &mut self.downtime {
            downtime.commit = commit;
        }
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
            progress.downtime = self.report.downtime.map(|downtime| downtime.total());
        });
        Departure { phase, error, report: self.report }
    }

    /// The destination was told to take over, and did not say that it has.
    fn reclaim(&mut self, error: Error) -> (SourcePhase, Option<Error>) {
        match self.machine.claim() {
            Ok(Reclaim::Won) => self.take_back(error),
            Ok(Reclaim::Lost) => (SourcePhase::Unacknowledged, Some(error)),
            Ok(Reclaim::Undecidable) => (SourcePhase::Undecided, Some(error)),
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
        let asked = self.clock.now();
        self.flush()?;
        self.await_pong(number)?;
        self.report.round_trip = self.report.round_trip.min(self.clock.now().saturating_sub(asked));
        Ok(())
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

    /// Between two chunks nobody is asked anything, so all that can come is a refusal.
    fn heed_replies(&mut self) -> Result<()> {
        self.control.check()?;
        match self.wire.poll(Reply::read)? {
            Some(reply) => Err(refuse(reply).map_or_else(|refused| refused, unexpected)),
            None => Ok(()),
        }
    }

    /// What a pending page will cost on the wire, by the pages sent so far.
    fn bytes_per_page(&self) -> f64 {
        let sent = self.ram.sent();
        let pages = sent.normal + sent.zero;
        if pages == 0 { PAGE_SIZE as f64 } else { self.wire.sent() as f64 / pages as f64 }
    }

    fn lap(&mut self) -> Duration {
        let now = self.clock.now();
        now.saturating_sub(std::mem::replace(&mut self.mark, now))
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
            progress.bytes_per_second = whole(self.speed.unwrap_or_default());
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
