//! Post-copy: the guest runs at the destination while its pages are still here, and requested pages are sent first.

use std::time::Duration;

use super::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::Peer;
use crate::migrate::pace;
use crate::migrate::protocol::Mode;
use crate::migrate::save::{SendPhase, Which};
use crate::migrate::wire::{SLICE, Timeout};
use crate::ram::record::put_end_of_section;
use crate::ram::{NORMAL_RECORD, PAGE_SIZE};
use crate::stream::{Command, Discard, Element, PageRequest, PageSizes, Returned, Stretch};

/// Bytes of pages collected at once: a page requested meanwhile waits only for these, and for the contents of the socket's
/// buffer.
const CHUNK: u64 = 64 << 10;

impl Source<'_, '_> {
    /// Announces to the destination, before the first page, that its guest may have to run before all pages have arrived.
    pub(super) fn announce_postcopy(&mut self) -> Result<()> {
        if !self.control.parameters().postcopy_ram {
            return Ok(());
        }
        let refused = |what: &str| Err(Error::new(ErrorKind::Incompatible, format!("no post-copy {what}")));
        if self.options.page_channels.is_some() {
            return refused("with page channels: turn capability multifd or postcopy-ram off");
        }
        if self.shares_memory {
            return refused("of memory that both sides share");
        }
        let sizes = PageSizes { summary: PAGE_SIZE, target: PAGE_SIZE };
        Element::Command(Command::PostcopyAdvise(Some(sizes))).write(self.buffer.bytes_mut());
        self.announced_postcopy = true;
        Ok(())
    }

    /// True if a switch to post-copy was requested.
    pub(super) fn wants_postcopy(&self) -> bool {
        self.announced_postcopy && self.control.wants_postcopy()
    }

    /// Sends one round, and returns the mode of the hand-over if the switch-over is to begin.
    pub(super) fn round_and_mode(&mut self) -> Result<Option<Mode>> {
        if !self.round_and_verdict()? {
            return Ok(None);
        }
        self.await_machine()?;
        if !self.wants_postcopy() {
            return Ok(Some(Mode::Precopy));
        }
        // Before the pause, so that connecting is not part of the downtime.
        self.connect_urgent()?;
        Ok(Some(match self.peer {
            Peer::Vmstate => Mode::Postcopy,
            Peer::Qemu => Mode::PostcopyUnanswered,
        }))
    }

    /// Sends the list of pages that were written since they were sent, and the devices as one package, after which pages may
    /// follow.
    pub(super) fn send_package(&mut self, until: Duration) -> Result<()> {
        let until = Timeout::Until(until);
        self.is_postcopy = true;
        self.sync(true)?;
        self.downtime.sync = self.lap();
        while !self.saver.iterate(&mut self.buffer, CHUNK, Which::Others)? {
            self.flush(until)?;
        }
        self.saver.complete(&mut self.buffer, Which::Others)?;
        self.put_discards();
        self.flush(until)?;
        self.downtime.pages = self.lap();
        let mut package = Vec::new();
        Element::Command(Command::PostcopyListen).write(&mut package);
        self.saved.extend(self.saver.put_devices(&mut package, (self.peer, SendPhase::Last))?);
        if self.peer == Peer::Qemu {
            Element::Command(Command::PostcopyRun).write(&mut package);
        }
        let length =
            u32::try_from(package.len()).map_err(|_| Error::new(ErrorKind::Misuse, "too much device state"))?;
        Element::Command(Command::Packaged(length)).write(self.buffer.bytes_mut());
        self.buffer.put(&package);
        if self.peer == Peer::Vmstate {
            Element::Command(Command::Ping(super::ping::READY)).write(self.buffer.bytes_mut());
        }
        self.flush(until)?;
        self.downtime.devices = self.lap();
        Ok(())
    }

    fn put_discards(&mut self) {
        let lacking = self.pages.lacking();
        let of_block = lacking.chunk_by(|(block, _), (next, _)| block == next);
        for runs in of_block.flat_map(|runs| runs.chunks(Discard::MOST)) {
            let Some(block) = runs.first().and_then(|(block, _)| self.blocks.get(*block)) else { continue };
            let stretches = runs.iter().map(|(_, pages)| Stretch {
                start: pages.start * PAGE_SIZE,
                len: (pages.end - pages.start) * PAGE_SIZE,
            });
            let discard = Discard { block: block.name.clone(), stretches: stretches.collect() };
            Element::Command(Command::PostcopyRamDiscard(discard)).write(self.buffer.bytes_mut());
        }
    }

    /// Sends the command to run.
    pub(super) fn send_run(&mut self, until: Duration) -> Result<()> {
        Element::Command(Command::PostcopyRun).write(self.buffer.bytes_mut());
        let sent = self.wire.send(&mut self.buffer, Timeout::Until(until));
        self.buffer.clear();
        sent
    }

    /// Called when the destination runs the guest: sends requested pages, all others meanwhile, and the end.
    pub(super) fn serve(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.is_gone, true) {
            self.downtime.commit = self.lap();
            self.control.publish(|progress| progress.downtime = Some(self.downtime));
        }
        self.wire.shorten_queue();
        self.pace.lift(self.wire.sent(), self.clock.now());
        loop {
            let is_requested = self.read_requests()?;
            self.put_urgent()?;
            let wait = self.time_until_due();
            if !wait.is_zero() && !is_requested {
                self.wire.await_room(false, wait)?;
                continue;
            }
            let others = if wait.is_zero() { self.piece() } else { 0 };
            let over = self.saver.iterate(&mut self.buffer, others, Which::Memory)?;
            self.flush_behind_urgent()?;
            self.publish();
            if over {
                break;
            }
        }
        if let Some(urgent) = self.wire.urgent_outbox() {
            // QEMU before 8.0 waits for this record (`postcopy_preempt_shutdown_file`, migration/postcopy-ram.c).
            put_end_of_section(urgent);
        }
        self.saver.complete(&mut self.buffer, Which::Memory)?;
        Element::Eof.write(self.buffer.bytes_mut());
        self.flush_behind_urgent()?;
        self.machine.departed();
        Ok(())
    }

    /// Bytes a second that may be sent: at least a page, because a silent source counts as lost.
    fn bandwidth_limit(&self) -> Option<u64> {
        self.control.parameters().max_postcopy_bandwidth.map(|limit| limit.get().max(NORMAL_RECORD))
    }

    /// Time until the bandwidth limit allows another piece.
    fn time_until_due(&mut self) -> Duration {
        let (sent, now) = (self.wire.sent(), self.clock.now());
        match self.bandwidth_limit() {
            Some(limit) => self.pace.due(sent, now, limit).saturating_sub(now),
            None => {
                self.pace.lift(sent, now);
                Duration::ZERO
            }
        }
    }

    /// Bytes of pages that are collected at once.
    fn piece(&self) -> u64 {
        self.bandwidth_limit().map_or(CHUNK, |limit| CHUNK.min(pace::piece(limit)))
    }

    /// Makes the second connection, for requested pages, if the parameter `postcopy_preempt` is on.
    pub(super) fn connect_urgent(&mut self) -> Result<()> {
        if !self.control.parameters().postcopy_preempt || self.wire.open_urgent()? {
            return Ok(());
        }
        let message = "requested pages need a second connection to the destination, and this channel supports only one: turn \
                       capability postcopy-preempt off";
        Err(Error::new(ErrorKind::Incompatible, message))
    }

    /// Puts requested pages into the outbox of the second connection. Without a second connection, requested pages come first in the
    /// next part of the stream.
    fn put_urgent(&mut self) -> Result<()> {
        match self.wire.urgent_outbox() {
            Some(urgent) => self.saver.put_asked(urgent),
            None => Ok(()),
        }
    }

    /// Sends the buffer and empties it. Pages requested before and meanwhile go first on the second connection, if there is one.
    fn flush_behind_urgent(&mut self) -> Result<()> {
        if self.wire.urgent_outbox().is_none() {
            return self.flush(self.running());
        }
        let (mut sent, mut moved) = (self.wire.sent(), self.clock.now());
        loop {
            let deadline = moved.saturating_add(self.options.answer);
            let all = self.wire.send_both(&mut self.buffer, deadline).map_err(|broken| self.refusal_or(broken))?;
            if all {
                self.buffer.clear();
                return Ok(());
            }
            if self.wire.sent() > sent {
                (sent, moved) = (self.wire.sent(), self.clock.now());
            } else {
                self.wire.await_room(!self.buffer.is_empty(), SLICE)?;
            }
            self.read_requests()?;
            self.put_urgent()?;
        }
    }

    /// Reads the requests that have already arrived; true if there was one.
    fn read_requests(&mut self) -> Result<bool> {
        let mut is_requested = false;
        loop {
            match self.wire.poll_until(Duration::ZERO, Returned::read) {
                Ok(Some(Returned::Pages(request))) => {
                    self.note(&request)?;
                    is_requested = true;
                }
                Ok(Some(Returned::Reply(reply))) => {
                    let until = self.clock.now().saturating_add(super::REASON_TIMEOUT);
                    let reply = self.taken(reply, until)?;
                    return Err(super::unexpected(reply));
                }
                Ok(Some(other)) => return Err(super::recovery::unexpected_message(other)),
                Ok(None) => return Ok(is_requested),
                Err(broken) => return Err(self.refusal_or(broken)),
            }
        }
    }

    /// Records which pages shall be sent first.
    ///
    /// # Errors
    /// `Malformed` if they are not pages of this guest.
    pub(super) fn note(&mut self, request: &PageRequest) -> Result<()> {
        let PageRequest { block, start, len } = request;
        let malformed = |what: &str| Err(Error::new(ErrorKind::Malformed, format!("{what}, in a request for pages")));
        if let Some(name) = block {
            self.named = self.blocks.iter().position(|block| block.name == *name);
        }
        let Some((index, found)) = self.named.and_then(|index| Some((index, self.blocks.get(index)?))) else {
            return malformed("no such RAM block");
        };
        let end = start.checked_add(u64::from(*len)).filter(|end| *end <= found.len);
        let Some(end) = end.filter(|end| start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE)) else {
            return malformed("no pages of the RAM block");
        };
        self.pages.ask(index, start / PAGE_SIZE..end / PAGE_SIZE);
        Ok(())
    }

    /// Sends requested pages while the destination takes over.
    pub(super) fn send_asked(&mut self, timeout: Timeout) -> Result<()> {
        if self.wire.urgent_outbox().is_some() {
            self.put_urgent()?;
            // Bytes that the connection does not accept now are sent with the next requested pages.
            return self.wire.send_urgent();
        }
        self.saver.iterate(&mut self.buffer, 0, Which::Memory)?;
        let sent = self.wire.send(&mut self.buffer, timeout);
        self.buffer.clear();
        sent
    }
}
