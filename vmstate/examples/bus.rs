//! A bus of devices behind locks, as most VMMs have it: vCPU threads access a device through the bus, the engine through the
//! table of sections, and neither depends on the device's type.
//!
//! `cargo run --example bus`

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use vmstate::codec::{Reader, Strictness, Writer};
use vmstate::section::{Section, Sections};
use vmstate::{ErrorKind, VmState};

/// The interface of a device on the bus. [`Section`] is a supertrait, so every device can be migrated, and a device that does not
/// derive `VmState` does not compile.
trait Device: Section + Send {
    fn read(&mut self, register: u16) -> u8;
    fn write(&mut self, register: u16, value: u8);
}

/// The memory of a real-time clock: an index register, and the bytes that it selects.
#[derive(VmState, Debug, PartialEq)]
#[vmstate(name = "cmos", version = 1)]
struct Cmos {
    #[vmstate(validate = Self::index_is_inside)]
    index: u8,
    memory: [u8; 128],
}

impl Cmos {
    /// The guest can set only 7 bits of the index, so a stream must not set more: `read` relies on it.
    fn index_is_inside(&self) -> Result<(), String> {
        if self.index < 128 { Ok(()) } else { Err(format!("index {} of 128", self.index)) }
    }
}

impl Device for Cmos {
    fn read(&mut self, register: u16) -> u8 {
        if register == 0 { self.index } else { self.memory[usize::from(self.index)] }
    }

    fn write(&mut self, register: u16, value: u8) {
        match register {
            0 => self.index = value & 0x7f,
            _ => self.memory[usize::from(self.index)] = value,
        }
    }
}

/// A debug port that counts. Its printed text belongs to the host and is not migrated.
#[derive(VmState, Debug, Default, PartialEq)]
#[vmstate(name = "debug-port", version = 1)]
struct DebugPort {
    written: u32,
    #[vmstate(skip)]
    output: Vec<u8>,
}

impl Device for DebugPort {
    fn read(&mut self, _register: u16) -> u8 {
        0xe9
    }

    fn write(&mut self, _register: u16, value: u8) {
        self.written = self.written.wrapping_add(1);
        self.output.push(value);
    }
}

type Shared = Arc<Mutex<dyn Device>>;

/// The ports and their devices.
struct Bus {
    devices: Vec<(u16, Shared)>,
}

impl Bus {
    fn new() -> Self {
        let (cmos, debug) = (Cmos { index: 0, memory: [0; 128] }, DebugPort::default());
        Self { devices: vec![(0x70, Arc::new(Mutex::new(cmos)) as Shared), (0x80, Arc::new(Mutex::new(debug)))] }
    }

    fn access<T>(&self, port: u16, access: impl FnOnce(&mut dyn Device, u16) -> T) -> Option<T> {
        let (base, device) = self.devices.iter().rfind(|(base, _)| *base <= port)?;
        Some(access(&mut *device.lock().unwrap_or_else(PoisonError::into_inner), port - base))
    }

    fn write(&self, port: u16, value: u8) {
        self.access(port, |device, register| device.write(register, value));
    }

    fn read(&self, port: u16) -> u8 {
        self.access(port, |device, register| device.read(register)).unwrap_or(0xff)
    }

    /// The machine's table of sections, which does not name any device's type either. Each clone of an `Arc` refers to the same
    /// device.
    fn sections(&self) -> vmstate::Result<Sections<'static>> {
        let mut sections = Sections::new();
        for (_, device) in &self.devices {
            sections.add(Arc::clone(device))?;
        }
        Ok(sections)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (here, there) = (Bus::new(), Bus::new());
    here.write(0x70, 0x10);
    here.write(0x71, 0xab);
    here.write(0x80, b'!');

    // A migration does the following with each section. `vmstate::migrate::snapshot` writes all of them to a file.
    let mut sections = there.sections()?;
    for section in here.sections()?.in_order() {
        let mut out = Writer::new();
        section.save(&mut out)?;
        println!("{}/{}: {} bytes", section.idstr(), section.instance(), out.len());
        let version = section.description().version;
        sections.load(section.idstr(), section.instance(), version, &mut Reader::strict(out.as_slice()))?;
    }
    sections.check_complete(Strictness::Strict)?;
    if (there.read(0x70), there.read(0x71)) != (0x10, 0xab) {
        return Err("the clock's memory did not arrive".into());
    }

    // A stream that would make the device read outside of its memory is refused, and the device is unchanged.
    sections.begin_load();
    let mut hostile = [0; 129];
    hostile[0] = 200;
    let error = sections.load("cmos", 0, 1, &mut Reader::strict(&hostile)).err().ok_or("it was loaded")?;
    println!("refused: {error}");
    if error.kind() != ErrorKind::Rejected || there.read(0x71) != 0xab {
        return Err("the device changed".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn devices_of_any_type_load_and_refuse() {
        super::main().unwrap();
    }
}
