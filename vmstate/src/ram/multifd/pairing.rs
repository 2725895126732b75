//! Decides which channels belong to an incoming migration, and when everything sent before a flush has arrived.
//!
//! No message tells a destination the number of channels. It need not know: a source numbers the packets of all channels
//! together, and sends SYNC on each channel once before the first page. So from the second flush on, a missing channel leaves a
//! gap in the numbers.
//!
//! An opening proves nothing: that of another migration's channel differs only in its uuid, and may arrive first. A channel
//! counts only once it sends more than its opening after the main channel has passed its first flush, as each channel of the
//! migration does before the second flush. A silent connection therefore reserves no uuid and no number.

use super::Opening;
use super::numbers::Numbers;
use crate::error::{Error, ErrorKind, Result};

/// The channels of one incoming migration.
#[derive(Debug, Default)]
pub struct Pairing {
    channels: Vec<Channel>,
    numbers: Numbers,
    /// Number of completed flushes.
    flushes: u64,
}

#[derive(Debug)]
struct Channel {
    opening: Opening,
    /// Number of SYNCs that it has sent.
    syncs: u64,
    /// True if it was closed after a SYNC, as by a source that has sent everything.
    closed: bool,
}

impl Pairing {
    /// The number of channels that belong to the migration.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The number of completed flushes.
    pub fn flushes(&self) -> u64 {
        self.flushes
    }

    /// Accepts a channel whose first packet, with its first SYNC, has this number: from now on the channel belongs to the
    /// migration.
    ///
    /// # Errors
    /// The channel does not belong to the migration, which continues without it.
    pub fn join(&mut self, opening: Opening, number: u64) -> Result<()> {
        let refuse = |message: String| Err(Error::new(ErrorKind::Peer, message));
        if self.channels.iter().any(|channel| channel.opening.uuid != opening.uuid) {
            return refuse(format!("its uuid {:02x?} is not that of the other channels", opening.uuid));
        }
        if self.channels.iter().any(|channel| channel.opening.id == opening.id) {
            return refuse(format!("there is a channel {} already", opening.id));
        }
        // There are at most as many numbers as channels.
        if number > u64::from(u8::MAX) {
            return refuse(format!("its first packet has number {number}"));
        }
        self.numbers.take(number)?;
        self.channels.push(Channel { opening, syncs: 1, closed: false });
        Ok(())
    }

    /// Records that a packet of channel `id` has arrived, with its pages.
    ///
    /// # Errors
    /// `Malformed` if its number is impossible.
    pub fn add(&mut self, id: u8, number: u64, sync: bool) -> Result<()> {
        self.numbers.take(number)?;
        if let Some(channel) = self.channel(id) {
            channel.syncs += u64::from(sync);
        }
        Ok(())
    }

    /// Records that channel `id` was closed after a SYNC.
    pub fn close(&mut self, id: u8) {
        if let Some(channel) = self.channel(id) {
            channel.closed = true;
        }
    }

    /// Called when the main channel has reached a flush: true if everything sent before it has arrived, which completes the
    /// flush. No page is sent before the first flush, so it does not wait for channels.
    ///
    /// # Errors
    /// `Io` if a channel was closed before its SYNC.
    pub fn pass(&mut self) -> Result<bool> {
        let flush = self.flushes + 1;
        if let Some(channel) = self.channels.iter().find(|channel| channel.closed && channel.syncs < flush) {
            let message = format!("page channel {} was closed before all of its pages came", channel.opening.id);
            return Err(Error::new(ErrorKind::Io, message));
        }
        let all_there = !self.channels.is_empty() && self.channels.iter().all(|channel| channel.syncs >= flush);
        let passes = self.flushes == 0 || (all_there && self.numbers.is_gapless());
        self.flushes += u64::from(passes);
        Ok(passes)
    }

    fn channel(&mut self, id: u8) -> Option<&mut Channel> {
        self.channels.iter_mut().find(|channel| channel.opening.id == id)
    }
}
