//! Every section of QEMU's `microvm` as a type: minivmm's own where it has the device, a derived test device for the
//! rest. A whole stream of QEMU loads into these types and is written again from them.

mod configuration;
#[path = "../../../vmstate/tests/devices/mod.rs"]
#[allow(dead_code, reason = "minivmm has its own types for most of them")]
mod devices;
mod net;
mod stream;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use minivmm::devices::ged::Ged;
use minivmm::devices::serial::{Output, Serial};
use minivmm::devices::virtio::blk::{Blk, Image};
use minivmm::devices::virtio::mmio::Virtio;
use minivmm::devices::virtio::net::Net;
use minivmm::irq::TestLine;
use minivmm::memory::Ram;
use minivmm::migration::sections::{MachineState, Parts, SharedSection};
use vmstate::section::Sections;
use vmstate_lab::error::{Error, Result};

use self::net::Unplugged;

/// The section name of the disk, in the first window that QEMU fills.
pub const DISK: &str = "virtio-mmio@00000000feb00e00/virtio-blk";
/// The section name of the network card, in the second window.
pub const NET: &str = "virtio-mmio@00000000feb00c00/virtio-net";

/// A device that is shared between a test, which drives it, and its section.
type Locked<T> = Arc<Mutex<T>>;

/// A machine with one vCPU, a disk and a network card, in its state after power-on. It has no hypervisor and never
/// runs.
pub struct Microvm {
    /// Guest memory, which holds the devices' rings.
    pub ram: Ram,
    /// The state that a hypervisor would hold, and the state of the whole machine.
    pub state: Locked<MachineState>,
    /// COM1.
    pub serial: Locked<Serial>,
    /// The generic event device.
    pub ged: Locked<Ged>,
    /// The disk.
    pub disk: Locked<Virtio<Blk>>,
    /// The network card, without a backend.
    pub net: Locked<Virtio<Net<Unplugged>>>,
    sections: Sections<'static>,
}

impl fmt::Debug for Microvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Microvm").field("sections", &self.sections).finish_non_exhaustive()
    }
}

impl Microvm {
    /// A machine with `ram` bytes of guest memory and the disk `image`.
    ///
    /// # Errors
    /// When the image cannot be opened, or memory or threads cannot be allocated.
    pub fn new(ram: u64, image: &Path) -> Result<Self> {
        let host = |what: &dyn fmt::Display| Error::failed(what.to_string());
        let ram = Ram::new(ram).map_err(|error| host(&error))?;
        let image = Arc::new(Image::open(image, false).map_err(|error| host(&error))?);
        let line = || Arc::new(TestLine::default());
        let console = Output::new(Box::new(io::sink())).map_err(|error| host(&error))?;
        let disk = Virtio::new(DISK.into(), Blk::new(image), ram.guest().clone(), line());
        let card = Net::new(Unplugged::new().map_err(|error| host(&error))?, [0; 6]);
        let net = Virtio::new(NET.into(), card, ram.guest().clone(), line());
        let mut machine = Self {
            ram,
            state: Arc::new(Mutex::new(MachineState::new(1))),
            serial: Arc::new(Mutex::new(Serial::new(line(), console))),
            ged: Arc::new(Mutex::new(Ged::new(line(), Box::new(|_| ())))),
            disk: Arc::new(Mutex::new(disk.map_err(|error| host(&error))?)),
            net: Arc::new(Mutex::new(net.map_err(|error| host(&error))?)),
            sections: Sections::new(),
        };
        machine.register().map_err(|error| host(&error))?;
        Ok(machine)
    }

    /// All sections of the machine.
    pub fn sections(&mut self) -> &mut Sections<'static> {
        &mut self.sections
    }

    fn register(&mut self) -> vmstate::Result<()> {
        let devices: [(&str, SharedSection); 4] = [
            ("acpi-ged", SharedSection::new(&self.ged)),
            ("serial", SharedSection::new(&self.serial)),
            (DISK, SharedSection::new(&self.disk)),
            (NET, SharedSection::new(&self.net)),
        ];
        let devices = devices.map(|(name, device)| (name.to_owned(), device)).into();
        self.sections = Parts {
            state: Arc::clone(&self.state),
            vcpus: 1,
            tickets: Arc::default(),
            devices,
            generation: Arc::default(),
            bitmaps: Arc::default(),
            disks: Vec::new(),
        }
        .sections()?;
        self.sections.register("mc146818rtc", 0, devices::Rtc::new())?;
        Ok(())
    }
}
