//! Section `minivmm/preflight`: what a machine is to its guest, sent before the guest's memory.

use std::convert::Infallible;

use nix::time::ClockId;
use vmstate::VmState;

use crate::kvm::state::{Introduced, Processor, clock};

/// virtio devices at most, of either kind: a machine has so many windows.
pub const DEVICES_MAX: usize = 8;

/// A disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, VmState)]
#[vmstate(name = "minivmm/preflight/disk", version = 1)]
pub struct Disk {
    /// virtio-mmio window.
    pub window: u8,
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// The guest may not write.
    pub read_only: bool,
}

/// A network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, VmState)]
#[vmstate(name = "minivmm/preflight/card", version = 1)]
pub struct Card {
    /// virtio-mmio window.
    pub window: u8,
    /// MAC address.
    #[vmstate(buffer)]
    pub mac: [u8; 6],
}

/// What a machine is to its guest.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "minivmm/preflight/facts", version = 1)]
#[vmstate(pre_save = Self::count)]
pub struct Facts {
    /// vCPUs.
    pub vcpus: u32,
    /// RAM in bytes.
    pub ram_bytes: u64,
    /// What each vCPU shows.
    pub processor: Processor,
    disk_count: u32,
    /// Disks, in the order of the command line.
    #[vmstate(len = disk_count, max = DEVICES_MAX)]
    pub disks: Vec<Disk>,
    card_count: u32,
    /// Network cards, in the order of the command line.
    #[vmstate(len = card_count, max = DEVICES_MAX)]
    pub cards: Vec<Card>,
}

impl Facts {
    /// The facts of a machine with these parts.
    pub fn new(vcpus: u32, ram_bytes: u64, processor: Processor, disks: Vec<Disk>, cards: Vec<Card>) -> Self {
        let (disk_count, card_count) = (disks.len() as u32, cards.len() as u32);
        Self { vcpus, ram_bytes, processor, disk_count, disks, card_count, cards }
    }

    /// The counts, which go first, follow whatever the lists have become.
    fn count(&mut self) -> Result<(), Infallible> {
        (self.disk_count, self.card_count) = (self.disks.len() as u32, self.cards.len() as u32);
        Ok(())
    }
}

/// Section `minivmm/preflight`, version 2.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "minivmm/preflight", version = 2, minimum_version = 1, early_setup)]
#[vmstate(pre_load = Self::forget, post_load = Self::receive)]
pub struct Preflight {
    /// Source's CLOCK_MONOTONIC in ns when it was about to send this.
    sent: u64,
    /// This host's when it had read it.
    #[vmstate(skip)]
    received: Option<u64>,
    /// The source's machine.
    pub facts: Facts,
    /// Features that the guest has agreed on with each network card, in the order of the command line; none where there is no card.
    #[vmstate(since = 2)]
    pub agreed: [u64; DEVICES_MAX],
}

impl Preflight {
    /// To be sent.
    pub fn new(facts: Facts, agreed: [u64; DEVICES_MAX]) -> Self {
        Self { facts, agreed, ..Self::default() }
    }

    /// The source is connected, and sends this next.
    pub fn stamp(&mut self) {
        self.sent = clock::read(ClockId::CLOCK_MONOTONIC);
    }

    /// The source's machine, and when both sides were there; `None` if the source sent no such section.
    pub fn arrived(&self) -> Option<(&Facts, Introduced)> {
        Some((&self.facts, Introduced { source: self.sent, here: self.received? }))
    }

    /// A source of version 1 does not say what its guest has agreed on: the load of the card refuses such a guest, if anything does.
    fn forget(&mut self) -> Result<(), Infallible> {
        self.agreed = Default::default();
        Ok(())
    }

    fn receive(&mut self, _version: u32) -> Result<(), Infallible> {
        self.received = Some(clock::read(ClockId::CLOCK_MONOTONIC));
        Ok(())
    }
}
