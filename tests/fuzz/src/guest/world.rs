//! A virtio device with all that it can change: guest memory, interrupt line, host.

use std::sync::Arc;
use std::time::Duration;

use minivmm::bus::BusDevice;
use minivmm::devices::Device;
use minivmm::devices::virtio::Model;
use minivmm::devices::virtio::mmio::Virtio;
use minivmm::irq::TestLine;
use minivmm::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};
use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::{Result, Section};

use super::hosts::Host;

/// Bytes of guest memory, from 0.
pub(super) const MEMORY: usize = 128 << 10;

pub(super) const STATUS: u64 = 0x070;
pub(super) const INTERRUPT_STATUS: u64 = 0x060;
/// Counts changes of the configuration, and begins at 0 on each host: a driver only compares it.
pub(super) const CONFIG_GENERATION: u64 = 0x0fc;

/// InterruptStatus: buffers were used.
const USED_BUFFERS: u32 = 1;
/// Pieces of work of a device between two rests; each ring ends after some thousand.
const PIECES_MAX: usize = 1 << 17;

pub(super) struct World<H: Host> {
    pub(super) device: Virtio<H::Model>,
    pub(super) memory: GuestMemory,
    pub(super) host: H,
    line: Arc<TestLine>,
}

impl<H: Host> World<H> {
    /// A device after reset.
    pub(super) fn new(host: H) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("address space");
        let line = Arc::new(TestLine::default());
        let name = "virtio-mmio@0/fuzz".to_owned();
        let device = Virtio::unattended(name, host.model(), memory.clone(), line.clone()).expect("descriptors");
        Self { device, memory, host, line }
    }

    /// Another host with a copy of memory and of what lies behind the device, and a device after reset.
    pub(super) fn fork(&self) -> Self {
        let fork = Self::new(self.host.fork());
        fork.memory.write_slice(&self.contents_of_memory(), GuestAddress(0)).expect("as large");
        fork
    }

    pub(super) fn contents_of_memory(&self) -> Vec<u8> {
        let mut contents = vec![0; MEMORY];
        self.memory.read_slice(&mut contents, GuestAddress(0)).expect("as large");
        contents
    }

    pub(super) fn read(&mut self, offset: u64, width: usize) -> [u8; 8] {
        let mut data = [0; 8];
        self.device.read(offset, &mut data[..width]);
        data
    }

    pub(super) fn read32(&mut self, register: u64) -> u32 {
        u32::from_le_bytes(*self.read(register, 4).first_chunk().expect("8 bytes"))
    }

    pub(super) fn is_broken(&self) -> bool {
        self.device.fault().is_some()
    }

    /// The section. The device is paused.
    pub(super) fn saved(&mut self) -> Vec<u8> {
        let mut out = Writer::new();
        Section::save(&mut self.device, &mut out).unwrap_or_else(|error| panic!("no save: {error}"));
        out.into_bytes()
    }

    /// Loads a section into a device after reset. One that fails has changed nothing.
    pub(super) fn load(&mut self, section: &[u8]) -> Result<()> {
        let mut input = Reader::new(section, 0, Strictness::Strict, Limits::default()).complete();
        let version = H::Model::DESCRIPTION.version;
        match Section::load(&mut self.device, &mut input, version) {
            Ok(()) => assert_eq!(input.rest(), b"", "what was saved is longer than what was loaded"),
            Err(error) => {
                assert!(self.saved() == self.fork().saved(), "changed by a load that failed: {error}");
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn pause(&mut self) {
        self.device.pause(Duration::ZERO).expect("nobody has to be waited for");
    }

    /// Lets the device work until nothing is left to do, whatever limits it has.
    pub(super) fn drain(&mut self) {
        for _ in 0..PIECES_MAX {
            match self.device.work() {
                None => return,
                Some(wait) => self.host.advance(wait),
            }
        }
        panic!("the device never rests");
    }

    /// Looks at the device that took this one's place, after both have come to rest.
    pub(super) fn compare(&mut self, other: &mut Self) {
        assert_eq!(self.device.fault().is_some(), other.device.fault().is_some(), "one is broken");
        assert_eq!(self.read32(STATUS), other.read32(STATUS), "status");
        // The first completion after a load interrupts whatever the driver asked for: no interrupt may be lost.
        let (ours, theirs) = (self.read32(INTERRUPT_STATUS), other.read32(INTERRUPT_STATUS));
        assert_eq!(ours & !USED_BUFFERS, theirs & !USED_BUFFERS, "interrupts");
        assert_eq!(ours & theirs, ours, "an interrupt is lost");
        for (world, status) in [(&*self, ours), (&*other, theirs)] {
            assert_eq!(world.line.is_high(), status != 0, "the line follows InterruptStatus");
        }
        assert!(self.host.contents() == other.host.contents(), "the hosts differ");
        let (ours, theirs) = (self.contents_of_memory(), other.contents_of_memory());
        if ours != theirs {
            let at = (0..MEMORY).find(|&at| ours[at] != theirs[at]).unwrap_or(0);
            panic!("memory differs at {at:#x}: {:#x} and {:#x}", ours[at], theirs[at]);
        }
    }
}
