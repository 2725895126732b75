//! A driver written from the virtio 1.2 text: registers, split rings in guest memory, waiting for interrupts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use minivmm::bus::BusDevice;
use minivmm::devices::virtio::Model;
use minivmm::devices::virtio::mmio::Virtio;
use minivmm::irq::TestLine;
use minivmm::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT_DESCRIPTOR: u16 = 4;

/// 4 MiB of RAM at 0; queue `n` at 1 MiB + n·64 KiB; buffers from 2 MiB.
pub const MEMORY: usize = 4 << 20;
pub const BUFFERS: u64 = 2 << 20;
pub const QUEUE_SIZE: u16 = 16;

/// Bound of a wait, for a busy host.
pub const TIMEOUT: Duration = Duration::from_secs(120);

pub fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

pub struct Driver<M: Model> {
    pub device: Virtio<M>,
    pub memory: GuestMemory,
    pub line: Arc<TestLine>,
    pub queues: Vec<Queue>,
}

impl<M: Model> Driver<M> {
    pub fn new(model: M, memory: GuestMemory) -> Self {
        Self::named("virtio", model, memory)
    }

    /// Makes a driver whose device's thread has this name, of at most 15 bytes.
    pub fn named(name: &str, model: M, memory: GuestMemory) -> Self {
        let line = Arc::new(TestLine::default());
        let device = Virtio::new(format!("virtio-mmio@test/{name}"), model, memory.clone(), line.clone()).unwrap();
        let queues = (0..M::QUEUES.len()).map(|index| Queue::new(index, memory.clone())).collect();
        Self { device, memory, line, queues }
    }

    pub fn read32(&mut self, register: u64) -> u32 {
        let mut word = [0; 4];
        self.device.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    pub fn write32(&mut self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    pub fn offered(&mut self) -> u64 {
        self.write32(0x014, 0);
        let low = self.read32(0x010);
        self.write32(0x014, 1);
        u64::from(self.read32(0x010)) << 32 | u64::from(low)
    }

    /// Does §3.1.1 up to FEATURES_OK; returns the device's status.
    pub fn negotiate(&mut self, features: u64) -> u32 {
        self.write32(0x070, 0);
        self.write32(0x070, 1);
        self.write32(0x070, 3);
        self.write32(0x024, 0);
        self.write32(0x020, features as u32);
        self.write32(0x024, 1);
        self.write32(0x020, (features >> 32) as u32);
        self.write32(0x070, 11);
        self.read32(0x070)
    }

    pub fn set_up_queue(&mut self, index: usize) {
        let (size, addresses) = (self.queues[index].size, self.queues[index].addresses());
        self.write32(0x030, index as u32);
        assert_eq!(self.read32(0x044), 0, "not ready yet");
        assert!(self.read32(0x034) >= u32::from(size));
        self.write32(0x038, u32::from(size));
        for (register, address) in addresses {
            self.write32(register, address as u32);
            self.write32(register + 4, (address >> 32) as u32);
        }
        self.write32(0x044, 1);
    }

    /// Does all of §3.1.1.
    pub fn start(&mut self, features: u64) {
        let status = self.negotiate(features | VERSION_1);
        assert_eq!(status, 11, "features accepted");
        for index in 0..M::QUEUES.len() {
            self.set_up_queue(index);
            assert_eq!(self.read32(0x044), 1, "ready");
            self.queues[index].event_idx = features & EVENT_IDX != 0;
        }
        self.write32(0x070, 15);
        assert_eq!(self.read32(0x070), 15);
    }

    pub fn notify(&mut self, queue: usize) {
        self.write32(0x050, queue as u32);
    }

    /// Waits for one more used chain, then acknowledges the interrupt.
    pub fn wait(&mut self, queue: usize) -> (u32, u32) {
        let used = self.queues[queue].wait_used();
        self.until("an interrupt", |driver| driver.line.is_high());
        self.write32(0x064, 1);
        used
    }

    /// Makes a chain available, kicks and waits; returns the number of bytes that the device reports as written.
    pub fn request(&mut self, queue: usize, buffers: &[Buffer]) -> u32 {
        let head = self.queues[queue].offer(buffers);
        self.notify(queue);
        let (id, len) = self.wait(queue);
        assert_eq!(id, u32::from(head));
        len
    }

    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + TIMEOUT;
        while !condition(self) {
            assert!(Instant::now() < end, "waited {TIMEOUT:?} for {what}");
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Address, length, and whether the device writes it.
pub type Buffer = (u64, u32, bool);

pub const AVAILABLE: u64 = 0x5000;
pub const USED: u64 = 0x7000;

/// The driver's side of one split ring (§2.7).
pub struct Queue {
    pub base: u64,
    /// Descriptors, up to 1024; set before the device is started.
    pub size: u16,
    memory: GuestMemory,
    available: u16,
    seen: u16,
    next: u16,
    pub event_idx: bool,
}

impl Queue {
    fn new(index: usize, memory: GuestMemory) -> Self {
        let base = (1 << 20) + index as u64 * 0x1_0000;
        Self { base, size: QUEUE_SIZE, memory, available: 0, seen: 0, next: 0, event_idx: false }
    }

    /// Resets the ring: nothing is available or used.
    pub fn forget(&mut self) {
        (self.available, self.seen, self.next) = (0, 0, 0);
        for ring in [AVAILABLE, USED] {
            self.memory.write_obj(0u16, GuestAddress(self.base + ring + 2)).unwrap();
        }
    }

    /// Registers for the low words of the addresses, with their values: descriptors, available ring, used ring.
    pub fn addresses(&self) -> [(u64, u64); 3] {
        [(0x080, self.base), (0x090, self.base + AVAILABLE), (0x0a0, self.base + USED)]
    }

    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + 16 * u64::from(index);
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Writes a chain of free descriptors and makes it available; returns its head.
    pub fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next;
        for (position, &(address, len, writes)) in buffers.iter().enumerate() {
            let index = (head + position as u16) % self.size;
            let more = if position + 1 < buffers.len() { NEXT } else { 0 };
            let flags = more | if writes { WRITE } else { 0 };
            self.descriptor(index, address, len, flags, (index + 1) % self.size);
        }
        self.next = (head + buffers.len() as u16) % self.size;
        self.publish(head);
        head
    }

    /// Writes an indirect table of these buffers at `table`, and makes a chain of it available; returns its head.
    pub fn offer_table(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        let descriptors = buffers.iter().zip(1..).flat_map(|(&(address, len, writes), next)| {
            let more = if next < buffers.len() { NEXT } else { 0 };
            let flags = more | if writes { WRITE } else { 0 };
            [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &(next as u16).to_le_bytes()]
                .concat()
        });
        let descriptors: Vec<u8> = descriptors.collect();
        self.memory.write_slice(&descriptors, GuestAddress(table)).unwrap();
        self.offer_table_again(table, descriptors.len() as u32)
    }

    /// Makes another chain of the indirect table of `len` bytes at `table` available; returns its head.
    pub fn offer_table_again(&mut self, table: u64, len: u32) -> u16 {
        let head = self.next;
        self.descriptor(head, table, len, INDIRECT_DESCRIPTOR, 0);
        self.next = (head + 1) % self.size;
        self.publish(head);
        head
    }

    /// Makes the chain at `head` available.
    pub fn publish(&mut self, head: u16) {
        let slot = self.base + AVAILABLE + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        if self.event_idx {
            self.set_used_event(self.seen);
        }
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    /// Asks for an interrupt when this index is used (§2.7.7.2).
    pub fn set_used_event(&self, index: u16) {
        let used_event = self.base + AVAILABLE + 4 + 2 * u64::from(self.size);
        self.memory.write_obj(index, GuestAddress(used_event)).unwrap();
    }

    pub fn set_available(&mut self, index: u16) {
        self.memory.store(index, GuestAddress(self.base + AVAILABLE + 2), std::sync::atomic::Ordering::SeqCst).unwrap();
    }

    pub fn used_index(&self) -> u16 {
        self.memory.load(GuestAddress(self.base + USED + 2), std::sync::atomic::Ordering::SeqCst).unwrap()
    }

    /// Returns the next used element that was not returned yet: id and length.
    pub fn poll_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.seen {
            return None;
        }
        let element = self.base + USED + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        Some((
            self.memory.read_obj(GuestAddress(element)).unwrap(),
            self.memory.read_obj(GuestAddress(element + 4)).unwrap(),
        ))
    }

    pub fn wait_used(&mut self) -> (u32, u32) {
        let end = Instant::now() + TIMEOUT;
        loop {
            if let Some(used) = self.poll_used() {
                return used;
            }
            assert!(Instant::now() < end, "waited {TIMEOUT:?} for a used buffer");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
