//! A virtio device with everything that it can change: guest memory, interrupt line, backend.

use std::sync::Arc;
use std::time::Duration;

use minivmm::bus::BusDevice;
use minivmm::devices::Device;
use minivmm::devices::virtio::Model;
use minivmm::devices::virtio::mmio::Virtio;
use minivmm::irq::TestLine;
use minivmm::memory::{GuestMemory, PAGE_SIZE};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::{Result, Section};

use super::hosts::Host;

/// Size of guest memory, which begins at address 0.
pub(super) const MEMORY: usize = 128 << 10;
const PAGE: usize = PAGE_SIZE as usize;

pub(super) const STATUS: u64 = 0x070;
pub(super) const INTERRUPT_STATUS: u64 = 0x060;
/// Register with the number of configuration changes. It begins at 0 on each host, and a driver only compares it.
pub(super) const CONFIG_GENERATION: u64 = 0x0fc;

/// InterruptStatus bit: the device has used buffers.
pub(super) const USED_BUFFERS: u32 = 1;
/// Most pieces of work of a device until it is idle; each ring is worked off after some thousand.
const PIECES_MAX: usize = 1 << 17;

pub(super) struct World<H: Host> {
    pub(super) device: Virtio<H::Model>,
    pub(super) memory: GuestMemory,
    pub(super) host: H,
    line: Arc<TestLine>,
    /// Guest memory before and after the last work, and the backend's state after it: kept, so that a comparison needs
    /// no new buffers.
    before: Vec<u8>,
    after: Vec<u8>,
    hosted: Vec<u8>,
}

impl<H: Host> World<H> {
    /// A world with a device after reset.
    pub(super) fn new(host: H) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("address space");
        let line = Arc::new(TestLine::default());
        let name = "virtio-mmio@0/fuzz".to_owned();
        let device = Virtio::without_thread(name, host.model(), memory.clone(), line.clone()).expect("descriptors");
        Self { device, memory, host, line, before: vec![0; MEMORY], after: vec![0; MEMORY], hosted: Vec::new() }
    }

    /// A world with copies of memory and backend, and a device after reset.
    pub(super) fn fork(&mut self) -> Self {
        let fork = Self::new(self.host.fork());
        self.look();
        for (page, contents) in self.after.chunks(PAGE).enumerate().filter(|(_, contents)| **contents != [0; PAGE]) {
            fork.memory.write_slice(contents, GuestAddress((page * PAGE) as u64)).expect("as large");
        }
        fork
    }

    /// Reads guest memory.
    fn look(&mut self) {
        self.memory.read_slice(&mut self.after, GuestAddress(0)).expect("as large");
    }

    pub(super) fn read(&mut self, offset: u64, width: usize) -> [u8; 8] {
        let mut data = [0; 8];
        self.device.read(offset, &mut data[..width]);
        data
    }

    pub(super) fn read32(&mut self, register: u64) -> u32 {
        u32::from_le_bytes(*self.read(register, 4).first_chunk().expect("8 bytes"))
    }

    pub(super) fn load16(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap_or(0)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.device.fault().is_some()
    }

    /// The section of the device, which is paused.
    pub(super) fn saved(&mut self) -> Vec<u8> {
        let mut out = Writer::new();
        Section::save(&mut self.device, &mut out).unwrap_or_else(|error| panic!("no save: {error}"));
        out.into_bytes()
    }

    /// Loads a section into a device after reset; returns the number of bytes left. A failed load must change nothing.
    pub(super) fn load(&mut self, section: &[u8]) -> Result<usize> {
        let mut input = Reader::new(section, 0, Strictness::Strict, Limits::default()).complete();
        let version = H::Model::DESCRIPTION.version;
        if let Err(error) = Section::load(&mut self.device, &mut input, version) {
            assert!(self.saved() == self.fork().saved(), "changed by a load that failed: {error}");
            return Err(error);
        }
        self.device.loaded();
        Ok(input.rest().len())
    }

    pub(super) fn pause(&mut self) {
        self.device.pause(Duration::ZERO).expect("a pause that waits for nothing");
    }

    /// Lets the device work until no work is left, or a rate limit stops it, for which it returns true.
    pub(super) fn work(&mut self) -> bool {
        self.recorded(|world| world.device.work().is_some())
    }

    /// Lets the device work until no work is left, whatever its rate limits.
    pub(super) fn drain(&mut self) {
        self.recorded(|world| {
            for _ in 0..PIECES_MAX {
                match world.device.work() {
                    None => return,
                    Some(wait) => world.host.advance(wait),
                }
            }
            panic!("the device never becomes idle");
        });
    }

    /// Does `work`, and checks that each page it changed is marked dirty: a migration sends no other page again.
    fn recorded<R>(&mut self, work: impl FnOnce(&mut Self) -> R) -> R {
        self.look();
        std::mem::swap(&mut self.before, &mut self.after);
        self.memory.iter().for_each(|region| region.get_mmap().bitmap().reset());
        let result = work(self);
        self.look();
        for (page, (before, after)) in self.before.chunks(PAGE).zip(self.after.chunks(PAGE)).enumerate() {
            let is_recorded = || self.memory.iter().all(|region| region.get_mmap().bitmap().dirty_at(page * PAGE));
            assert!(before == after || is_recorded(), "a write of the device to page {page} is not marked dirty");
        }
        result
    }

    /// Compares this device with its copy, once both are idle.
    pub(super) fn compare(&mut self, other: &mut Self) {
        assert_eq!(self.device.fault().is_some(), other.device.fault().is_some(), "one is broken");
        assert_eq!(self.read32(STATUS), other.read32(STATUS), "status");
        // The first completion after a load interrupts even if the driver did not ask for it, so that no interrupt is
        // lost.
        let (ours, theirs) = (self.read32(INTERRUPT_STATUS), other.read32(INTERRUPT_STATUS));
        assert_eq!(ours & !USED_BUFFERS, theirs & !USED_BUFFERS, "interrupts");
        assert_eq!(ours & theirs, ours, "an interrupt is lost");
        for (world, status) in [(&*self, ours), (&*other, theirs)] {
            assert_eq!(world.line.is_high(), status != 0, "the interrupt line differs from InterruptStatus");
        }
        for world in [&mut *self, &mut *other] {
            world.look();
            world.host.look(&mut world.hosted);
        }
        assert!(self.hosted == other.hosted, "the backends differ");
        if self.after != other.after {
            let at = (0..MEMORY).find(|&at| self.after[at] != other.after[at]).unwrap_or(0);
            panic!("memory differs at {at:#x}: {:#x} and {:#x}", self.after[at], other.after[at]);
        }
    }
}
