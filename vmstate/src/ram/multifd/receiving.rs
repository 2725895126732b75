//! What the threads of a destination share: the channels of the migration, and who waits for whom.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::{Ending, Opening, Pairing};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::{PageCount, RamBlock};
use crate::sync::{lock, wait, wait_within};

/// The channels of one incoming migration, as many as come. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub struct Receivers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The main channel has passed a flush.
    permission: Condvar,
    /// A channel has come to a flush, or has failed.
    progress: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Channels that have introduced themselves, the migration's or others.
    introduced: usize,
    pairing: Pairing,
    /// Known from the first flush on.
    blocks: Option<Arc<[RamBlock]>>,
    received: PageCount,
    bytes: u64,
    ending: Ending,
}

impl Receivers {
    /// For a migration that is to come.
    pub fn new() -> Self {
        Self::default()
    }

    /// The migration is over: the channels' threads end.
    pub fn close(&self) {
        self.lock().ending.is_over = true;
        self.0.permission.notify_all();
        self.0.progress.notify_all();
    }

    /// True once the migration is over.
    pub fn is_over(&self) -> bool {
        self.lock().ending.is_over
    }

    /// How many channels belong to the migration.
    pub fn channels(&self) -> usize {
        self.lock().pairing.channels()
    }

    /// Pages that came on the channels.
    pub(crate) fn received(&self) -> PageCount {
        self.lock().received
    }

    /// Bytes that came on the channels.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// An error if a channel has failed: the first one's, once.
    pub(crate) fn check(&self) -> Result<()> {
        self.lock().ending.check()
    }

    /// The main channel has come to a flush: waits for so long until all channels have, and lets them go on; true if they may.
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

    /// True if connections that look like page channels wait for the first flush. A stray does, and a channel of a source that never
    /// flushes.
    pub(super) fn is_flush_awaited(&self) -> bool {
        let state = self.lock();
        state.pairing.flushes() == 0 && state.introduced > 0
    }

    /// A channel that has introduced itself: waits until it may go on, behind the first flush. `None`: the migration is over.
    pub(crate) fn await_start(&self) -> Option<Arc<[RamBlock]>> {
        self.lock().introduced += 1;
        self.await_permission(1)
    }

    /// A channel: its first packet, which is its first SYNC, has this number, and it goes on. From now on it belongs to the migration.
    ///
    /// # Errors
    /// It does not; the migration goes on without it.
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

    /// A channel: waits until it may go on behind its SYNC of this number, from 1 on. `None`: the migration is over.
    pub(crate) fn await_permission(&self, sync: u64) -> Option<Arc<[RamBlock]>> {
        let mut state = self.lock();
        while !state.ending.is_over && state.pairing.flushes() < sync {
            state = wait(&self.0.permission, state);
        }
        state.blocks.clone().filter(|_| !state.ending.is_over)
    }

    /// A channel: a packet is here, with its pages.
    ///
    /// # Errors
    /// `Malformed` if its number cannot be.
    pub(crate) fn add(&self, id: u8, number: u64, sync: bool, pages: PageCount, bytes: u64) -> Result<()> {
        let mut state = self.lock();
        state.pairing.add(id, number, sync)?;
        state.received = state.received.and(pages);
        state.bytes += bytes;
        drop(state);
        // The last packet before a flush that comes is a SYNC: each channel's packets come in the order of their numbers.
        if sync {
            self.0.progress.notify_all();
        }
        Ok(())
    }

    /// A channel: it was closed behind a SYNC.
    pub(crate) fn closed(&self, id: u8) {
        self.lock().pairing.close(id);
        self.0.progress.notify_all();
    }

    /// A channel: it cannot go on. What follows from the end of the migration says nothing new.
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
