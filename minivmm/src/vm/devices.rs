//! The machine's devices: made, put in their windows, stopped and started together.

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
use crate::migration::sections::SharedSection;
use crate::sync::lock;
use crate::vm::backends::Backends;
use crate::vm::guest_events::GuestEvents;
use crate::vm::request::{GuestEvent, Refusal};

const DISK: &str = "virtio-blk";
const CARD: &str = "virtio-net";

/// A device that vCPUs, its own threads and the driver reach.
pub type Locked<T> = Arc<Mutex<T>>;

/// All devices of a machine.
pub struct Devices {
    /// COM1.
    pub serial: Locked<Serial>,
    /// Power button, power-off, reset.
    pub ged: Locked<Ged>,
    /// The guest's generation id. It has no registers, and outlives resets.
    pub generation: Locked<Generation>,
    /// Disks, in the order of the command line.
    pub disks: Vec<Locked<Virtio<Blk>>>,
    /// Network cards, in the order of the command line.
    pub nets: Vec<Locked<Virtio<Net<Attachment>>>>,
    virtio_windows: Vec<u8>,
    /// Each of these devices, those that send behind those that are told.
    attached: Vec<Attached>,
}

/// A device in its window: what is there for the guest is also paused and migrated.
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
    /// Devices as after power-on, in their windows on `buses`. Power-off and reset by the guest are told to `events`. Each
    /// takes the place of the one in `previous`, which is at rest: whoever shares that one shares the new one.
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

    /// Windows that hold a virtio device, in the order of the command line.
    pub fn virtio_windows(&self) -> &[u8] {
        &self.virtio_windows
    }

    /// Puts `model` into the next free window, and in the place of `previous`.
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

    /// Waits until no device has work in flight, `deadline` for all of them.
    ///
    /// # Errors
    /// One did not finish; all go on as before.
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

    /// All were loaded, and read what guest memory has of them.
    pub(super) fn loaded(&self) {
        self.pause_order().for_each(|device| lock(device).loaded());
    }

    /// The guest may be one of several that begin in the same state: it gets a generation id of its own, and is notified.
    ///
    /// # Errors
    /// As [`Generation::renew`].
    pub(super) fn renew_generation(&self, memory: &GuestMemory) -> Result<(), Refusal> {
        let generation = lock(&self.generation);
        if generation.is_told() {
            let refused = |error| Refusal(format!("the guest cannot be given a generation id of its own: {error}"));
            generation.renew(memory).map_err(refused)?;
            lock(&self.ged).generation_changed();
        }
        Ok(())
    }

    /// All go on.
    pub fn resume(&self) {
        self.pause_order().for_each(|device| lock(device).resume());
    }

    /// The cards tell the network where the guest is.
    pub(super) fn announce(&self, with: Announcing) {
        self.each_card(|card, interrupt| card.announce(with, interrupt));
    }

    /// The cards will tell the network so that the guest has arrived, when it goes on.
    pub(super) fn announce_arrival(&self, with: Announcing) {
        self.each_card(|card, _| card.announces(with));
    }

    /// What `of` says of each card.
    pub(super) fn of_cards<T>(&self, of: impl Fn(&Virtio<Net<Attachment>>) -> T) -> Vec<T> {
        self.nets.iter().map(|net| of(&lock(net))).collect()
    }

    fn each_card(&self, change: impl Fn(&mut Net<Attachment>, &Interrupt)) {
        for net in &self.nets {
            lock(net).change(&change);
        }
    }

    /// All with their sections' names. Takes no lock: a vCPU may have one as long as the host's disk wants.
    pub fn sections(&self) -> Vec<(String, SharedSection)> {
        self.attached.iter().map(|attached| (attached.name.clone(), attached.section.clone())).collect()
    }

    /// Those that send come before those that are told: virtio devices, then the rest.
    fn pause_order(&self) -> impl Iterator<Item = &Mutex<dyn Device>> {
        self.attached.iter().rev().map(|attached| &*attached.device)
    }
}

/// Puts `device` in the place of `previous`, into its window of a bus, and on the list.
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

/// `device` in the place of another one, or in a place of its own.
fn put<T>(place: Option<&Locked<T>>, device: T) -> Locked<T> {
    let Some(place) = place else { return Arc::new(Mutex::new(device)) };
    let previous = std::mem::replace(&mut *lock(place), device);
    // Not under the lock: it may have a thread to wait for.
    drop(previous);
    Arc::clone(place)
}

/// QEMU's name of a virtio device's section: the bus path of the transport, then the device.
fn section_name(window: u8, device: &str) -> String {
    let (address, _) = virtio_place(window);
    format!("virtio-mmio@{address:016x}/{device}")
}
