//! What the threads of a source share: batches of pages that wait for a channel, and how far the channels are.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Compression, Ending};
use crate::error::{Error, Result};
use crate::ram::PageCount;

/// Pages of one block that go in one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) block: usize,
    /// At most [`PACKET_PAGES`](super::packet::PACKET_PAGES).
    pub(crate) offsets: Vec<u64>,
}

/// What a channel has to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Send these pages.
    Pages(Batch),
    /// Send a packet with flag SYNC.
    Sync,
    /// Nothing any more.
    End,
}

/// The channels of one outgoing migration. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct Senders(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    channels: u8,
    compression: Compression,
    state: Mutex<State>,
    /// There is something to do.
    work: Condvar,
    /// A channel has come to the flush, or has failed.
    progress: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Batch>,
    /// Flushes asked for.
    flushes: u64,
    /// Channels that have not come to the last of them.
    unflushed: u8,
    /// Number of the next packet.
    number: u64,
    sent: PageCount,
    bytes: u64,
    ending: Ending,
}

impl Senders {
    /// For a migration over so many channels besides the main one.
    pub fn new(channels: u8, compression: Compression) -> Self {
        let (state, work, progress) = (Mutex::default(), Condvar::new(), Condvar::new());
        Self(Arc::new(Shared { channels, compression, state, work, progress }))
    }

    /// How many channels there are besides the main one.
    pub fn channels(&self) -> u8 {
        self.0.channels
    }

    /// The migration is over: the channels' threads end.
    pub fn close(&self) {
        self.lock().ending.is_over = true;
        self.0.work.notify_all();
        self.0.progress.notify_all();
    }

    pub(crate) fn compression(&self) -> Compression {
        self.0.compression
    }

    /// Pages that the channels have sent.
    pub(crate) fn sent(&self) -> PageCount {
        self.lock().sent
    }

    /// Bytes that the channels have sent.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Some channel will send them.
    pub(crate) fn push(&self, batch: Batch) {
        if batch.offsets.is_empty() {
            return;
        }
        self.lock().queue.push_back(batch);
        self.0.work.notify_one();
    }

    /// Each channel is to say SYNC behind all pages so far. No page may be pushed until all have.
    pub(crate) fn begin_flush(&self) {
        let mut state = self.lock();
        state.flushes += 1;
        state.unflushed = self.0.channels;
        drop(state);
        self.0.work.notify_all();
    }

    /// Waits for so long until all channels have flushed; true if they have.
    ///
    /// # Errors
    /// Why a channel failed.
    pub(crate) fn await_flush(&self, timeout: Duration) -> Result<bool> {
        let mut state = self.lock();
        if state.unflushed > 0 && state.ending.failure.is_none() {
            let waited = self.0.progress.wait_timeout(state, timeout);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.ending.check().map(|()| state.unflushed == 0)
    }

    /// An error if a channel has failed: the first one's, once.
    pub(crate) fn check(&self) -> Result<()> {
        self.lock().ending.check()
    }

    /// A channel: waits for what it has to do; it has flushed so many times.
    pub(crate) fn task(&self, flushed: u64) -> Task {
        let mut state = self.lock();
        loop {
            if state.ending.is_over {
                return Task::End;
            }
            if let Some(batch) = state.queue.pop_front() {
                return Task::Pages(batch);
            }
            if flushed < state.flushes {
                return Task::Sync;
            }
            state = self.0.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A channel: the number of its next packet.
    pub(crate) fn number(&self) -> u64 {
        let mut state = self.lock();
        let number = state.number;
        state.number += 1;
        number
    }

    /// A channel: it has sent these pages.
    pub(crate) fn add(&self, pages: PageCount, bytes: u64) {
        let mut state = self.lock();
        state.sent = state.sent.and(pages);
        state.bytes += bytes;
    }

    /// A channel: it has sent SYNC, in so many bytes.
    pub(crate) fn flushed(&self, bytes: u64) {
        let mut state = self.lock();
        state.bytes += bytes;
        state.unflushed = state.unflushed.saturating_sub(1);
        drop(state);
        self.0.progress.notify_all();
    }

    /// A channel: it cannot go on. What follows from the end of the migration says nothing new.
    pub(crate) fn fail(&self, error: Error) {
        self.lock().ending.fail(error);
        self.0.work.notify_all();
        self.0.progress.notify_all();
    }

    /// A channel: true if the migration is over.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().ending.is_over
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
