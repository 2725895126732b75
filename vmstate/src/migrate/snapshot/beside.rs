//! State that is saved beside the file of a running guest, as the content of disks: copied in rounds with the guest's memory, and
//! completed in the same pause.

use std::time::{Duration, Instant};

use super::CHUNK;
use crate::error::Result;
use crate::migrate::control::Control;
use crate::migrate::pace::{self, Pace};

/// Longest wait for the bandwidth limit until a cancel or another limit is seen.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// State outside of the stream that has to be as it was when the guest was paused. Its writers follow the rules of
/// [`IterativeSection`](crate::section::IterativeSection).
pub trait Beside {
    /// At the beginning of each round and in the pause: adds the places written so far to those pending.
    ///
    /// # Errors
    /// A failure of the record of writes; the save fails.
    fn sync(&mut self) -> Result<()>;

    /// Copies about `budget` bytes of what is pending. True if nothing is left.
    ///
    /// # Errors
    /// State cannot be read or written; the save fails.
    fn iterate(&mut self, budget: u64) -> Result<bool>;

    /// In the pause, after the last [`sync`](Self::sync): copies everything that is pending.
    ///
    /// # Errors
    /// As for [`iterate`](Self::iterate).
    fn complete(&mut self) -> Result<()>;

    /// An estimate of the bytes that are still to be copied.
    fn pending(&self) -> u64;

    /// Bytes copied so far.
    fn copied(&self) -> u64;
}

/// Copies the state beside a file, within [`max_bandwidth`](super::super::Parameters::max_bandwidth) while the guest runs.
pub(super) struct Copying<'a> {
    state: Option<&'a mut dyn Beside>,
    pace: Pace,
    begun: Instant,
    waited: Duration,
}

impl<'a> Copying<'a> {
    pub(super) fn new(state: Option<&'a mut dyn Beside>) -> Self {
        Self { state, pace: Pace::default(), begun: Instant::now(), waited: Duration::ZERO }
    }

    pub(super) fn sync(&mut self) -> Result<()> {
        self.state.as_mut().map_or(Ok(()), |state| state.sync())
    }

    /// Copies a chunk if the bandwidth limit allows. If it does not, and nothing else is to be done (`waits`), waits a moment.
    /// True if nothing is left.
    pub(super) fn iterate(&mut self, control: &Control, waits: bool) -> Result<bool> {
        let Some(state) = &mut self.state else { return Ok(true) };
        let (now, copied) = (self.begun.elapsed(), state.copied());
        let Some(limit) = control.parameters().max_bandwidth else {
            self.pace.lift(copied, now);
            return state.iterate(CHUNK);
        };
        let due = self.pace.due(copied, now, limit.get());
        if due <= now {
            return state.iterate(CHUNK.min(pace::piece(limit.get())));
        }
        if waits {
            std::thread::sleep((due - now).min(CHECK_INTERVAL));
            self.waited += self.begun.elapsed().saturating_sub(now);
        }
        Ok(false)
    }

    pub(super) fn complete(&mut self) -> Result<()> {
        self.state.as_mut().map_or(Ok(()), |state| state.complete())
    }

    pub(super) fn pending(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.pending())
    }

    pub(super) fn copied(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.copied())
    }

    /// Time spent waiting for the bandwidth limit.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }
}
