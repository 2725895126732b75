//! A machine to load streams into: all devices, each with its loads checked, and RAM that only checks the requested
//! ranges.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use vmstate::channel::Channel;
use vmstate::codec::{Limits, Strictness};
use vmstate::error::Result;
use vmstate::migrate::snapshot;
use vmstate::ram::{GuestRam, PAGE_SIZE, RamBlock};
use vmstate::section::{Section, Sections};

use crate::devices;
use crate::flash::Flash;
use crate::rollback::Rollback;

/// The machine type of the streams.
pub const TYPE: &str = "microvm";
/// Limit on what a section's fields may allocate.
pub const LIMITS: Limits = Limits::new(1 << 20);

/// Devices and RAM.
#[derive(Debug)]
pub struct Machine {
    devices: Vec<(&'static str, u32, Rollback<'static>)>,
    flash: Flash,
    ram: Ram,
}

impl Machine {
    /// QEMU's `microvm` with 16 MiB, which keeps the RAM blocks of QEMU's firmware.
    pub fn microvm() -> Self {
        Self::with(&[("microvm.ram", 16 << 20)])
    }

    /// All devices, and RAM blocks of these lengths.
    pub fn with(blocks: &[(&str, u64)]) -> Self {
        let blocks = blocks.iter().map(|&(name, len)| RamBlock { name: name.into(), len }).collect();
        Self { devices: devices::all(), flash: Flash::full(), ram: Ram { blocks, kept: Mutex::default() } }
    }

    /// Keeps only the devices of these names.
    pub fn only(mut self, names: &[&str]) -> Self {
        self.devices.retain(|(name, ..)| names.contains(name));
        self
    }

    /// Loads a stream that arrives `at_once` bytes at a time.
    ///
    /// # Errors
    /// The error of the load.
    ///
    /// # Panics
    /// When the load breaks a promise.
    pub fn load(&mut self, stream: &[u8], strictness: Strictness, at_once: usize) -> Result<()> {
        let Self { devices, flash, ram } = self;
        let mut tape = Tape { stream, at_once, written: Vec::new() };
        snapshot::load(&mut tape, TYPE, strictness, LIMITS, &mut sections(devices, flash), ram)
    }

    /// Writes a stream.
    ///
    /// # Panics
    /// When a device refuses to be saved.
    pub fn save(&mut self) -> Vec<u8> {
        let Self { devices, flash, ram } = self;
        let mut tape = Tape { stream: &[], at_once: 0, written: Vec::new() };
        snapshot::save(&mut tape, TYPE, &mut sections(devices, flash), ram).expect("a machine that saves");
        tape.written
    }

    /// The sections that the devices would send.
    pub fn saved(&mut self) -> Vec<Vec<u8>> {
        let devices = self.devices.iter_mut().map(|(_, _, device)| device.saved());
        devices.chain([self.flash.saved()]).collect()
    }
}

fn sections<'a>(devices: &'a mut [(&'static str, u32, Rollback<'static>)], flash: &'a mut Flash) -> Sections<'a> {
    let mut sections = Sections::new();
    sections.add_iterative(flash).expect("a name of its own").optional();
    for (name, instance, device) in devices {
        sections.register(name, *instance, device as &mut dyn Section).expect("names that differ").optional();
    }
    sections
}

/// RAM blocks without contents.
#[derive(Debug)]
struct Ram {
    blocks: Vec<RamBlock>,
    /// Lengths of the blocks that the load asked to keep.
    kept: Mutex<Vec<u64>>,
}

/// Largest number of kept blocks, and their largest length.
const KEPT: (usize, u64) = (9, 2 << 20);

impl Ram {
    fn check(&self, block: usize, offset: u64, len: usize) {
        let end = offset.checked_add(len as u64).expect("an end");
        let own = self.blocks.get(block).map(|block| block.len);
        let has = own.unwrap_or_else(|| self.kept.lock().unwrap()[block - self.blocks.len()]);
        assert!(end <= has && offset.is_multiple_of(PAGE_SIZE), "{offset:#x}, {len:#x} bytes: outside");
    }
}

impl GuestRam for Ram {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn adopt(&self, name: &str, len: u64) -> Result<bool> {
        assert!(self.blocks.iter().all(|block| block.name != name), "{name} is a block already");
        let mut kept = self.kept.lock().unwrap();
        let keeps = (name == "pc.bios" || name.starts_with("/rom@")) && kept.len() < KEPT.0 && len <= KEPT.1;
        kept.extend(keeps.then_some(len));
        Ok(keeps)
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        self.check(block, offset, into.len());
        into.fill(0);
        Ok(())
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.check(block, offset, from.len());
        Ok(())
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.check(block, offset, 4096);
        Ok(())
    }
}

/// A file in memory, as a channel.
struct Tape<'a> {
    stream: &'a [u8],
    at_once: usize,
    written: Vec<u8>,
}

impl Channel for Tape<'_> {
    fn send(&mut self, bytes: &[u8], _timeout: Duration) -> io::Result<usize> {
        self.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn receive(&mut self, into: &mut [u8], _timeout: Duration) -> io::Result<usize> {
        let count = self.stream.len().min(into.len()).min(self.at_once);
        let (now, later) = self.stream.split_at(count);
        into[..count].copy_from_slice(now);
        self.stream = later;
        Ok(count)
    }
}
