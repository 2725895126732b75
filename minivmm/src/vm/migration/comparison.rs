//! Preflight: describes this machine to a destination, and checks whether a source's guest fits this machine.

use std::sync::{Arc, Mutex};

use crate::devices::virtio::mmio::Virtio;
use crate::error::RateLimitedLog;
use crate::migration::preflight::{Card, DEVICES_MAX, Difference, Disk, Facts, Preflight, compare, lacking};
use crate::migration::sections::MachineState;
use crate::sync::lock;
use crate::vm::assembly::Vm;
use crate::vm::request::Refusal;

/// Facts of a destination, for comparison when the source's preflight arrives.
#[derive(Debug)]
pub(super) struct Comparison {
    /// State into which the source's sections are loaded.
    state: Arc<Mutex<MachineState>>,
    here: Facts,
    /// Whether each network card may have another address than the guest knows.
    readdressed: Vec<bool>,
    /// Features that each network card offers its driver.
    offered: Vec<u64>,
    tsc_scales: bool,
    log: RateLimitedLog,
}

impl Comparison {
    /// Lists everything that keeps the source's guest from running here.
    pub(super) fn differences(&mut self) -> Vec<Difference> {
        let state = lock(&self.state);
        match state.preflight.arrived() {
            Some((guest, _)) => {
                let mut here = self.here.clone();
                let cards = here.cards.iter_mut().zip(&guest.cards).zip(&self.readdressed);
                cards.filter(|(_, readdressed)| **readdressed).for_each(|((here, guest), _)| here.mac = guest.mac);
                let mut differences = compare(guest, &here, self.tsc_scales);
                differences.extend(lacking(&state.preflight.agreed, &self.offered));
                differences
            }
            None => {
                self.log.print(
                    "the source sends no section minivmm/preflight: its CPU, TSC rate and devices are not compared \
                     with this machine's",
                );
                Vec::new()
            }
        }
    }
}

impl Vm {
    /// Describes this machine as its guest sees it.
    pub(in crate::vm) fn facts(&self) -> Facts {
        let windows = self.machine.devices.virtio_windows();
        let (disk_windows, card_windows) = windows.split_at(self.backends.images.len().min(windows.len()));
        let disks = self.backends.images.iter().zip(disk_windows).map(|(image, &window)| Disk {
            window,
            sectors: image.sectors(),
            read_only: image.is_read_only(),
        });
        let cards = self.backends.nets.iter().zip(card_windows).map(|((_, mac), &window)| Card { window, mac: *mac });
        let vcpus = self.machine.vcpus.len() as u32;
        Facts::new(vcpus, self.ram.len(), self.machine.processor().clone(), disks.collect(), cards.collect())
    }

    /// Makes the preflight section.
    pub(super) fn preflight(&self) -> Preflight {
        let mut agreed = [0; DEVICES_MAX];
        for (card, features) in agreed.iter_mut().zip(self.machine.devices.of_cards(Virtio::agreed)) {
            *card = features;
        }
        Preflight::new(self.facts(), agreed)
    }

    /// Makes the comparison for the migration thread of a destination. A guest from a file may be one of several: a card with
    /// an explicit address uses it after the guest has reset the card, and until then the address that the guest knows.
    pub(super) fn comparison(&self, from_file: bool) -> Comparison {
        let (state, here) = (Arc::clone(&self.state), self.facts());
        let readdressed = self.config.nets.iter().map(|net| from_file && net.mac.is_some()).collect();
        let offered = self.machine.devices.of_cards(Virtio::offered);
        let tsc_scales = self.machine.tsc_scales();
        Comparison { state, here, readdressed, offered, tsc_scales, log: RateLimitedLog::default() }
    }

    /// Destination: the guest fits. Its vCPUs get the processor that it saw at the source; if the source sent none, the one
    /// that this host offers, whatever a refused source has left.
    pub(in crate::vm) fn adopt_processor(&mut self) -> Result<(), Refusal> {
        let state = lock(&self.state);
        let processor = match state.preflight.arrived() {
            Some((guest, _)) => guest.processor.clone(),
            None => self.machine.offered().clone(),
        };
        self.machine.adopt(processor).map_err(|error| Refusal(error.with_causes()))
    }
}
