//! Operations of a program on the serial port and on the event device.

use std::sync::Arc;
use std::time::Duration;

use minivmm::bus::BusDevice;
use minivmm::devices::Device;
use minivmm::devices::ged::{Ged, Power};
use minivmm::devices::serial::Serial;
use minivmm::machine_map::GED_LEN;
use vmstate::Section;
use vmstate::codec::{Limits, Reader, Strictness, Writer};

use super::surroundings::{Surroundings, UNWATCHED};
use crate::program::Program;

const DATA: u64 = 0;
const IIR_FCR: u64 = 2;
const MCR: u64 = 4;
const LSR: u64 = 5;
const FIFO_DEPTH: u8 = 16;
/// Operands of an operation: position and change of a byte of the section.
pub(super) const DAMAGE: u8 = 15;

/// A device, and after a move also its copy, each with its surroundings.
struct Pair<D> {
    devices: Vec<(D, Arc<Surroundings>)>,
    fresh: fn(&Arc<Surroundings>) -> D,
    /// Something may have been printed since the move; otherwise the comparison need not wait for the consoles.
    printed: bool,
}

impl<D: Device + Section + BusDevice> Pair<D> {
    fn new(fresh: fn(&Arc<Surroundings>) -> D) -> Self {
        let around = Arc::new(Surroundings::new(0));
        Self { devices: vec![(fresh(&around), around)], fresh, printed: false }
    }

    /// Does the same to both devices, which must answer alike and change their surroundings alike.
    fn each<R: PartialEq + std::fmt::Debug>(&mut self, mut act: impl FnMut(&mut D) -> R) -> R {
        let mut answers: Vec<_> = self.devices.iter_mut().map(|(device, _)| act(device)).collect();
        if let ([ours, theirs], [original, copy]) = (&answers[..], &self.devices[..]) {
            assert_eq!(ours, theirs, "the devices answer differently");
            original.1.compare(&copy.1);
        }
        answers.swap_remove(0)
    }

    fn read(&mut self, offset: u64, width: usize) -> Vec<u8> {
        self.each(|device| {
            let mut data = vec![0; width];
            device.read(offset, &mut data);
            data
        })
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.printed |= offset == DATA;
        self.each(|device| device.write(offset, data));
    }

    fn rest(&mut self) {
        self.each(|device| {
            device.pause(Duration::ZERO).expect("a pause that waits for nothing");
            device.resume();
        });
    }

    /// Moves the guest to another device, after which there are both.
    fn move_on(&mut self, to_copy: bool) {
        let sections: Vec<_> = self.devices.iter_mut().map(|(device, _)| saved(device)).collect();
        if let ([ours, theirs], [original, copy]) = (&sections[..], &self.devices[..]) {
            assert_eq!(ours, theirs, "two devices with the same history save different states");
            if self.printed {
                original.1.compare_output(&copy.1);
            }
        }
        self.printed = false;
        let chosen = if to_copy { self.devices.len() - 1 } else { 0 };
        let (original, around) = self.devices.swap_remove(chosen);
        let others = Arc::new(Surroundings::new(1 - around.console));
        let mut copy = (self.fresh)(&others);
        let rest = load(&mut copy, &sections[chosen])
            .unwrap_or_else(|error| panic!("a state that a guest reached does not load: {error}"));
        assert_eq!(rest, 0, "the load leaves bytes of the saved state");
        assert_eq!(saved(&mut copy), sections[chosen], "the loaded state saves as other bytes");
        self.devices = vec![(original, around), (copy, others)];
        // A device repeats at the destination an event that the guest may have missed.
        self.devices.iter_mut().for_each(|(device, around)| {
            device.resume();
            around.begin();
        });
    }

    /// Loads a damaged section: the device must refuse it and be unchanged, or work on without a panic.
    fn damage(&mut self, position: usize, change: u8) {
        let mut section = saved(&mut self.devices[0].0);
        let position = position % section.len();
        section[position] ^= change;
        let around = Arc::new(Surroundings::new(UNWATCHED));
        let [mut copy, mut again] = [&around, &around].map(self.fresh);
        let before = saved(&mut copy);
        match load(&mut copy, &section) {
            Err(error) => {
                assert!(saved(&mut copy) == before, "changed by a load that failed: {error}");
                return;
            }
            // Remaining bytes are an error of the stream.
            Ok(rest) if rest != 0 => return,
            Ok(_) => {}
        }
        let loaded = saved(&mut copy);
        let rest = load(&mut again, &loaded)
            .unwrap_or_else(|error| panic!("the state saved after the damage does not load: {error}"));
        assert_eq!(rest, 0, "the load leaves bytes of the saved state");
        assert!(saved(&mut again) == loaded, "the state saved after the damage loads as another one");
        copy.resume();
        for offset in 0..8 {
            copy.read(offset, &mut [0]);
            copy.write(offset, &[0xff]);
        }
    }

    fn end(mut self) {
        self.move_on(false);
        self.rest();
    }
}

fn saved(device: &mut impl Section) -> Vec<u8> {
    let mut out = Writer::new();
    device.save(&mut out).unwrap_or_else(|error| panic!("no save: {error}"));
    out.into_bytes()
}

/// Loads a section; returns the number of bytes left.
fn load(device: &mut impl Section, section: &[u8]) -> vmstate::Result<usize> {
    let mut input = Reader::new(section, 0, Strictness::Strict, Limits::default()).complete();
    let version = device.description().version;
    device.load(&mut input, version)?;
    Ok(input.rest().len())
}

/// The serial port; operations: read and write of registers, input, move.
pub(super) fn serial(program: &mut Program<'_>) {
    let mut ports = Pair::new(|around| Serial::new(Arc::clone(around) as _, around.output()));
    let mut fifo = false;
    while let Some((operation, argument)) = program.operation() {
        if operation == DAMAGE {
            ports.damage(program.u16().into(), program.u8());
            continue;
        }
        let register = u64::from(argument) & 7;
        match operation & 7 {
            0..=1 => drop(ports.read(register, 1)),
            // KVM makes accesses of up to 8 bytes.
            2 => drop(ports.read(register, usize::from(program.u8()) % 9)),
            3..=4 => {
                let value = program.u8();
                if register == IIR_FCR {
                    fifo = value & 1 != 0;
                }
                ports.write(register, &[value]);
            }
            5 => {
                // Input that does not fit into the chip waits on the host, and stays there when the guest moves.
                let empty = ports.read(LSR, 1)[0] & 1 == 0;
                let in_loopback = ports.read(MCR, 1)[0] & 0x10 != 0;
                let count = if fifo { argument % FIFO_DEPTH + 1 } else { 1 };
                if empty && !in_loopback {
                    let input = program.bytes(count.into());
                    ports.each(|port| assert_eq!(port.enqueue(input), input.len()));
                }
            }
            6 => ports.rest(),
            _ => ports.move_on(argument & 1 != 0),
        }
    }
    ports.end();
}

/// The event device; operations: read and write of registers, power button, move.
pub(super) fn event_device(program: &mut Program<'_>) {
    let mut devices = Pair::new(|around| {
        let told = Arc::clone(around);
        let on_power = move |power| told.count(power == Power::Off);
        Ged::new(Arc::clone(around) as _, Box::new(on_power))
    });
    while let Some((operation, argument)) = program.operation() {
        if operation == DAMAGE {
            devices.damage(program.u16().into(), program.u8());
            continue;
        }
        match operation & 3 {
            0 => drop(devices.read(u64::from(program.u16()) % (GED_LEN + 8), usize::from(argument) % 9)),
            1 => devices.write(u64::from(program.u16()) % (GED_LEN + 8), program.bytes(usize::from(argument) % 9)),
            2 => devices.each(Ged::press_power_button),
            _ => devices.move_on(argument & 1 != 0),
        }
    }
    devices.end();
}
