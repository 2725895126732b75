//! Page channels, as the main channel of a source sees them: what it hands to them, it waits for.

use std::time::Duration;

use super::Source;
use crate::error::Result;
use crate::migrate::wire::Patience;
use crate::ram::{NORMAL_RECORD, PageCount, ZERO_RECORD};

/// The longest chunk with page channels, which have to wait for each other at its end.
pub(super) const LONG_CHUNK: u64 = 64 << 20;
/// So often a wait looks whether an answer has come.
const SLICE: Duration = Duration::from_millis(5);

impl Source<'_, '_> {
    /// Waits until the page channels have sent all that was handed to them.
    ///
    /// # Errors
    /// A timeout, `Cancelled`, why a channel failed or the destination refuses the guest.
    pub(super) fn await_pages(&mut self, patience: Patience) -> Result<()> {
        let Some(senders) = &self.options.page_channels else { return Ok(()) };
        let mut wait = Default::default();
        loop {
            match senders.await_flush(SLICE) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(broken) => return Err(self.last_words(broken)),
            }
            self.wire.wait_beside(&mut wait, patience).map_err(|broken| self.last_words(broken))?;
            self.hear_until(Duration::ZERO)?;
        }
    }

    /// Bytes that pages on page channels would have had in the stream. The forecast counts in them: it does not know what
    /// compressing will gain.
    pub(super) fn in_stream(&self, pages: PageCount) -> u64 {
        let all = pages.normal.saturating_mul(NORMAL_RECORD).saturating_add(pages.zero.saturating_mul(ZERO_RECORD));
        if self.options.page_channels.is_some() { all } else { 0 }
    }
}
