//! A source's thread of one page channel: finds out which pages are zero, and sends packets.

use super::zstd::Compressor;
use super::{SLICE, each_run, in_channel, is_transient};
use crate::channel::Channel;
use crate::codec::Outbox;
use crate::error::{Error, ErrorKind, Result};
use crate::ram::multifd::packet::{Coding, Opening, PACKET_PAGES, Packet, PacketPages, runs};
use crate::ram::multifd::{Batch, Compression, Senders, Task};
use crate::ram::{GuestRam, PAGE, PAGE_SIZE};

/// The work of one page channel at a source. Dropped before it has ended it makes the migration fail.
#[derive(Debug)]
pub struct SendWorker {
    id: u8,
    senders: Senders,
}

impl Senders {
    /// The work of the channel of this number, from 0 on; each is to be run once.
    pub fn worker(&self, id: u8) -> SendWorker {
        SendWorker { id, senders: self.clone() }
    }
}

impl SendWorker {
    /// Sends pages of `ram` until the migration is over; what goes wrong ends the migration.
    pub fn run(self, channel: &mut dyn Channel, ram: &dyn GuestRam) {
        let mut sending = Sending {
            senders: &self.senders,
            channel,
            ram,
            outbox: Outbox::new(),
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
            self.senders.fail(Error::new(ErrorKind::Misuse, format!("nobody works on page channel {}", self.id)));
        }
    }
}

struct Sending<'a> {
    senders: &'a Senders,
    channel: &'a mut dyn Channel,
    ram: &'a dyn GuestRam,
    outbox: Outbox,
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
        self.send()?;
        let mut flushed = 0;
        loop {
            match self.senders.task(flushed) {
                Task::Pages(batch) => self.pages(&batch)?,
                Task::Sync => {
                    self.outbox.put(&Packet::sync(self.senders.number()).to_bytes(""));
                    let bytes = self.send()?;
                    self.senders.flushed(bytes);
                    flushed += 1;
                }
                Task::End => return Ok(()),
            }
        }
    }

    /// Sends a packet. What the guest writes to a page after it was looked at is in the dirty log.
    fn pages(&mut self, batch: &Batch) -> Result<()> {
        let pages = self.sorted(batch)?;
        let count = pages.count();
        let compressed = match &mut self.compressor {
            None => None,
            Some(compressor) => {
                each_run(&pages, &mut self.copy, |run, copy| self.ram.read(run.block, run.offset, copy))?;
                let copies = self.copy.as_chunks::<PAGE>().0.iter().take(pages.normal.len());
                Some(compressor.compress(copies.map(<[u8; PAGE]>::as_slice))?)
            }
        };
        let name = self.ram.blocks().get(batch.block).map_or("", |block| &block.name);
        let (coding, payload) = match compressed {
            Some(bytes) => (Coding::Zstd, bytes.len()),
            None => (Coding::Raw, pages.normal.len() * PAGE),
        };
        let packet = Packet { number: self.senders.number(), sync: false, coding, payload, pages };
        self.outbox.put(&packet.to_bytes(name));
        match compressed {
            Some(bytes) => self.outbox.put(bytes),
            None => runs(packet.pages.block, &packet.pages.normal).for_each(|run| self.outbox.put_pages(run)),
        }
        let bytes = self.send()?;
        self.senders.add(count, bytes);
        Ok(())
    }

    /// The pages by what goes of them.
    fn sorted(&self, batch: &Batch) -> Result<PacketPages> {
        let mut pages = PacketPages { block: batch.block, ..PacketPages::default() };
        // Runs that fit into the answer of a look, one bit for each page.
        let looks = batch.offsets.chunks(u64::BITS as usize);
        for run in looks.flat_map(|offsets| runs(batch.block, offsets)) {
            let count = run.len / PAGE_SIZE;
            let zeros = self.ram.zero_pages(run.block, run.offset, u32::try_from(count).unwrap_or(u32::MAX))?;
            for page in 0..count {
                let kind = if zeros >> page & 1 == 1 { &mut pages.zero } else { &mut pages.normal };
                kind.push(run.offset + page * PAGE_SIZE);
            }
        }
        Ok(pages)
    }

    /// Sends the outbox, and returns how many bytes that were. How long the peer may take for it is the main channel's concern.
    fn send(&mut self) -> Result<u64> {
        let bytes = self.outbox.len();
        while !self.outbox.is_empty() {
            match self.channel.send_outbox(&self.outbox, self.ram, SLICE) {
                Ok(count) => self.outbox.advance(count as u64),
                Err(error) if is_transient(&error) && !self.senders.is_over() => {}
                // What memory refused is within.
                Err(error) => return Err(error.downcast().unwrap_or_else(Error::from)),
            }
        }
        self.outbox.clear();
        Ok(bytes)
    }
}
