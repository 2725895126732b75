//! The channel as both sides use it: sends bytes and pages, receives and decodes, with bounded memory and bounded waits.

mod postcopy;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::time::Duration;

use super::control::Control;
use super::postcopy_ram::PostcopyRam;
use super::urgent::{IncomingUrgent, OutgoingUrgent};
use crate::channel::{Channel, Clock};
use crate::codec::{Limits, Outbox, Reader, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::multifd::PageChannels;
use crate::ram::{GuestRam, PageCount};

/// The most bytes of a stream that are received at once: they stay in the second-level cache until they are decoded. A page's
/// bytes follow 8 others, so they are copied once, from here to guest memory.
pub(super) const STREAM: usize = 256 << 10;
/// The most bytes of answers that are received at once.
pub(super) const ANSWERS: usize = 256;
/// The longest element and device section. It limits the memory that a peer can make this side use.
const LONGEST: usize = 32 << 20;
/// The most bytes of pages that are placed in post-copy before the guest's waits are served: 7 pages.
const PIECE: usize = 32 << 10;
/// How often a wait checks for a cancel.
pub(super) const SLICE: Duration = Duration::from_millis(20);
/// A decode that ran out of bytes is repeated from its start. Below this length that is cheap, so it is repeated for every new
/// byte; above it, only for twice the bytes, or after a silence: otherwise, a slow peer would cause quadratic work.
const CHEAP: usize = 64 << 10;
const SILENCE: Duration = Duration::from_millis(1);

/// How long to wait for the peer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timeout {
    /// Until this moment of the clock.
    Until(Duration),
    /// As long as data arrives at least this often.
    Silence(Duration),
    /// Without limit.
    Endless,
}

/// A wait for something besides the stream.
#[derive(Debug, Default)]
pub(super) struct Wait {
    /// The bytes of the page channels at the last check.
    bytes: Option<u64>,
    deadline: Option<Duration>,
}

/// A channel, and its received data.
pub(super) struct Link<'a> {
    channel: &'a mut dyn Channel,
    ram: &'a dyn GuestRam,
    clock: &'a dyn Clock,
    control: &'a Control,
    /// The page channels, whose bytes count here, and whose failure ends each wait.
    page_channels: PageChannels,
    /// In post-copy: the memory whose missing pages each wait requests.
    memory: Option<&'a PostcopyRam<'a>>,
    /// Requests for pages that the channel has not accepted yet.
    requests: Outbox,
    /// The source's second connection, for requested pages.
    outgoing_urgent: Option<OutgoingUrgent>,
    /// The destination's second connection.
    incoming_urgent: Option<IncomingUrgent<'a>>,
    /// Pages and bytes that arrived on second connections.
    urgent: (PageCount, u64),
    /// When the destination looks for a second connection again.
    urgent_look: Duration,
    /// True if the source of another connection does not know yet which guest it belongs to, and must get no requests.
    is_unidentified: bool,
    strictness: Strictness,
    limits: Limits,
    received: Vec<u8>,
    /// The undecoded part of `received` begins here.
    start: usize,
    end: usize,
    /// Stream offset of `received[0]`.
    base: u64,
    sent: u64,
}

impl<'a> Link<'a> {
    /// Creates a link that sends pages of `ram`, and receives up to `capacity` bytes at once.
    pub(super) fn new(
        channel: &'a mut dyn Channel,
        ram: &'a dyn GuestRam,
        clock: &'a dyn Clock,
        control: &'a Control,
        strictness: Strictness,
        limits: Limits,
        capacity: usize,
    ) -> Self {
        let received = vec![0; capacity];
        Self {
            channel,
            ram,
            clock,
            control,
            page_channels: PageChannels::None,
            memory: None,
            requests: Outbox::new(),
            outgoing_urgent: None,
            incoming_urgent: None,
            urgent: <(PageCount, u64)>::default(),
            urgent_look: Duration::ZERO,
            is_unidentified: false,
            strictness,
            limits,
            received,
            start: 0,
            end: 0,
            base: 0,
            sent: 0,
        }
    }

    /// Adds page channels.
    #[must_use]
    pub(super) fn with(mut self, page_channels: &PageChannels) -> Self {
        self.page_channels = page_channels.clone();
        self
    }

    /// Sets the memory in which the guest may run before all of its pages have arrived.
    #[must_use]
    pub(super) fn serving(mut self, memory: &'a PostcopyRam<'a>) -> Self {
        self.memory = Some(memory);
        self
    }

    /// True if pages arrived on page channels.
    pub(super) fn has_page_channel_data(&self) -> bool {
        self.page_channels.bytes() > 0
    }

    /// The link's clock.
    pub(super) fn clock(&self) -> &'a dyn Clock {
        self.clock
    }

    /// Bytes sent so far, including page channels.
    pub(super) fn sent(&self) -> u64 {
        self.sent + self.page_channels.bytes()
    }

    /// Bytes received so far, including page channels.
    pub(super) fn taken(&self) -> u64 {
        self.offset() + self.page_channels.bytes() + self.urgent.1
    }

    /// Bytes decoded so far.
    pub(super) fn offset(&self) -> u64 {
        self.base + self.start as u64
    }

    /// The file that is read, if the channel is one, and the offset in it of the next byte to decode.
    ///
    /// # Errors
    /// Errors of the file.
    pub(super) fn file(&self) -> Result<Option<(File, u64)>> {
        let Some(file) = self.channel.file() else { return Ok(None) };
        let mut file = file.try_clone()?;
        let at = file.stream_position()?;
        let ahead = (self.end - self.start) as u64;
        Ok(Some((file, at.saturating_sub(ahead))))
    }

    /// Continues at offset `at` in the file, which is after the next byte to decode.
    ///
    /// # Errors
    /// Errors of the file.
    pub(super) fn go_to(&mut self, at: u64) -> Result<()> {
        let Some((mut file, here)) = self.file()? else { return Ok(()) };
        self.base = self.offset().saturating_add(at.saturating_sub(here));
        (self.start, self.end) = (0, 0);
        file.seek(SeekFrom::Start(at))?;
        Ok(())
    }

    /// Sends all of `outbox`, and receives data meanwhile.
    ///
    /// # Errors
    /// A timeout if the peer did not accept all of it in time, `Cancelled`, errors of the channel.
    pub(super) fn send(&mut self, outbox: &mut Outbox, timeout: Timeout) -> Result<()> {
        let mut requests = std::mem::take(&mut self.requests);
        if !requests.is_empty() {
            self.send(&mut requests, timeout)?;
        }
        let mut deadline = self.deadline(timeout);
        while !outbox.is_empty() {
            match self.send_part(outbox, deadline, SLICE)? {
                // A peer that refuses the guest stops reading and sends a reason.
                false => self.receive_at_hand()?,
                true => {
                    if let Timeout::Silence(_) = timeout {
                        deadline = self.deadline(timeout);
                    } else if self.left(deadline).is_zero() {
                        // Also if everything was sent: a source that is slow to produce data finds each part accepted at once.
                        return Err(timed_out("the stream is too slow"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends all of `outbox` to a peer that does not answer, however long that takes: nothing is received, because a pipe's write
    /// end cannot be read (read(2), EBADF).
    ///
    /// # Errors
    /// `Cancelled`, errors of the channel.
    pub(super) fn send_unanswered(&mut self, outbox: &mut Outbox) -> Result<()> {
        while !outbox.is_empty() {
            self.send_part(outbox, None, SLICE)?;
        }
        Ok(())
    }

    /// As for [`send_part`](Self::send_part), for the first `most` bytes.
    pub(super) fn send_piece(
        &mut self,
        outbox: &mut Outbox,
        most: u64,
        deadline: Option<Duration>,
        slice: Duration,
    ) -> Result<bool> {
        if outbox.len() <= most {
            return self.send_part(outbox, deadline, slice);
        }
        let mut head = outbox.head(most);
        let before = head.len();
        let sent = self.send_part(&mut head, deadline, slice);
        outbox.advance(before - head.len());
        sent
    }

    /// Sends as much of `outbox` as the channel accepts within `slice`; false if it accepted nothing.
    ///
    /// # Errors
    /// A timeout if it accepted nothing and `deadline` has passed, `Cancelled`, errors of the channel.
    pub(super) fn send_part(
        &mut self,
        outbox: &mut Outbox,
        deadline: Option<Duration>,
        slice: Duration,
    ) -> Result<bool> {
        self.check()?;
        let left = self.left(deadline);
        match self.channel.send_outbox(outbox, self.ram, left.min(slice)) {
            Ok(count) => {
                let count = (count as u64).min(outbox.len());
                outbox.advance(count);
                self.sent += count;
                Ok(count > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) if is_wait(&error) && left.is_zero() => Err(timed_out("the peer accepts no data")),
            Err(error) if is_wait(&error) => Ok(false),
            // An error of guest memory is the inner error.
            Err(error) => Err(error.downcast().unwrap_or_else(Error::from)),
        }
    }

    fn deadline(&self, timeout: Timeout) -> Option<Duration> {
        match timeout {
            Timeout::Until(moment) => Some(moment),
            Timeout::Silence(longest) => Some(self.clock.now().saturating_add(longest)),
            Timeout::Endless => None,
        }
    }

    /// Checks whether a wait for something besides the stream, which began when `wait` was created, may continue.
    ///
    /// # Errors
    /// A timeout if the wait takes too long, `Cancelled`, errors of a page channel.
    pub(super) fn wait_for_page_channels(&self, wait: &mut Wait, timeout: Timeout) -> Result<()> {
        self.check()?;
        let bytes = Some(self.page_channels.bytes());
        if wait.bytes.is_none() || (wait.bytes != bytes && matches!(timeout, Timeout::Silence(_))) {
            *wait = Wait { bytes, deadline: self.deadline(timeout) };
        }
        if self.left(wait.deadline).is_zero() {
            return Err(timed_out("the page channels do not reach the flush of the main channel"));
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.control.check()?;
        self.page_channels.check()
    }

    fn left(&self, deadline: Option<Duration>) -> Duration {
        deadline.map_or(Duration::MAX, |deadline| deadline.saturating_sub(self.clock.now()))
    }

    /// Receives data that has arrived, if there is room for it.
    pub(super) fn receive_at_hand(&mut self) -> Result<()> {
        if self.end - self.start > self.received.len() / 2 {
            return Ok(());
        }
        match self.receive_within(Duration::ZERO) {
            Err(error) if is_timeout(&error) => Ok(()),
            result => result,
        }
    }

    /// Decodes with `decode`, which is called again from the same position whenever it ran out of bytes and more have arrived.
    pub(super) fn decode<T>(
        &mut self,
        timeout: Timeout,
        mut decode: impl FnMut(&mut Reader<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut most = if self.listens() { PIECE } else { LONGEST };
        loop {
            let end = self.end.min(self.start.saturating_add(most));
            let at_hand = self.received.get(self.start..end).unwrap_or_default();
            let mut reader = Reader::new(at_hand, self.offset(), self.strictness, self.limits);
            match decode(&mut reader) {
                Ok(decoded) => {
                    self.start += reader.consumed();
                    return Ok(decoded);
                }
                Err(error) if error.is_incomplete() && end < self.end && most < LONGEST => most *= 2,
                Err(error) if error.is_incomplete() => {
                    let have = at_hand.len();
                    if have >= LONGEST {
                        return Err(Error::new(ErrorKind::Malformed, format!("longer than {LONGEST} bytes"))
                            .at(self.offset())
                            .with_source(error));
                    }
                    self.more(have, timeout).map_err(|lost| lost.at(self.offset() + have as u64))?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// As for [`decode`](Self::decode); `None` if nothing arrives until then.
    pub(super) fn poll_until<T>(
        &mut self,
        moment: Duration,
        decode: impl FnMut(&mut Reader<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        match self.decode(Timeout::Until(moment), decode) {
            Ok(decoded) => Ok(Some(decoded)),
            Err(error) if is_timeout(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until this many undecoded bytes have arrived.
    ///
    /// # Errors
    /// `Malformed` if that is more than the limit of one element; errors of waiting.
    pub(super) fn gather(&mut self, count: u32, timeout: Timeout) -> Result<()> {
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        if wanted > LONGEST {
            return Err(Error::new(ErrorKind::Malformed, format!("a package of {count} bytes, longer than {LONGEST}")));
        }
        while self.end - self.start < wanted {
            self.receive(timeout).map_err(|lost| lost.at(self.base + self.end as u64))?;
        }
        Ok(())
    }

    /// Drops received data until the peer closes the connection in order.
    ///
    /// # Errors
    /// A timeout if the peer has not closed it until then; errors of the channel.
    pub(super) fn await_close(&mut self, until: Duration) -> Result<()> {
        loop {
            self.start = self.end;
            match self.receive(Timeout::Until(until)) {
                Err(error) if is_closed(&error) => return Ok(()),
                Ok(()) if self.left(Some(until)).is_zero() => {
                    return Err(timed_out("the peer does not close the connection"));
                }
                result => result?,
            }
        }
    }

    /// Receives data, and more of it if it has already arrived.
    fn more(&mut self, have: usize, timeout: Timeout) -> Result<()> {
        self.receive(timeout)?;
        let enough = if have < CHEAP { have } else { have.saturating_mul(2).min(LONGEST) };
        while self.end - self.start < enough {
            match self.receive_within(SILENCE) {
                Ok(_) => {}
                Err(error) if is_timeout(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self, timeout: Timeout) -> Result<()> {
        let deadline = self.deadline(timeout);
        loop {
            self.check()?;
            self.ask_for_pages()?;
            self.take_urgent()?;
            let left = self.left(deadline);
            let received = if self.listens() {
                self.receive_or_fault(left.min(SLICE))
            } else {
                self.receive_within(left.min(SLICE))
            };
            match received {
                Err(error) if is_timeout(&error) && !self.left(deadline).is_zero() => {}
                Err(error) if is_timeout(&error) => return Err(timed_out(&self.page_channels.why_silent())),
                result => {
                    self.update_time();
                    return result;
                }
            }
        }
    }

    fn receive_within(&mut self, timeout: Duration) -> Result<()> {
        if self.start == self.end {
            self.base += self.start as u64;
            (self.start, self.end) = (0, 0);
        }
        if self.received.len() - self.end < self.received.len() / 4 {
            self.received.copy_within(self.start..self.end, 0);
            self.base += self.start as u64;
            (self.start, self.end) = (0, self.end - self.start);
            if self.end > self.received.len() / 2 {
                self.received.resize(self.received.len() * 2, 0);
            }
        }
        let free = self.received.get_mut(self.end..).unwrap_or_default();
        loop {
            match self.channel.receive(free, timeout) {
                Ok(0) => {
                    let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(Error::new(ErrorKind::Io, "the peer closed the connection").with_source(closed));
                }
                Ok(count) => {
                    self.end += count.min(free.len());
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_wait(&error) => return Err(timed_out("the peer is silent")),
                // QEMU closes its main channel without close_notify (`qemu_fclose`).
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(Error::new(ErrorKind::Io, error.to_string()).with_source(error));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// True if the channel was merely not ready.
pub(super) fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// The error for a peer, or this side, that was too slow.
pub(super) fn timed_out(message: &str) -> Error {
    Error::new(ErrorKind::Io, message).with_source(io::Error::from(io::ErrorKind::TimedOut))
}

/// True if the peer will send no more.
pub(super) fn is_closed(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::UnexpectedEof)
}

/// True if the peer was merely too slow.
pub(super) fn is_timeout(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut)
}
