//! The rounds: pages are sent while the guest runs, until the rest fits into the downtime.

use std::time::Duration;

use super::{REASON_TIMEOUT, Source, round_down, unexpected};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::forecast::{Chunk, Measures, MigrationState};
use crate::migrate::multifd::Senders;
use crate::migrate::pace;
use crate::migrate::parameters::Parameters;
use crate::migrate::policy::{self, Figures, RoundDecision};
use crate::migrate::protocol::ping;
use crate::migrate::report::Round;
use crate::migrate::save::Which;
use crate::migrate::wire::Timeout;
use crate::ram::{NORMAL_RECORD, PageCount};
use crate::stream::{Command, Element, Reply};

/// The fewest chunks a second, for a source with a limit or a slow wire: a change of the limit takes effect this often.
const CHUNKS_PER_SECOND: u32 = 10;
/// Size of the chunks before the first answer for pages: a tenth of a second or less, on a wire with at least 640 kB a second.
const FIRST_CHUNK: u64 = 64 << 10;
/// How often a source whose channel accepts nothing checks for answers: a fiftieth of the time over which the speed of the wire
/// is measured.
const LISTEN: Duration = Duration::from_millis(5);
impl Source<'_, '_> {
    /// Sends the pages that were dirty when the round began; true if the rest fits into the downtime.
    ///
    /// # Errors
    /// Also if the policy gives up.
    pub(super) fn round_and_verdict(&mut self) -> Result<bool> {
        if self.report.rounds.is_empty() {
            self.report.setup = self.clock.now().saturating_sub(self.begun);
            // The destination is awake, and nothing else is on the wire: these answers take exactly a round trip. They belong to
            // the handshake, which has no bandwidth limit.
            while self.measured.wire.wants_lone_probe() {
                self.probe(self.clock.now(), PageCount::default(), Measures::Nothing)?;
                self.await_replies()?;
            }
            self.pace.lift(self.wire.sent(), self.clock.now());
            self.rehearse(Self::rounds_begin)?;
        }
        let put_off = self.rests_until.take();
        if let Some(moment) = put_off {
            self.read_replies_until(moment)?;
        }
        let Some(round) = self.round()? else { return Ok(true) };
        // Both before the log is read, so that the guest's writes meanwhile are among the pending pages.
        let control = self.control;
        let takes = self.machine.prepare(&|| !control.is_cancelled())?;
        self.measured.prepared(takes);
        let rests_until = if put_off.is_none() && self.is_rehearsal_due() {
            let rests_until = self.rehearse(|source| source.round_over(round))?;
            self.rehearsed = Some(self.clock.now());
            rests_until
        } else {
            self.round_over(round)?;
            None
        };
        self.publish_forecast();
        let parameters = self.control.parameters();
        match policy::decide(&self.figures(), &parameters).0 {
            // The guest was just paused. Another pause now would be felt as one long pause: it runs for another round.
            RoundDecision::SwitchOver if rests_until.is_some() && self.may_go_on(&parameters) => {
                self.rests_until = rests_until;
                self.follow(RoundDecision::Iterate)
            }
            decision => self.follow(decision),
        }
    }

    /// Executes the policy's decision; true if that is to switch over.
    fn follow(&mut self, decision: RoundDecision) -> Result<bool> {
        tracing::debug!(?decision, "policy");
        match decision {
            RoundDecision::Iterate => self.machine.repeat(),
            RoundDecision::ThrottleMore(percent) | RoundDecision::ThrottleLess(percent) => self.throttle(percent),
            RoundDecision::SwitchOver => return Ok(true),
            RoundDecision::Postcopy(reason) if self.announced_postcopy => {
                tracing::info!(%reason, "switching to post-copy");
                self.control.start_postcopy();
                return Ok(true);
            }
            RoundDecision::GiveUp(reason) | RoundDecision::Postcopy(reason) => {
                return Err(Error::new(ErrorKind::Cancelled, format!("gave up: {reason}")));
            }
        }
        Ok(false)
    }

    /// True if the deadline has passed and requires to switch over now, or a switch to post-copy was requested.
    pub(super) fn is_overdue(&mut self) -> Result<bool> {
        if self.wants_postcopy() {
            return Ok(true);
        }
        match policy::overdue(&self.figures(), &self.control.parameters()) {
            None | Some(RoundDecision::Iterate) => Ok(false),
            Some(decision) => self.follow(decision),
        }
    }

    /// True if another round is within the limits that the user has set.
    fn may_go_on(&self, parameters: &Parameters) -> bool {
        let rounds = u32::try_from(self.report.rounds.len()).unwrap_or(u32::MAX);
        let elapsed = self.clock.now().saturating_sub(self.begun);
        parameters.max_rounds.is_none_or(|most| rounds < most) && parameters.deadline.is_none_or(|most| elapsed < most)
    }

    fn rounds_begin(&mut self) -> Result<()> {
        // A log that clears late reports everything once, so that there is something to clear.
        self.sync(false)?;
        self.synced = self.clock.now();
        Ok(())
    }

    /// Reads the logs, and records the guest's writes since they were last read.
    fn round_over(&mut self, mut round: Round) -> Result<()> {
        let (reading, dirtied) = (self.clock.now(), self.pages.dirtied());
        self.sync(false)?;
        round.dirtied = self.pages.dirtied() - dirtied;
        let read = self.clock.now();
        let lasted = read.saturating_sub(std::mem::replace(&mut self.synced, read));
        let pending = self.saver.pending();
        self.measured.logs_read(lasted, read.saturating_sub(reading), pending);
        self.measured.round_over(pending, round.bytes, self.machine.percent().unwrap_or_default());
        self.report.rounds.push(round);
        self.control.round_over(round);
        self.control.memory_sent(self.pages.heat());
        tracing::info!(
            round = self.report.rounds.len(),
            bytes = round.bytes,
            dirtied_pages = round.dirtied,
            seconds = round.duration.as_secs_f64(),
            "round over"
        );
        let dirty_pages_per_second = round_down(round.dirtied as f64 / lasted.as_secs_f64());
        self.control.publish(|progress| progress.dirty_pages_per_second = dirty_pages_per_second);
        Ok(())
    }

    /// Returns `None` if the deadline requires to switch over at once.
    fn round(&mut self) -> Result<Option<Round>> {
        let (begun, bytes, pages) = (self.clock.now(), self.wire.sent(), self.pages.moved());
        self.control.publish(|progress| progress.rounds += 1);
        let _round = tracing::info_span!("round", round = self.report.rounds.len() + 1).entered();
        loop {
            self.await_turn()?;
            let over = self.send_chunk(self.chunk(), Measures::Rounds)?;
            self.publish_forecast();
            if self.is_overdue()? {
                // The contents of a socket's buffer are transferred while the guest still runs; and without an answer, the length
                // of the pause is unknown. The pages dirtied in the round are pending from now on: they determine how long the
                // pause may take.
                self.await_sent(0, self.running())?;
                self.await_replies()?;
                self.sync(false)?;
                self.synced = self.clock.now();
                self.publish_forecast();
                return Ok(None);
            }
            if over {
                break;
            }
        }
        // Sent data may still be in a socket's buffer: only the answers show that it was transferred.
        self.await_sent(0, self.running())?;
        self.await_replies()?;
        let duration = self.clock.now().saturating_sub(begun);
        let bytes = self.wire.sent() - bytes;
        Ok(Some(Round { duration, bytes, pages: self.pages.moved().since(pages), dirtied: 0 }))
    }

    /// Size of the next chunk, such that there is a probe, a check of the limits and a forecast some ten times a second.
    fn chunk(&self) -> u64 {
        let piece = self.control.parameters().max_bandwidth.map_or(u64::MAX, |limit| pace::piece(limit.get()));
        let wire = &self.measured.wire;
        // A page channel is given pages, however few bytes it will send for them.
        let speed = match self.options.page_channels {
            None => wire.bytes_per_second(),
            Some(_) => wire.pages_per_second().map(|pages| pages * NORMAL_RECORD as f64),
        };
        let speed = speed.map(|speed| round_down(speed) / u64::from(CHUNKS_PER_SECOND));
        piece.min(speed.unwrap_or(FIRST_CHUNK)).min(self.longest_chunk)
    }

    /// Sends a chunk of about `wanted` pending bytes, and a probe. True if the round is complete.
    pub(super) fn send_chunk(&mut self, wanted: u64, measures: Measures) -> Result<bool> {
        if self.options.page_channels.is_some() {
            return self.send_on_page_channels(wanted, measures);
        }
        let (begun, sent) = (self.clock.now(), self.pages.moved());
        let over = self.saver.iterate(&mut self.buffer, wanted, Which::All)?;
        self.probe(begun, self.pages.moved().since(sent), measures)?;
        Ok(over)
    }

    /// Sends the buffer, which holds `pages`, and a probe after it; reads answers meanwhile. In a round, it is sent in pieces
    /// that the bandwidth limit allows at once.
    pub(super) fn probe(&mut self, begun: Duration, pages: PageCount, measures: Measures) -> Result<()> {
        let (bytes, flushes) = (self.buffer.len(), self.options.page_channels.as_ref().map_or(0, Senders::flushes));
        Element::Command(Command::Ping(ping::ROUND)).write(self.buffer.bytes_mut());
        // The round trip already includes a ping.
        let ping_bytes = self.buffer.len().saturating_sub(bytes);
        let whole = Chunk { flushes, ..Chunk::new(begun, bytes, pages, measures) };
        let (mut chunk, mut in_pieces) = (Some(whole), false);
        let mut took_some = self.clock.now();
        // With page channels, almost nothing is sent on this channel.
        let mut most = if measures == Measures::Rounds && flushes == 0 { 0 } else { u64::MAX };
        let deadline = self.control.parameters().deadline.filter(|_| measures == Measures::Rounds);
        while !self.buffer.is_empty() {
            // A chunk may be long for a wire whose speed is still unknown.
            if deadline.is_some_and(|deadline| self.clock.now().saturating_sub(self.begun) >= deadline) {
                self.is_overdue()?;
            }
            if most < u64::MAX {
                most = self.await_turn()?;
            }
            // A record that is too long waits in between.
            if self.buffer.len() > most {
                in_pieces = true;
            } else if let Some(chunk) = chunk.take() {
                let waited = std::mem::take(&mut self.waited);
                // A limit of a few bytes a second has pieces that are shorter than a ping.
                let bytes = self.buffer.len().saturating_sub(ping_bytes).max(1);
                let last_piece = in_pieces.then(|| (self.clock.now(), bytes));
                self.measured.wire.sent(Chunk { waited, last_piece, ..chunk });
            }
            let deadline = took_some.max(self.pace.at()).saturating_add(self.options.answer);
            let sent = self.wire.send_piece(&mut self.buffer, most, Some(deadline), LISTEN);
            if sent.map_err(|broken| self.refusal_or(broken))? {
                took_some = self.clock.now();
            }
            self.read_replies_until(Duration::ZERO)?;
        }
        self.buffer.clear();
        Ok(())
    }

    /// Waits until the bandwidth limit allows a piece, and returns its size in bytes; all once the deadline requires to switch
    /// over.
    fn await_turn(&mut self) -> Result<u64> {
        loop {
            let now = self.clock.now();
            let Some(limit) = self.control.parameters().max_bandwidth else {
                self.pace.lift(self.wire.sent(), now);
                return Ok(u64::MAX);
            };
            let due = self.pace.due(self.wire.sent(), now, limit.get());
            if due <= now {
                let piece = pace::piece(limit.get());
                // A chunk may contain a record longer than a piece, and is sent at once.
                return Ok(if piece < NORMAL_RECORD { piece } else { u64::MAX });
            }
            // A change of the limit takes effect then.
            self.read_replies_until(due.min(now.saturating_add(Duration::from_secs(1) / CHUNKS_PER_SECOND)))?;
            self.waited += self.clock.now().saturating_sub(now);
            if self.is_overdue()? {
                return Ok(u64::MAX);
            }
        }
    }

    /// Reads answers until this moment, and those that have already arrived.
    pub(super) fn read_replies_until(&mut self, moment: Duration) -> Result<()> {
        loop {
            match self.wire.poll_until(moment, Reply::read) {
                Ok(Some(reply)) => self.handle_reply(reply)?,
                Ok(None) => return Ok(()),
                Err(broken) => return Err(self.refusal_or(broken)),
            }
        }
    }

    /// Waits until every probe is answered.
    pub(super) fn await_replies(&mut self) -> Result<()> {
        while self.measured.wire.unanswered() > 0 {
            let deadline = self.clock.now().saturating_add(self.options.answer);
            match self.await_reply(Timeout::Until(deadline)) {
                Ok(reply) => self.handle_reply(reply)?,
                Err(broken) => return Err(self.refusal_or(broken)),
            }
        }
        self.report.round_trip = self.measured.wire.round_trip();
        Ok(())
    }

    pub(super) fn handle_reply(&mut self, reply: Reply) -> Result<()> {
        let until = self.clock.now().saturating_add(REASON_TIMEOUT);
        let reply = self.taken(reply, until)?;
        self.count_arrived();
        match reply {
            Reply::Pong(ping::ROUND) if self.measured.wire.answered(self.clock.now()) => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Publishes the forecast.
    fn publish_forecast(&mut self) {
        let figures = self.figures();
        let forecast = policy::forecast(&figures, &self.control.parameters());
        tracing::trace!(?figures, ?forecast, "forecast");
        self.expected_pause = forecast.downtime;
        self.publish();
        if self.measured.wire.bytes_per_second().is_some() {
            self.control.publish(|progress| {
                progress.expected_downtime = Some(forecast.downtime);
                progress.expected_total = forecast.total;
            });
        }
    }

    fn figures(&mut self) -> Figures {
        let state = MigrationState {
            pending_bytes: self.saver.pending().saturating_add(self.unanswered_on_page_channels()),
            switch_over_cost: self.options.switch_over_cost,
            since_sync: self.clock.now().saturating_sub(self.synced),
            elapsed: self.clock.now().saturating_sub(self.begun),
            rounds: u32::try_from(self.report.rounds.len()).unwrap_or(u32::MAX),
            throttle: self.machine.percent(),
        };
        self.measured.figures(&state)
    }
}
