//! Descriptor chains as a driver makes them: well-formed ones, and very long ones.

use super::driver::{Driver, INTERRUPT_ACK};
use super::hosts::Host;
use super::world::{INTERRUPT_STATUS, MEMORY, USED_BUFFERS};
use crate::program::Program;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Distance between two queues; within it, the offsets of a queue's available ring and used ring, after its
/// descriptors.
pub(super) const QUEUE: u64 = 0x4000;
pub(super) const AVAILABLE: u64 = 0x2000;
pub(super) const USED: u64 = 0x3000;
/// Addresses of the indirect tables and the buffers of [`Driver::request`], each in one of [`SLOTS`] slots.
const TABLES: u64 = 3 * QUEUE;
const DATA: u64 = 4 * QUEUE;
const DATA_BYTES: u64 = MEMORY as u64 / 4;
const SLOT: u64 = 0x800;
const SLOTS: u64 = 16;
/// Bits of a request's `pieces`: the chain has an indirect table; it is eight times as large, except for the last byte;
/// the driver notifies the device only if the device asks for notifications, and asks for an interrupt.
pub(super) const IN_TABLE: u8 = 0x80;
pub(super) const LARGE: u8 = 0x40;
pub(super) const POLITE: u8 = 0x20;
/// Bit of the argument of a long chain: all buffers but the first are device-writable.
pub(super) const TO_DRIVER: u8 = 8;
/// Address of the table of a long chain, and its largest number of entries.
const LONG_TABLE: u64 = DATA + DATA_BYTES;
const ENTRIES_MAX: u16 = 2047;
/// Number of a request's first bytes that the program gives, as a disk's header and a range to erase.
pub(super) const FIRST_BYTES: usize = 32;

impl<H: Host> Driver<H> {
    pub(super) fn publish(&self, queue: u64, head: u16) {
        let available = queue * QUEUE + AVAILABLE;
        let index = self.worlds[0].load16(available + 2);
        self.store(available + 4 + 2 * u64::from(index % self.queue_size), &head.to_le_bytes());
        self.store(available + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// Makes a well-formed chain of some pieces, with an indirect table or without.
    pub(super) fn request(&mut self, queue: u64, program: &mut Program<'_>) {
        let (pieces, mut reads, mut writes) = (program.u8(), u32::from(program.u16()), u32::from(program.u16()));
        let bytes = program.bytes(FIRST_BYTES.min(reads as usize));
        let slot = self.next % SLOTS;
        self.next += 1;
        self.store(DATA + slot * SLOT, bytes);
        if pieces & LARGE != 0 {
            (reads, writes) = (reads * 8, writes.saturating_sub(1) * 8 + 1);
        }
        let mut buffers = Vec::new();
        for (from, len, count, flags) in [(0, reads, pieces & 3, 0), (reads, writes, pieces >> 2 & 3, WRITE)] {
            let piece = (len / (u32::from(count) + 1) + 1).min(DATA_BYTES as u32);
            for at in (0..len).step_by(piece as usize) {
                let address = DATA + (slot * SLOT + u64::from(from + at)) % DATA_BYTES;
                buffers.push((address, piece.min(len - at), flags));
            }
        }
        let size = u64::from(self.queue_size);
        let first = slot * 8 % size;
        let indirect = pieces & IN_TABLE != 0;
        let (table, base, entries) =
            if indirect { (TABLES + slot * 0x100, 0, 16) } else { (queue * QUEUE, first, size) };
        for (position, &(address, len, flags)) in (0u64..).zip(&buffers) {
            let more = if position as usize + 1 < buffers.len() { NEXT } else { 0 };
            let next = (base + position + 1) % entries;
            self.store(
                table + 16 * ((base + position) % entries),
                &descriptor(address, len, flags | more, next as u16),
            );
        }
        if indirect {
            let entry = descriptor(table, 16 * buffers.len() as u32, INDIRECT, 0);
            self.store(queue * QUEUE + 16 * first, &entry);
        }
        if pieces & POLITE != 0 {
            self.publish_politely(queue, first as u16);
        } else {
            self.publish(queue, first as u16);
            self.notify(queue as u32);
        }
    }

    /// Makes a chain of many small buffers, more than some devices accept; the first is device-readable, the last
    /// device-writable.
    pub(super) fn long_chain(&mut self, queue: u64, to_driver: bool, program: &mut Program<'_>) {
        let (count, len) = (program.u16() & ENTRIES_MAX, program.u8());
        self.store(DATA, program.bytes(FIRST_BYTES));
        let table = (0..=count).map(|index| {
            let (first, last) = (index == 0, index == count);
            let flags = if !first && (to_driver || last) { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let len = if first { 16 } else { len.into() };
            descriptor(DATA + u64::from(index) * 8, len, flags, index + 1)
        });
        let table: Vec<_> = table.collect();
        self.store(LONG_TABLE, table.as_flattened());
        let entry = descriptor(LONG_TABLE, 16 * (u32::from(count) + 1), INDIRECT, 0);
        self.store(queue * QUEUE, &entry);
        self.publish(queue, 0);
        self.notify(queue as u32);
    }

    /// Publishes a chain and notifies the device only if it asks for that. By virtio 1.2 §2.7.13, an idle device has
    /// enabled notification of the next chain, and interrupts after it has used the chain; else driver and device would
    /// wait for each other.
    fn publish_politely(&mut self, queue: u64, head: u16) {
        let [available, used] = [AVAILABLE, USED].map(|ring| queue * QUEUE + ring);
        self.work();
        self.write32(INTERRUPT_ACK, 3);
        let [published, answered] = [available, used].map(|ring| self.worlds[0].load16(ring + 2));
        self.store(available, &[0; 2]);
        self.store(available + 4 + 2 * u64::from(self.queue_size), &answered.to_le_bytes());
        self.publish(queue, head);
        let watched = self.tidy && !self.paused && !self.resting;
        for world in self.worlds.iter().filter(|world| watched && !world.is_broken()) {
            let interrupts = if self.event_index {
                world.load16(used + 4 + 8 * u64::from(self.queue_size)) == published
            } else {
                world.load16(used) & 1 == 0
            };
            let needs = !H::fills(queue) || world.host.is_held();
            assert!(
                interrupts || !needs,
                "queue {queue}: the device is idle at index {published} and does not ask for notifications"
            );
        }
        self.notify(queue as u32);
        let watched = watched && !self.resting;
        for world in self.worlds.iter_mut().filter(|world| watched && !world.is_broken()) {
            let now = world.load16(used + 2);
            let interrupted = world.read32(INTERRUPT_STATUS) & USED_BUFFERS != 0;
            assert!(now == answered || interrupted, "queue {queue}: {answered} to {now} used without an interrupt");
            assert!(H::fills(queue) || now == published.wrapping_add(1), "queue {queue}: a request is not used");
        }
    }
}

pub(super) fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&address.to_le_bytes());
    descriptor[8..12].copy_from_slice(&len.to_le_bytes());
    descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
    descriptor[14..].copy_from_slice(&next.to_le_bytes());
    descriptor
}
