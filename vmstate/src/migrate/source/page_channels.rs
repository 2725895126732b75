//! Page channels, as the main channel of a source uses them: it gives them pages, slightly more than they can send at once, and
//! makes them flush where it sends a probe.

use std::time::Duration;

use super::{CHUNK, Source};
use crate::error::Result;
use crate::migrate::forecast::Measures;
use crate::migrate::phase::SourcePhase;
use crate::migrate::save::Which;
use crate::migrate::wire::Timeout;
use crate::ram::multifd::Senders;
use crate::ram::{NORMAL_RECORD, PageCount, ZERO_RECORD};

/// The most bytes of pages that channels are given at once: as many as one clear of the log covers.
pub(super) const PORTION: u64 = 16 << 20;
/// How often a wait checks for answers.
const SLICE: Duration = Duration::from_millis(5);
/// Time between two probes while the channels send: at each probe, the destination's threads wait for the slowest of them.
const BETWEEN_PROBES: Duration = Duration::from_millis(100);

impl Source<'_, '_> {
    /// Gives page channels about `wanted` bytes of pending pages, once they have no more than that left to send; under a
    /// bandwidth limit no more than `wanted`, except that one page is given in any case. A probe follows when one is due. True if
    /// the round is complete.
    pub(super) fn send_on_page_channels(&mut self, wanted: u64, measures: Measures) -> Result<bool> {
        self.await_sent(wanted / NORMAL_RECORD, self.running())?;
        // An answer that is read late makes the wire seem slow, and keeps portions as small as before the first answer.
        self.read_replies_until(Duration::ZERO)?;
        let now = self.clock.now();
        let begun = *self.unprobed.get_or_insert(now);
        let is_due = measures != Measures::Rounds
            || (self.measured.wire.bytes_per_second().is_none() && self.measured.wire.unanswered() == 0)
            || now.saturating_sub(begun) >= BETWEEN_PROBES
            || self.buffer.len() >= CHUNK;
        if is_due {
            self.pages.want_flush();
        }
        let is_limited = self.control.parameters().max_bandwidth.is_some();
        // The page that reaches the budget is the last, and is sent whole.
        let budget = if is_limited { wanted.saturating_sub(NORMAL_RECORD - 1).max(1) } else { wanted };
        let over = self.saver.iterate(&mut self.buffer, budget, Which::All)?;
        // The number of bytes of the pages is known once they are sent.
        if is_limited {
            self.await_sent(0, self.running())?;
        }
        if is_due || over {
            self.unprobed = None;
            self.probe(begun, PageCount::default(), measures)?;
        }
        Ok(over)
    }

    /// Waits until the page channels have sent everything up to the last flush.
    ///
    /// # Errors
    /// As for [`await_sent`](Self::await_sent).
    pub(super) fn await_synced(&mut self, timeout: Timeout) -> Result<()> {
        self.await_senders(Senders::await_synced, timeout)
    }

    /// Waits until the page channels have sent all but `most` of the pages that they were given.
    ///
    /// # Errors
    /// A timeout, `Cancelled`, a channel's failure, or the destination's refusal.
    pub(super) fn await_sent(&mut self, most: u64, timeout: Timeout) -> Result<()> {
        self.await_senders(|senders, time| senders.await_sent(most, time), timeout)
    }

    /// Waits until `is_done` returns true for the page channels.
    fn await_senders(&mut self, is_done: impl Fn(&Senders, Duration) -> Result<bool>, timeout: Timeout) -> Result<()> {
        let Some(senders) = &self.options.page_channels else { return Ok(()) };
        let mut wait = Default::default();
        loop {
            match is_done(senders, SLICE) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(broken) => return Err(self.refusal_or(broken)),
            }
            self.wire.wait_for_page_channels(&mut wait, timeout).map_err(|broken| self.refusal_or(broken))?;
            self.read_replies_until(Duration::ZERO)?;
            if self.protocol.phase() == SourcePhase::Rounds {
                self.is_overdue()?;
            }
        }
    }

    /// Counts the pages on page channels before the oldest probe, when it is answered, as if they had been sent in the stream.
    /// The forecast uses this unit, because it cannot know the gain of compression.
    pub(super) fn count_arrived(&mut self) {
        if let (Some(senders), Some(chunk)) = (&self.options.page_channels, self.measured.wire.oldest()) {
            let pages = senders.arrived(chunk.flushes);
            self.measured.wire.add_to_oldest(in_stream(pages), pages);
        }
    }

    /// Bytes, in the same unit, that page channels have sent and the destination has not acknowledged.
    pub(super) fn unanswered_on_page_channels(&self) -> u64 {
        self.options.page_channels.as_ref().map_or(0, |senders| in_stream(senders.unanswered()))
    }
}

/// Bytes that the pages would have in the stream.
fn in_stream(pages: PageCount) -> u64 {
    pages.normal.saturating_mul(NORMAL_RECORD).saturating_add(pages.zero.saturating_mul(ZERO_RECORD))
}
