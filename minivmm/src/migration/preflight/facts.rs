//! Section `minivmm/preflight`: the machine as the guest sees it, sent before the guest's memory.

use std::convert::Infallible;

use nix::time::ClockId;
use vmstate::VmState;

use crate::kvm::state::{PreflightTimes, Processor, clock};

/// Most virtio devices of either kind: the number of windows.
pub const DEVICES_MAX: usize = 8;

/// A disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, VmState)]
#[vmstate(name = "minivmm/preflight/disk", version = 1)]
pub struct Disk {
    /// virtio-mmio window.
    pub window: u8,
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether the guest may not write.
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

/// A machine as its guest sees it.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "minivmm/preflight/facts", version = 1)]
#[vmstate(pre_save = Self::count)]
pub struct Facts {
    /// vCPUs.
    pub vcpus: u32,
    /// RAM in bytes.
    pub ram_bytes: u64,
    /// Processor of each vCPU.
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
    /// Facts of a machine with these parts.
    pub fn new(vcpus: u32, ram_bytes: u64, processor: Processor, disks: Vec<Disk>, cards: Vec<Card>) -> Self {
        let (disk_count, card_count) = (disks.len() as u32, cards.len() as u32);
        Self { vcpus, ram_bytes, processor, disk_count, disks, card_count, cards }
    }

    /// Sets the counts, which come before the lists in the stream.
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
    /// CLOCK_MONOTONIC of the source in ns when it was about to send the section.
    sent: u64,
    /// CLOCK_MONOTONIC of this host when it had read the section.
    #[vmstate(skip)]
    received: Option<u64>,
    /// The source's machine.
    pub facts: Facts,
    /// Features that the guest has negotiated for each network card, in the order of the command line; 0 without a card.
    #[vmstate(since = 2)]
    pub agreed: [u64; DEVICES_MAX],
}

impl Preflight {
    /// Makes the section of a source.
    pub fn new(facts: Facts, agreed: [u64; DEVICES_MAX]) -> Self {
        Self { facts, agreed, ..Self::default() }
    }

    /// Sets the time of sending; called just before the section is sent.
    pub fn stamp(&mut self) {
        self.sent = clock::read(ClockId::CLOCK_MONOTONIC);
    }

    /// Machine of the source, and the times at which the section was sent and read; `None` if the source sent no such section.
    pub fn arrived(&self) -> Option<(&Facts, PreflightTimes)> {
        Some((&self.facts, PreflightTimes { source: self.sent, here: self.received? }))
    }

    /// Clears what a source of version 1 does not send, the negotiated features: then only the card's own load can refuse the
    /// guest.
    fn forget(&mut self) -> Result<(), Infallible> {
        self.agreed = Default::default();
        Ok(())
    }

    fn receive(&mut self, _version: u32) -> Result<(), Infallible> {
        self.received = Some(clock::read(ClockId::CLOCK_MONOTONIC));
        Ok(())
    }
}
