//! A destination's thread for one page channel: receives packets, and checks each before a byte of it is written to guest memory.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::zstd::Decompressor;
use super::{SLICE, each_run, in_channel, is_transient};
use crate::channel::Channel;
use crate::codec::PageRun;
use crate::error::{Error, ErrorKind, Result};
use crate::ram::multifd::Receivers;
use crate::ram::multifd::packet::{Coding, HEADER, OPENING, Opening, PACKET_PAGES, Packet, runs};
use crate::ram::{GuestRam, PAGE, PAGE_SIZE, RamBlock};

/// How long a connection may take for its opening as a page channel of the migration.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// The work of one page channel at a destination.
#[derive(Debug)]
pub struct ReceiveWorker {
    receivers: Receivers,
}

impl Receivers {
    /// The work for a connection that may be a page channel of the migration.
    pub fn worker(&self) -> ReceiveWorker {
        ReceiveWorker { receivers: self.clone() }
    }
}

impl ReceiveWorker {
    /// Receives pages into `ram` until the migration has ended or the channel is closed; a failure ends the migration.
    ///
    /// # Errors
    /// The channel does not belong to the migration, which continues without it.
    pub fn run(self, channel: &mut dyn Channel, ram: &dyn GuestRam) -> Result<()> {
        let mut incoming = Incoming { channel, receivers: &self.receivers };
        let Some((id, blocks, header)) = incoming.begin()? else { return Ok(()) };
        let mut receiving = Receiving { incoming, ram, pages: vec![0; PACKET_PAGES * PAGE], decompressor: None };
        if let Err(error) = receiving.all(id, blocks, header) {
            self.receivers.fail(in_channel(id, error));
        }
        Ok(())
    }
}

/// The result of [`Incoming::begin`].
type Begun = (u8, Arc<[RamBlock]>, [u8; HEADER]);

/// The receiving side of the channel.
struct Incoming<'a> {
    channel: &'a mut dyn Channel,
    receivers: &'a Receivers,
}

/// The result of [`Incoming::fill`].
#[derive(PartialEq, Eq)]
enum Filled {
    Whole,
    /// The channel was closed before the first byte.
    Closed,
}

impl Incoming<'_> {
    /// Makes the channel one of the migration's. Its opening is not enough, because a channel of another migration has one as
    /// well: it must send its next packet when the migration's channels may. Returns its number and the header of that packet;
    /// `None` if the migration ends before.
    fn begin(&mut self) -> Result<Option<Begun>> {
        let (opening, first) = self.opening()?;
        let Some(blocks) = self.receivers.await_start() else { return Ok(None) };
        let mut header = [0; HEADER];
        match self.fill(&mut header, None) {
            Err(_) if self.receivers.is_over() => return Ok(None),
            Err(error) => return Err(error),
            Ok(Filled::Closed) => return Err(closed_before_pages()),
            Ok(Filled::Whole) => {}
        }
        // A packet that the migration cannot use fails the migration; bytes that are no packet show that this is not one of its
        // channels.
        match Packet::read(&header, &blocks) {
            Err(error) if error.kind() == ErrorKind::Malformed => return Err(error),
            _ => self.receivers.join(opening, first)?,
        }
        Ok(Some((opening.id, blocks, header)))
    }

    /// Reads the channel's opening, and the number of its first SYNC.
    fn opening(&mut self) -> Result<(Opening, u64)> {
        let until = Some(Instant::now() + OPENING_TIMEOUT);
        let (mut opening, mut first) = ([0; OPENING], [0; HEADER]);
        for bytes in [opening.as_mut_slice(), &mut first] {
            if self.fill(bytes, until)? == Filled::Closed {
                return Err(closed_before_pages());
            }
        }
        Ok((Opening::read(&opening)?, Packet::read(&first, &[])?.number))
    }

    /// Receives bytes until the buffer is full.
    fn fill(&mut self, bytes: &mut [u8], until: Option<Instant>) -> Result<Filled> {
        let mut filled = 0;
        while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.channel.receive(room, SLICE) {
                Ok(0) if filled == 0 => return Ok(Filled::Closed),
                Ok(0) => return Err(cut_off()),
                Ok(count) => filled += count,
                Err(error) if is_transient(&error) && !self.receivers.is_over() => {
                    if until.is_some_and(|until| Instant::now() >= until) {
                        return Err(error.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Filled::Whole)
    }

    /// Receives pages to their places in memory.
    fn pages(&mut self, mut runs: &mut [PageRun], ram: &dyn GuestRam) -> Result<()> {
        while !runs.is_empty() {
            match self.channel.receive_pages(runs, ram, SLICE) {
                Ok(0) => return Err(cut_off()),
                Ok(count) => PageRun::advance_slices(&mut runs, count as u64),
                Err(error) if is_transient(&error) && !self.receivers.is_over() => {}
                // An error of guest memory is the inner error.
                Err(error) => return Err(error.downcast().unwrap_or_else(Error::from)),
            }
        }
        Ok(())
    }
}

struct Receiving<'a> {
    incoming: Incoming<'a>,
    ram: &'a dyn GuestRam,
    /// The pages of a compressed packet.
    pages: Vec<u8>,
    decompressor: Option<Decompressor>,
}

impl Receiving<'_> {
    /// Receives everything after the first SYNC, beginning with this header.
    fn all(&mut self, id: u8, mut blocks: Arc<[RamBlock]>, mut header: [u8; HEADER]) -> Result<()> {
        let receivers = self.incoming.receivers;
        for sync in 2.. {
            self.until_sync(id, &blocks, &mut header)?;
            let Some(permitted) = receivers.await_permission(sync) else { break };
            blocks = permitted;
            if self.incoming.fill(&mut header, None)? == Filled::Closed {
                receivers.closed(id);
                break;
            }
        }
        Ok(())
    }

    /// Receives packets up to the next SYNC; the first has this header.
    fn until_sync(&mut self, id: u8, blocks: &Arc<[RamBlock]>, header: &mut [u8; HEADER]) -> Result<()> {
        loop {
            let packet = Packet::read(header, blocks)?;
            self.take(&packet)?;
            let bytes = HEADER + packet.payload;
            self.incoming.receivers.add(id, packet.number, packet.sync, packet.pages.count(), bytes as u64)?;
            if packet.sync {
                return Ok(());
            }
            if self.incoming.fill(header, None)? == Filled::Closed {
                return Err(Error::new(ErrorKind::Io, "the connection was closed before all pages came"));
            }
        }
    }

    /// Stores the pages of a packet.
    fn take(&mut self, packet: &Packet) -> Result<()> {
        let pages = &packet.pages;
        match packet.coding {
            Coding::Raw => self.incoming.pages(&mut runs(pages.block, &pages.normal).collect::<Vec<_>>(), self.ram)?,
            Coding::Zstd if packet.payload > 0 => self.decompress(packet)?,
            Coding::Zstd => {}
        }
        runs(pages.block, &pages.zero).try_for_each(|run| self.ram.zero_run(run.block, run.offset, run.len / PAGE_SIZE))
    }

    /// Decompresses into a copy first, so that the guest's pages stay unchanged if the decompression fails.
    fn decompress(&mut self, packet: &Packet) -> Result<()> {
        let pages = &packet.pages;
        let all = self.pages.get_mut(..pages.normal.len() * PAGE).unwrap_or_default();
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(Decompressor::new()?),
        };
        if self.incoming.fill(decompressor.input(packet.payload), None)? == Filled::Closed {
            return Err(cut_off());
        }
        decompressor.decompress(packet.payload, all)?;
        each_run(pages, all, |run, bytes| self.ram.write(run.block, run.offset, bytes))
    }
}

fn closed_before_pages() -> Error {
    Error::new(ErrorKind::Io, "the connection was closed before the first page")
}

fn cut_off() -> Error {
    let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
    Error::new(ErrorKind::Io, "the connection was closed within a packet").with_source(closed)
}
