//! A source's thread for one page channel: determines which pages are zero, and sends packets.

use super::zstd::Compressor;
use super::{SLICE, each_run, in_channel, is_transient};
use crate::channel::Channel;
use crate::codec::Outbox;
use crate::error::{Error, ErrorKind, Result};
use crate::ram::multifd::batch::Batch;
use crate::ram::multifd::packet::{Coding, Opening, PACKET_PAGES, Packet, PacketPages, runs};
use crate::ram::multifd::{Compression, Senders, Task};
use crate::ram::{GuestRam, PAGE, PageCount};

/// Packets are sent together once they have this many bytes: those of zero pages are short, and a system call and a wake-up of
/// the destination for each would cost as much as reading the pages.
const ENOUGH: u64 = 16 << 10;

/// The work for one page channel at a source. Dropping it before its end makes the migration fail.
#[derive(Debug)]
pub struct SendWorker {
    id: u8,
    senders: Senders,
}

impl Senders {
    /// The work for the channel of this number, from 0 on; run each once.
    pub fn worker(&self, id: u8) -> SendWorker {
        SendWorker { id, senders: self.clone() }
    }
}

impl SendWorker {
    /// Sends pages of `ram` until the migration has ended; a failure ends the migration.
    pub fn run(self, channel: &mut dyn Channel, ram: &dyn GuestRam) {
        let mut sending = Sending {
            senders: &self.senders,
            channel,
            ram,
            outbox: Outbox::new(),
            put: PageCount::default(),
            since_sync: PageCount::default(),
            pages: PacketPages::default(),
            copy: vec![0; PACKET_PAGES * PAGE],
            compressor: None,
        };
        match sending.all(self.id) {
            Ok(()) => {}
            Err(error) => self.senders.fail(in_channel(self.id, error)),
        }
    }
}

impl Drop for SendWorker {
    fn drop(&mut self) {
        if !self.senders.is_over() {
            self.senders.fail(Error::new(ErrorKind::Misuse, format!("page channel {} has no thread", self.id)));
        }
    }
}

struct Sending<'a> {
    senders: &'a Senders,
    channel: &'a mut dyn Channel,
    ram: &'a dyn GuestRam,
    /// Whole packets.
    outbox: Outbox,
    /// The pages in the outbox's packets.
    put: PageCount,
    /// Pages sent since the last SYNC.
    since_sync: PageCount,
    /// The pages of the current packet.
    pages: PacketPages,
    /// The pages of a packet, while they are compressed.
    copy: Vec<u8>,
    compressor: Option<Compressor>,
}

impl Sending<'_> {
    fn all(&mut self, id: u8) -> Result<()> {
        if let Compression::Zstd { level } = self.senders.compression() {
            self.compressor = Some(Compressor::new(level)?);
        }
        // A QEMU without the option `-uuid` has this uuid, too, and accepts no other.
        self.outbox.put(&Opening { uuid: [0; 16], id }.to_bytes());
        self.transmit()?;
        let mut flushed = 0;
        loop {
            match self.senders.task(id, flushed, self.outbox.is_empty()) {
                Task::Pages(number, batch) => {
                    self.put(number, &batch)?;
                    if self.outbox.len() >= ENOUGH {
                        self.send()?;
                    }
                }
                Task::Nothing => self.send()?,
                Task::Sync(number) => {
                    self.send()?;
                    self.outbox.put(&Packet::sync(number).to_bytes(""));
                    self.senders.flushing(flushed, std::mem::take(&mut self.since_sync), self.outbox.len());
                    self.transmit()?;
                    self.senders.synced();
                    flushed += 1;
                }
                Task::End => return Ok(()),
            }
        }
    }

    /// Adds a packet to the outbox. Writes of the guest to a page after it was read are in the dirty log.
    fn put(&mut self, number: u64, batch: &Batch) -> Result<()> {
        batch.sort(self.ram, &mut self.pages)?;
        let compressed = match &mut self.compressor {
            None => None,
            Some(compressor) => {
                each_run(&self.pages, &mut self.copy, |run, copy| self.ram.read(run.block, run.offset, copy))?;
                let copies = self.copy.as_chunks::<PAGE>().0.iter().take(self.pages.normal.len());
                Some(compressor.compress(copies.map(<[u8; PAGE]>::as_slice))?)
            }
        };
        let name = self.ram.blocks().get(batch.block).map_or("", |block| &block.name);
        let (coding, payload) = match compressed {
            Some(bytes) => (Coding::Zstd, bytes.len()),
            None => (Coding::Raw, self.pages.normal.len() * PAGE),
        };
        let packet = Packet { number, sync: false, coding, payload, pages: std::mem::take(&mut self.pages) };
        self.outbox.put(&packet.to_bytes(name));
        match compressed {
            Some(bytes) => self.outbox.put(bytes),
            None => runs(packet.pages.block, &packet.pages.normal).for_each(|run| self.outbox.put_pages(run)),
        }
        self.put = self.put.and(packet.pages.count());
        self.pages = packet.pages;
        Ok(())
    }

    /// Sends the packets, and counts their pages.
    fn send(&mut self) -> Result<()> {
        let bytes = self.outbox.len();
        self.transmit()?;
        let pages = std::mem::take(&mut self.put);
        self.since_sync = self.since_sync.and(pages);
        self.senders.add(pages, bytes);
        Ok(())
    }

    /// Sends the outbox. The timeouts of the main channel apply to the peer.
    fn transmit(&mut self) -> Result<()> {
        while !self.outbox.is_empty() {
            match self.channel.send_outbox(&self.outbox, self.ram, SLICE) {
                Ok(count) => self.outbox.advance(count as u64),
                Err(error) if is_transient(&error) && !self.senders.is_over() => {}
                // An error of guest memory is the inner error.
                Err(error) => return Err(error.downcast().unwrap_or_else(Error::from)),
            }
        }
        self.outbox.clear();
        Ok(())
    }
}
