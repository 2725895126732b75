//! The state that the threads of a destination share: the channels of the migration, and the waits between threads.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::{Ending, Opening, Pairing};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::{PageCount, RamBlock};
use crate::sync::{lock, wait, wait_within};

/// The channels of one incoming migration, as many as connect. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Receivers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when the main channel has passed a flush.
    permission: Condvar,
    /// Signalled when a channel has reached a flush, or has failed.
    progress: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Channels that have sent an opening, of this migration or not.
    openings: usize,
    pairing: Pairing,
    /// The RAM blocks, known from the first flush on.
    blocks: Option<Arc<[RamBlock]>>,
    received: PageCount,
    bytes: u64,
    ending: Ending,
}

impl Receivers {
    /// Creates the state for a migration that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the channels' threads, after the end of the migration.
    pub fn close(&self) {
        self.lock().ending.is_over = true;
        self.0.permission.notify_all();
        self.0.progress.notify_all();
    }

    /// True once the migration has ended.
    pub fn is_over(&self) -> bool {
        self.lock().ending.is_over
    }

    /// The number of channels that belong to the migration.
    pub fn channels(&self) -> usize {
        self.lock().pairing.channels()
    }

    /// Pages received on the channels.
    pub(crate) fn received(&self) -> PageCount {
        self.lock().received
    }

    /// Bytes received on the channels.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Returns the error of the first channel that failed, once.
    pub(crate) fn check(&self) -> Result<()> {
        self.lock().ending.check()
    }

    /// Called by the main channel at a flush: waits up to `timeout` until all channels have reached it, then lets them continue;
    /// true if they may.
    ///
    /// # Errors
    /// Why a channel failed; `Io` if one was closed before its SYNC.
    pub(crate) fn flush(&self, blocks: &[RamBlock], timeout: Duration) -> Result<bool> {
        let mut state = self.lock();
        let mut passes = state.pass(blocks)?;
        if !passes {
            state = wait_within(&self.0.progress, state, timeout);
            passes = state.pass(blocks)?;
        }
        drop(state);
        if passes {
            self.0.permission.notify_all();
        }
        Ok(passes)
    }

    /// True if connections that look like page channels wait for the first flush: stray connections do, and channels of a source
    /// that never flushes.
    pub(super) fn is_flush_awaited(&self) -> bool {
        let state = self.lock();
        state.pairing.flushes() == 0 && state.openings > 0
    }

    /// Called by a channel after its opening: waits until the channel may continue after the first flush. `None`: the migration
    /// has ended.
    pub(crate) fn await_start(&self) -> Option<Arc<[RamBlock]>> {
        self.lock().openings += 1;
        self.await_permission(1)
    }

    /// Called by a channel after its first packet, which is its first SYNC and has this number: from now on the channel belongs
    /// to the migration.
    ///
    /// # Errors
    /// The channel does not belong to the migration, which continues without it.
    pub(crate) fn join(&self, opening: Opening, number: u64) -> Result<()> {
        let mut state = self.lock();
        if state.ending.is_over {
            return Err(Error::new(ErrorKind::Peer, "the migration is over"));
        }
        state.pairing.join(opening, number)?;
        drop(state);
        self.0.progress.notify_all();
        Ok(())
    }

    /// Called by a channel: waits until it may continue after its SYNC of this number, from 1 on. `None`: the migration has
    /// ended.
    pub(crate) fn await_permission(&self, sync: u64) -> Option<Arc<[RamBlock]>> {
        let mut state = self.lock();
        while !state.ending.is_over && state.pairing.flushes() < sync {
            state = wait(&self.0.permission, state);
        }
        state.blocks.clone().filter(|_| !state.ending.is_over)
    }

    /// Called by a channel when a packet has arrived, with its pages.
    ///
    /// # Errors
    /// `Malformed` if its number is impossible.
    pub(crate) fn add(&self, id: u8, number: u64, sync: bool, pages: PageCount, bytes: u64) -> Result<()> {
        let mut state = self.lock();
        state.pairing.add(id, number, sync)?;
        state.received = state.received.and(pages);
        state.bytes += bytes;
        drop(state);
        // The last packet before a flush is a SYNC, because each channel's packets arrive in the order of their numbers.
        if sync {
            self.0.progress.notify_all();
        }
        Ok(())
    }

    /// Called by a channel that was closed after a SYNC.
    pub(crate) fn closed(&self, id: u8) {
        self.lock().pairing.close(id);
        self.0.progress.notify_all();
    }

    /// Called by a channel that failed. Failures after the end of the migration are consequences of it and ignored.
    pub(crate) fn fail(&self, error: Error) {
        self.lock().ending.fail(error);
        self.0.permission.notify_all();
        self.0.progress.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

impl State {
    fn pass(&mut self, blocks: &[RamBlock]) -> Result<bool> {
        self.ending.check()?;
        if self.blocks.is_none() {
            self.blocks = Some(blocks.into());
        }
        self.pairing.pass()
    }
}
