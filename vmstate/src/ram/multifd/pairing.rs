//! Which channels belong to an incoming migration, and when all that was sent before a flush is here.
//!
//! Nobody tells a destination how many channels there are. It need not know: a source counts the packets of all channels
//! together, and says SYNC on each channel once before the first page. So from the second flush on, a channel that is not here
//! yet leaves a gap in the numbers.
//!
//! An opening proves nothing: that of another migration's channel differs by its uuid alone, and may come first. A channel counts once it
//! sends more than its introduction when the main channel has passed its first flush, as each one of the migration does before the second:
//! whoever is silent then fixes no uuid and no number.

use super::Opening;
use super::numbers::Numbers;
use crate::error::{Error, ErrorKind, Result};

/// The channels of one incoming migration.
#[derive(Debug, Default)]
pub struct Pairing {
    channels: Vec<Channel>,
    numbers: Numbers,
    /// Flushes that are over.
    flushes: u64,
}

#[derive(Debug)]
struct Channel {
    opening: Opening,
    /// How often it has said SYNC.
    syncs: u64,
    /// It was closed behind a SYNC, as by a source that has sent all.
    closed: bool,
}

impl Pairing {
    /// How many channels belong to the migration.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Flushes that are over.
    pub fn flushes(&self) -> u64 {
        self.flushes
    }

    /// A channel goes on whose first packet, with its first SYNC, has this number: from now on it belongs to the migration.
    ///
    /// # Errors
    /// It does not; the migration goes on without it.
    pub fn join(&mut self, opening: Opening, number: u64) -> Result<()> {
        let refuse = |message: String| Err(Error::new(ErrorKind::Peer, message));
        if self.channels.iter().any(|channel| channel.opening.uuid != opening.uuid) {
            return refuse(format!("its uuid {:02x?} is not that of the other channels", opening.uuid));
        }
        if self.channels.iter().any(|channel| channel.opening.id == opening.id) {
            return refuse(format!("there is a channel {} already", opening.id));
        }
        // As many numbers as there can be channels.
        if number > u64::from(u8::MAX) {
            return refuse(format!("its first packet has number {number}"));
        }
        self.numbers.take(number)?;
        self.channels.push(Channel { opening, syncs: 1, closed: false });
        Ok(())
    }

    /// A packet of channel `id` is here, with its pages.
    ///
    /// # Errors
    /// `Malformed` if its number cannot be.
    pub fn add(&mut self, id: u8, number: u64, sync: bool) -> Result<()> {
        self.numbers.take(number)?;
        if let Some(channel) = self.channel(id) {
            channel.syncs += u64::from(sync);
        }
        Ok(())
    }

    /// Channel `id` was closed behind a SYNC.
    pub fn close(&mut self, id: u8) {
        if let Some(channel) = self.channel(id) {
            channel.closed = true;
        }
    }

    /// The main channel has come to a flush: true if all that was sent before it is here, and the flush is over. No page is sent
    /// before the first one, so nobody waits for channels then.
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
