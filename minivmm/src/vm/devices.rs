//! Devices of the machine: makes them, maps them to their windows, and pauses and resumes them together.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmstate::{Section, VmState};

use crate::bus::{Bus, BusDevice};
use crate::devices::ged::{Ged, Power};
use crate::devices::generation::Generation;
use crate::devices::serial::Serial;
use crate::devices::virtio::blk::Blk;
use crate::devices::virtio::mmio::{QUEUE_NOTIFY, Virtio};
use crate::devices::virtio::net::{Announcing, Attachment, Net};
use crate::devices::virtio::{Interrupt, Model};
use crate::devices::{Device, DeviceError};
use crate::error::{Error, Result};
use crate::kvm::vcpu::Buses;
use crate::kvm::vm::KvmVm;
use crate::machine_map::{
    COM1, COM1_GSI, COM1_LEN, GED, GED_GSI, GED_LEN, VIRTIO_MMIO_LEN, virtio_place, virtio_window,
};
use crate::memory::GuestMemory;
use crate::migration::in_transit::InTransit;
use crate::migration::sections::SharedSection;
use crate::sync::lock;
use crate::vm::backends::Backends;
use crate::vm::guest_events::GuestEvents;
use crate::vm::request::{GuestEvent, Refusal};

const DISK: &str = "virtio-blk";
const CARD: &str = "virtio-net";

/// A device that vCPUs, its own threads and the driver use.
pub type Locked<T> = Arc<Mutex<T>>;

/// All devices of a machine.
pub struct Devices {
    /// COM1.
    pub serial: Locked<Serial>,
    /// Generic event device: power button, power-off, reset.
    pub ged: Locked<Ged>,
    /// Generation id of the guest, which has no registers and outlives resets.
    pub generation: Locked<Generation>,
    /// Disks, in the order of the command line.
    pub disks: Vec<Locked<Virtio<Blk>>>,
    /// Network cards, in the order of the command line.
    pub nets: Vec<Locked<Virtio<Net<Attachment>>>>,
    virtio_windows: Vec<u8>,
    /// All devices in their windows; a device that reports to another one comes after it, as a pause walks the list backwards.
    attached: Vec<Attached>,
}

/// A device in its window; each is also paused and migrated.
struct Attached {
    /// Name of the section.
    name: String,
    device: Locked<dyn Device>,
    section: SharedSection,
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Devices").field("virtio_windows", &self.virtio_windows).finish_non_exhaustive()
    }
}

impl Devices {
    /// Makes the devices as after power-on, in their windows on `buses`. Power-off and reset by the guest go to `events`. Each
    /// device replaces its counterpart in `previous`, which is paused: holders of that one then have the new one.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Kvm`].
    pub(super) fn new(
        kvm: &KvmVm,
        backends: &Backends,
        buses: &mut Buses,
        events: &Arc<GuestEvents>,
        previous: Option<&Self>,
    ) -> Result<Self> {
        let mut attached = Vec::new();
        let events = Arc::clone(events);
        let on_power = move |power| {
            events.report(match power {
                Power::Off => GuestEvent::PoweredOff,
                Power::Reset => GuestEvent::Reset,
            });
        };
        let ged = Ged::new(kvm.irq_line(GED_GSI), Box::new(on_power));
        let (place, window) = (previous.map(|previous| &previous.ged), (&mut buses.mmio, GED, GED_LEN));
        let ged = attach(&mut attached, "acpi-ged".into(), ged, place, window);
        let serial = Serial::new(kvm.irq_line(COM1_GSI), backends.console.clone());
        let (place, window) =
            (previous.map(|previous| &previous.serial), (&mut buses.pio, COM1.into(), COM1_LEN.into()));
        let serial = attach(&mut attached, "serial".into(), serial, place, window);
        let (disks, nets, virtio_windows) = (Vec::new(), Vec::new(), Vec::new());
        let generation = previous.map(|previous| Arc::clone(&previous.generation)).unwrap_or_default();
        let mut devices = Self { serial, ged, generation, disks, nets, virtio_windows, attached };
        for (index, (image, limiter)) in backends.images.iter().zip(&backends.disk_limits).enumerate() {
            let place = previous.map(|previous| &previous.disks[index]);
            let disk = Blk::new(Arc::clone(image)).within(limiter.clone());
            let disk = devices.add_virtio(kvm, buses, DISK, disk, place)?;
            devices.disks.push(disk);
        }
        for (index, ((network, mac), limits)) in backends.nets.iter().zip(&backends.net_limits).enumerate() {
            let place = previous.map(|previous| &previous.nets[index]);
            let network = network.try_clone().map_err(Error::device)?;
            let net = Net::new(network, *mac).within(limits.clone());
            let net = devices.add_virtio(kvm, buses, CARD, net, place)?;
            devices.nets.push(net);
        }
        Ok(devices)
    }

    /// Windows with a virtio device, in the order of the command line.
    pub fn virtio_windows(&self) -> &[u8] {
        &self.virtio_windows
    }

    /// Puts `model` into the next free window, in place of `previous`.
    fn add_virtio<M: Model>(
        &mut self,
        kvm: &KvmVm,
        buses: &mut Buses,
        name: &str,
        model: M,
        previous: Option<&Locked<Virtio<M>>>,
    ) -> Result<Locked<Virtio<M>>> {
        let window = virtio_window(self.virtio_windows.len() as u8);
        let (address, gsi) = virtio_place(window);
        let name = section_name(window, name);
        let device =
            Virtio::new(name.clone(), model, kvm.ram().guest().clone(), kvm.irq_line(gsi)).map_err(Error::device)?;
        for (queue, kick) in (0..).zip(device.kicks()) {
            kvm.add_doorbell(address + QUEUE_NOTIFY, queue, kick)?;
        }
        self.virtio_windows.push(window);
        Ok(attach(&mut self.attached, name, device, previous, (&mut buses.mmio, address, VIRTIO_MMIO_LEN)))
    }

    /// Pauses all devices: waits up to `deadline` until none has work in flight.
    ///
    /// # Errors
    /// A device did not finish; all continue as before.
    pub fn pause(&self, deadline: Duration) -> Result<(), DeviceError> {
        let until = Instant::now() + deadline;
        for (index, device) in self.pause_order().enumerate() {
            let left = until.saturating_duration_since(Instant::now());
            if let Err(error) = lock(device).pause(left) {
                self.pause_order().take(index).for_each(|device| lock(device).resume());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Tells all devices that the whole state was loaded, so that they read their part of guest memory.
    pub(super) fn loaded(&self) {
        self.pause_order().for_each(|device| lock(device).loaded());
    }

    /// Gives the guest a generation id of its own, and notifies it: it may be one of several with the same state.
    ///
    /// # Errors
    /// As [`Generation::renew`].
    pub(super) fn renew_generation(&self, memory: &GuestMemory) -> Result<(), Refusal> {
        let generation = lock(&self.generation);
        if generation.is_announced() {
            let refused = |error| Refusal(format!("the guest cannot be given a generation id of its own: {error}"));
            generation.renew(memory).map_err(refused)?;
            lock(&self.ged).generation_changed();
        }
        Ok(())
    }

    /// Resumes all devices.
    pub fn resume(&self) {
        self.pause_order().for_each(|device| lock(device).resume());
    }

    /// Stops the console's output, and returns the bytes in transit of the paused devices.
    pub(super) fn hold_in_transit(&self) -> InTransit {
        let (input, output) = lock(&self.serial).hold();
        let cards = self.nets.iter().map(|net| lock(net).change(|card, _| card.in_transit())).collect();
        InTransit { input, output, cards, present: true }
    }

    /// Gives the devices the bytes in transit of another process.
    pub(super) fn take_over(&self, in_transit: InTransit) {
        let InTransit { input, output, cards, .. } = in_transit;
        lock(&self.serial).take_over(input, output);
        for (net, card) in self.nets.iter().zip(cards) {
            lock(net).change(|model, _| model.take_over(card));
        }
    }

    /// Has the cards announce the guest to the network.
    pub(super) fn announce(&self, with: Announcing) {
        self.each_card(|card, interrupt| card.announce(with, interrupt));
    }

    /// Sets the announcement that the cards make when the arrived guest resumes.
    pub(super) fn announce_arrival(&self, with: Announcing) {
        self.each_card(|card, _| card.announces(with));
    }

    /// Returns the value of `of` for each card.
    pub(super) fn of_cards<T>(&self, of: impl Fn(&Virtio<Net<Attachment>>) -> T) -> Vec<T> {
        self.nets.iter().map(|net| of(&lock(net))).collect()
    }

    fn each_card(&self, change: impl Fn(&mut Net<Attachment>, &Interrupt)) {
        for net in &self.nets {
            lock(net).change(&change);
        }
    }

    /// Returns all devices with their sections' names. Takes no lock, since a vCPU may hold one as long as the host's disk
    /// takes.
    pub fn sections(&self) -> Vec<(String, SharedSection)> {
        self.attached.iter().map(|attached| (attached.name.clone(), attached.section.clone())).collect()
    }

    /// Pause order: virtio devices first, then the serial port and the generic event device.
    fn pause_order(&self) -> impl Iterator<Item = &Mutex<dyn Device>> {
        self.attached.iter().rev().map(|attached| &*attached.device)
    }
}

/// Puts `device` in place of `previous`, into its window on a bus, and into the list.
fn attach<T: Device + BusDevice + VmState + Section + 'static>(
    list: &mut Vec<Attached>,
    name: String,
    device: T,
    previous: Option<&Locked<T>>,
    (bus, base, len): (&mut Bus, u64, u64),
) -> Locked<T> {
    let device = put(previous, device);
    bus.insert(base, len, device.clone());
    list.push(Attached { name, section: SharedSection::new(&device), device: device.clone() });
    device
}

/// Puts `device` in place of another one, or into a new place.
fn put<T>(place: Option<&Locked<T>>, device: T) -> Locked<T> {
    let Some(place) = place else { return Arc::new(Mutex::new(device)) };
    let previous = std::mem::replace(&mut *lock(place), device);
    // Dropped without the lock: it may wait for its thread.
    drop(previous);
    Arc::clone(place)
}

/// QEMU's name of a virtio device's section: the transport's bus path, then the device.
fn section_name(window: u8, device: &str) -> String {
    let (address, _) = virtio_place(window);
    format!("virtio-mmio@{address:016x}/{device}")
}
