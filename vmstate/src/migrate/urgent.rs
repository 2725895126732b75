//! The second connection of a post-copy migration, which carries only requested pages (`postcopy-preempt`): page records as in the RAM
//! section, without header, section or answer, up to the record that ends a section's body or the end of the connection
//! (`postcopy_preempt_thread`, migration/postcopy-ram.c).

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::postcopy_ram::PostcopyRam;
use super::wire::is_wait;
use crate::channel::Channel;
use crate::codec::{Limits, Outbox, Reader, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::receiver::{RamReceiver, RamRecord};
use crate::ram::{GuestRam, PageCount};

/// Bytes received at once: 15 pages, more than the guest's vCPUs usually wait for.
const CAPACITY: usize = 64 << 10;

/// Most receives in one call: a peer that sends without end must not stop the work of the main channel.
const RECEIVES: u32 = 16;

/// The source's end.
pub(super) struct OutgoingUrgent {
    channel: Box<dyn Channel>,
    /// Records that the connection has not accepted yet.
    pub(super) outbox: Outbox,
}

impl OutgoingUrgent {
    pub(super) fn new(channel: Box<dyn Channel>) -> Self {
        Self { channel, outbox: Outbox::new() }
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.channel.descriptor()
    }

    /// Sends as many bytes as the connection accepts without waiting, and returns their number.
    ///
    /// # Errors
    /// Guest memory cannot be read; the connection is broken.
    pub(super) fn send(&mut self, ram: &dyn GuestRam) -> Result<u64> {
        let before = self.outbox.len();
        while !self.outbox.is_empty() {
            match self.channel.send_outbox(&self.outbox, ram, Duration::ZERO) {
                Ok(count) => self.outbox.advance((count as u64).min(self.outbox.len())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_wait(&error) => break,
                // An error of guest memory is inside of the I/O error.
                Err(error) => return Err(error.downcast().unwrap_or_else(Error::from)),
            }
        }
        let sent = before - self.outbox.len();
        if self.outbox.is_empty() {
            self.outbox.clear();
        }
        Ok(sent)
    }
}

/// The destination's end.
pub(super) struct IncomingUrgent<'a> {
    channel: Box<dyn Channel>,
    records: RamReceiver<'a>,
    received: Vec<u8>,
    /// Bytes of `received` that are not decoded yet.
    end: usize,
    /// Offset of `received[0]` in the bytes of this connection.
    offset: u64,
    /// Pages and bytes at the last [`take_figures`](Self::take_figures).
    looked_at: (PageCount, u64),
}

impl<'a> IncomingUrgent<'a> {
    pub(super) fn new(channel: Box<dyn Channel>, memory: &'a PostcopyRam<'a>) -> Self {
        Self {
            channel,
            records: RamReceiver::of(memory, memory.all_blocks()),
            received: vec![0; CAPACITY],
            end: 0,
            offset: 0,
            looked_at: (PageCount::default(), 0),
        }
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.channel.descriptor()
    }

    /// True if at least one page was received.
    pub(super) fn has_begun(&self) -> bool {
        self.records.received().total() > 0
    }

    /// Pages and bytes since the last call.
    pub(super) fn take_figures(&mut self) -> (PageCount, u64) {
        let (pages, bytes) = (self.records.received(), self.offset);
        let (before, bytes_before) = std::mem::replace(&mut self.looked_at, (pages, bytes));
        (pages.since(before), bytes - bytes_before)
    }

    /// Places the received pages in guest memory, without waiting; true at the end of the connection.
    ///
    /// # Errors
    /// `Malformed` for other records than pages of this guest; guest memory cannot be written; the connection is broken.
    pub(super) fn take(&mut self, strictness: Strictness, limits: Limits) -> Result<bool> {
        for _ in 0..RECEIVES {
            let free = self.received.get_mut(self.end..).unwrap_or_default();
            match self.channel.receive(free, Duration::ZERO) {
                Ok(0) if self.end == 0 => return Ok(true),
                Ok(0) => {
                    let closed = "the connection for requested pages was closed within a page";
                    return Err(Error::new(ErrorKind::Io, closed));
                }
                Ok(count) => self.end += count.min(free.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_wait(&error) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
            if self.put_pages(strictness, limits)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Places the pages of all complete records; true at the record that ends the pages of this connection.
    fn put_pages(&mut self, strictness: Strictness, limits: Limits) -> Result<bool> {
        let at_hand = self.received.get(..self.end).unwrap_or_default();
        let mut input = Reader::new(at_hand, self.offset, strictness, limits);
        let is_over = loop {
            match self.records.read_records(&mut input) {
                Ok(RamRecord::Page) => {}
                Ok(RamRecord::End) => break true,
                Ok(RamRecord::Flush) => {
                    return Err(input.malformed("a flush of page channels among requested pages"));
                }
                Err(error) if error.is_incomplete() => break false,
                Err(error) => return Err(error),
            }
        };
        let taken = input.consumed();
        self.received.copy_within(taken..self.end, 0);
        self.end -= taken;
        self.offset += taken as u64;
        Ok(is_over)
    }
}
