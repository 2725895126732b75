//! The state that the threads of a source share: batches of pages that wait for a channel, and the progress of the channels.
//!
//! No thread waits at a flush: a channel that has sent SYNC takes batches from after the flush while others still send those
//! before it. The destination reads these once all channels have reached the flush. It takes a gap in the numbers of the packets
//! for a packet that has not arrived, so numbers are assigned in the order of the queue: the SYNCs of a flush have higher numbers
//! than all batches before it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::batch::Batch;
use super::{Compression, Ending};
use crate::error::{Error, Result};
use crate::ram::PageCount;
use crate::sync::{lock, wait, wait_while};

/// The next task of a channel, with the number of the packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Send these pages.
    Pages(u64, Batch),
    /// Send a packet with flag SYNC.
    Sync(u64),
    /// Nothing for now.
    Nothing,
    /// End the thread.
    End,
}

/// The channels of one outgoing migration. Clones share the state.
#[derive(Clone, Debug)]
pub struct Senders(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    channels: u8,
    compression: Compression,
    state: Mutex<State>,
    /// Signalled when there is a task.
    work: Condvar,
    /// Signalled when the number of unsent pages has fallen to the awaited one, and when a channel has sent SYNC or failed.
    progress: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Queued>,
    /// Number of SYNCs that channels have sent.
    syncs: u64,
    /// Flushes that were begun and are not known to be complete, and the number of flushes before them.
    flushes: VecDeque<Flush>,
    over: u64,
    /// Number of the next packet.
    number: u64,
    /// Pages that were given to the channels.
    given: u64,
    sent: PageCount,
    /// Pages that were given before completed flushes.
    arrived: PageCount,
    bytes: u64,
    /// The number of unsent pages that a thread waits for.
    awaited: Option<u64>,
    ending: Ending,
}

#[derive(Debug)]
struct Queued {
    batch: Batch,
    number: u64,
    /// Number of flushes before this batch.
    flush: u64,
}

#[derive(Debug)]
struct Flush {
    /// Number of the SYNC packet of channel 0; those of the other channels follow.
    number: u64,
    /// Number of channels that have not reached the flush.
    to_come: u8,
    /// Pages that the other channels have sent since the previous flush.
    pages: PageCount,
}

impl Senders {
    /// Creates the state for a migration over this many channels besides the main one.
    pub fn new(channels: u8, compression: Compression) -> Self {
        let (state, work, progress) = (Mutex::default(), Condvar::new(), Condvar::new());
        Self(Arc::new(Shared { channels, compression, state, work, progress }))
    }

    /// The number of channels besides the main one.
    pub fn channels(&self) -> u8 {
        self.0.channels
    }

    /// Ends the channels' threads, after the end of the migration.
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

    /// Pages that were given to the channels and are not sent yet.
    pub(crate) fn unsent(&self) -> u64 {
        self.lock().unsent()
    }

    /// Bytes that the channels have sent.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Queues batches after all flushes so far, for any channel to send.
    pub(crate) fn push(&self, batches: Vec<Batch>) {
        let wakes = batches.len().min(self.0.channels.into());
        let mut state = self.lock();
        let flush = state.begun();
        for batch in batches {
            state.given += batch.pages();
            let number = state.take_numbers(1);
            state.queue.push_back(Queued { batch, number, flush });
        }
        drop(state);
        for _ in 0..wakes {
            self.0.work.notify_one();
        }
    }

    /// Makes each channel send SYNC between the pages that it was given so far and those that it is given from now on.
    pub(crate) fn begin_flush(&self) {
        let mut state = self.lock();
        let number = state.take_numbers(self.0.channels);
        state.flushes.push_back(Flush { number, to_come: self.0.channels, pages: PageCount::default() });
        drop(state);
        self.0.work.notify_all();
    }

    /// The number of flushes that were begun.
    pub(crate) fn flushes(&self) -> u64 {
        self.lock().begun()
    }

    /// Called when the destination reports that this flush, from 1 on, is complete; returns the pages sent between the last flush
    /// known to be complete and this one.
    pub(crate) fn arrived(&self, flush: u64) -> PageCount {
        let mut state = self.lock();
        let mut pages = PageCount::default();
        while let Some(first) = state.flushes.front().filter(|first| first.to_come == 0)
            && state.over < flush
        {
            pages = pages.and(first.pages);
            state.flushes.pop_front();
            state.over += 1;
        }
        state.arrived = state.arrived.and(pages);
        pages
    }

    /// Pages that were sent, and that the destination has not reported as arrived.
    pub(crate) fn unanswered(&self) -> PageCount {
        let state = self.lock();
        state.sent.since(state.arrived)
    }

    /// Waits up to `timeout` until each channel has sent the SYNCs of all flushes so far; true if they have. Before the first
    /// SYNC, a channel sends its opening.
    ///
    /// # Errors
    /// Why a channel failed.
    pub(crate) fn await_synced(&self, timeout: Duration) -> Result<bool> {
        let state = self.lock();
        let syncs = state.begun() * u64::from(self.0.channels);
        self.await_progress(state, timeout, |state| state.syncs >= syncs)
    }

    /// Called by a channel that has sent a SYNC.
    pub(crate) fn synced(&self) {
        self.lock().syncs += 1;
        self.0.progress.notify_all();
    }

    /// Waits up to `timeout` until at most `most` pages are unsent; true if so.
    ///
    /// # Errors
    /// Why a channel failed.
    pub(crate) fn await_sent(&self, most: u64, timeout: Duration) -> Result<bool> {
        let mut state = self.lock();
        state.awaited = Some(most);
        self.await_progress(state, timeout, |state| state.unsent() <= most)
    }

    fn await_progress(
        &self,
        state: MutexGuard<'_, State>,
        timeout: Duration,
        is_done: impl Fn(&State) -> bool,
    ) -> Result<bool> {
        let waits = |state: &mut State| !is_done(state) && state.ending.failure.is_none();
        let mut state = wait_while(&self.0.progress, state, timeout, waits);
        state.awaited = None;
        state.ending.check().map(|()| is_done(&state))
    }

    /// Returns the error of the first channel that failed, once.
    pub(crate) fn check(&self) -> Result<()> {
        self.lock().ending.check()
    }

    /// The next task of channel `id`, which has reached this many flushes. Waits for a task if `waits`.
    pub(crate) fn task(&self, id: u8, flushed: u64, waits: bool) -> Task {
        let mut state = self.lock();
        loop {
            if state.ending.is_over {
                return Task::End;
            }
            if state.queue.front().is_some_and(|first| first.flush == flushed)
                && let Some(Queued { batch, number, .. }) = state.queue.pop_front()
            {
                return Task::Pages(number, batch);
            }
            if let Some(flush) = state.flush(flushed) {
                return Task::Sync(flush.number + u64::from(id));
            }
            if !waits {
                return Task::Nothing;
            }
            state = wait(&self.0.work, state);
        }
    }

    /// Called by a channel that has sent these pages, in this many bytes.
    pub(crate) fn add(&self, pages: PageCount, bytes: u64) {
        let mut state = self.lock();
        state.sent = state.sent.and(pages);
        state.bytes += bytes;
        if state.awaited.is_some_and(|most| state.unsent() <= most) {
            state.awaited = None;
            drop(state);
            self.0.progress.notify_all();
        }
    }

    /// Called by a channel that had reached `flushed` flushes, before it sends SYNC in this many bytes: it has sent these pages
    /// since its last SYNC. They are counted before the SYNC is sent, so that the count is complete when the destination reports
    /// its arrival.
    pub(crate) fn flushing(&self, flushed: u64, pages: PageCount, bytes: u64) {
        let mut state = self.lock();
        state.bytes += bytes;
        if let Some(flush) = state.flush(flushed) {
            flush.to_come = flush.to_come.saturating_sub(1);
            flush.pages = flush.pages.and(pages);
        }
    }

    /// Called by a channel that failed. Failures after the end of the migration are consequences of it and ignored.
    pub(crate) fn fail(&self, error: Error) {
        self.lock().ending.fail(error);
        self.0.work.notify_all();
        self.0.progress.notify_all();
    }

    /// Called by a channel: true if the migration has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().ending.is_over
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

impl State {
    fn unsent(&self) -> u64 {
        self.given.saturating_sub(self.sent.total())
    }

    /// The number of flushes that were begun.
    fn begun(&self) -> u64 {
        self.over + self.flushes.len() as u64
    }

    /// The flush after this many others.
    fn flush(&mut self, before: u64) -> Option<&mut Flush> {
        let index = usize::try_from(before.checked_sub(self.over)?).ok()?;
        self.flushes.get_mut(index)
    }

    /// Reserves this many numbers and returns the first.
    fn take_numbers(&mut self, count: u8) -> u64 {
        let first = self.number;
        self.number += u64::from(count);
        first
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::put_pages;
    use super::*;

    fn push(senders: &Senders, first: u64, count: u64) {
        let mut batches = Vec::new();
        put_pages(&mut batches, 0, first..first + count, false);
        senders.push(batches);
    }

    /// The number of a channel's next packet, and its first page.
    fn pages(senders: &Senders, id: u8, flushed: u64) -> (u64, u64) {
        match senders.task(id, flushed, false) {
            Task::Pages(number, batch) => (number, batch.touched[0].start),
            other => panic!("channel {id} behind {flushed} flushes: {other:?}"),
        }
    }

    fn sent(normal: u64) -> PageCount {
        PageCount { normal, zero: 0 }
    }

    /// A destination waits at a flush until no number is missing, and reads no channel beyond its SYNC: all numbers before a
    /// flush are lower than those after it, whichever channel takes them.
    #[test]
    fn a_channel_goes_on_behind_a_flush_while_another_has_still_to_come_to_it() {
        let senders = Senders::new(2, Compression::None);
        senders.begin_flush();
        push(&senders, 0, 256);
        senders.begin_flush();
        push(&senders, 1000, 1);
        assert_eq!(senders.task(1, 0, false), Task::Sync(1));
        assert_eq!((pages(&senders, 1, 1), pages(&senders, 1, 1)), ((2, 0), (3, 128)));
        assert_eq!(senders.task(1, 1, false), Task::Sync(5));
        assert_eq!(pages(&senders, 1, 2), (6, 1000));
        assert_eq!(senders.task(1, 2, false), Task::Nothing);
        assert_eq!([0, 1].map(|flushed| senders.task(0, flushed, false)), [Task::Sync(0), Task::Sync(4)]);
        assert_eq!(senders.task(0, 2, false), Task::Nothing);
    }

    #[test]
    fn an_answer_counts_what_all_channels_sent_before_its_flush() {
        let senders = Senders::new(2, Compression::None);
        push(&senders, 0, 300);
        senders.begin_flush();
        push(&senders, 300, 50);
        assert_eq!((senders.unsent(), senders.await_sent(349, Duration::ZERO).unwrap()), (350, false));
        senders.add(sent(128), 5000);
        senders.flushing(0, sent(128), 10);
        assert_eq!(senders.arrived(1), sent(0), "one channel has not come to the flush, whatever the peer says");
        senders.add(sent(172), 5000);
        senders.flushing(0, sent(172), 10);
        senders.add(sent(50), 7);
        assert_eq!((senders.unanswered(), senders.bytes()), (sent(350), 10_027));
        assert_eq!((senders.arrived(1), senders.arrived(1)), (sent(300), sent(0)));
        assert_eq!((senders.unanswered(), senders.unsent()), (sent(50), 0));
        assert!(senders.await_sent(0, Duration::ZERO).unwrap());
        // The flush is forgotten, but its channels are still known to have reached it.
        assert_eq!((senders.task(0, 1, false), senders.flushes()), (Task::Nothing, 1));
        senders.begin_flush();
        assert_eq!(senders.task(0, 1, false), Task::Sync(6));
    }

    #[test]
    fn a_waiting_thread_gets_the_failure() {
        let senders = Senders::new(1, Compression::None);
        push(&senders, 0, 1);
        senders.fail(Error::new(crate::error::ErrorKind::Io, "gone"));
        assert_eq!(senders.await_sent(0, Duration::from_secs(60)).unwrap_err().message(), "gone");
        assert_eq!(senders.task(0, 0, true), Task::End);
    }
}
