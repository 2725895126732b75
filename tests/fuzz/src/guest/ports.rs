//! Operations of a program at the serial port and at the event device.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use minivmm::bus::BusDevice;
use minivmm::devices::Device;
use minivmm::devices::ged::{Ged, WINDOW};
use minivmm::devices::serial::{Output, Serial};
use minivmm::irq::TestLine;
use vmstate::Section;
use vmstate::codec::{Limits, Reader, Strictness, Writer};

use super::program::Program;

const IIR_FCR: u64 = 2;
const MCR: u64 = 4;
const LSR: u64 = 5;
const FIFO_DEPTH: u8 = 16;

/// One console for all: its thread takes what the guests print.
static CONSOLE: LazyLock<Output> = LazyLock::new(|| Output::new(Box::new(std::io::sink())).expect("a thread"));

/// A device, and after a move also the one that took its place.
struct Pair<D> {
    devices: Vec<D>,
    fresh: fn() -> D,
}

impl<D: Device + Section + BusDevice> Pair<D> {
    fn new(fresh: fn() -> D) -> Self {
        Self { devices: vec![fresh()], fresh }
    }

    /// What both answer.
    fn read(&mut self, offset: u64, width: usize) -> Vec<u8> {
        let answers = self.devices.iter_mut().map(|device| {
            let mut data = vec![0; width];
            device.read(offset, &mut data);
            data
        });
        let mut answers: Vec<_> = answers.collect();
        if let [ours, theirs] = &answers[..] {
            assert_eq!(ours, theirs, "{width} bytes at {offset:#x}");
        }
        answers.swap_remove(0)
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.devices.iter_mut().for_each(|device| device.write(offset, data));
    }

    fn rest(&mut self) {
        for device in &mut self.devices {
            device.pause(Duration::ZERO).expect("nobody has to be waited for");
            device.resume();
        }
    }

    /// Moves the guest to another device; from then on there are both.
    fn move_on(&mut self, to_copy: bool) {
        let sections: Vec<_> = self.devices.iter_mut().map(saved).collect();
        if let [ours, theirs] = &sections[..] {
            assert_eq!(ours, theirs, "two devices that did the same save different states");
        }
        let chosen = if to_copy { self.devices.len() - 1 } else { 0 };
        let original = self.devices.swap_remove(chosen);
        let mut copy = (self.fresh)();
        let mut input = Reader::new(&sections[chosen], 0, Strictness::Strict, Limits::default()).complete();
        let version = copy.description().version;
        Section::load(&mut copy, &mut input, version)
            .unwrap_or_else(|error| panic!("what a guest reached does not load: {error}"));
        assert_eq!(input.rest(), b"", "what was saved is longer than what was loaded");
        assert_eq!(saved(&mut copy), sections[chosen], "what was loaded saves as something else");
        self.devices = vec![original, copy];
        self.rest();
    }
}

fn saved(device: &mut impl Section) -> Vec<u8> {
    let mut out = Writer::new();
    device.save(&mut out).unwrap_or_else(|error| panic!("no save: {error}"));
    out.into_bytes()
}

/// Operations: read and write of registers, input, move.
pub(super) fn serial(program: &mut Program<'_>) {
    let mut ports = Pair::new(|| Serial::new(Arc::new(TestLine::default()), CONSOLE.clone()));
    let mut fifo = false;
    while let Some((operation, argument)) = program.operation() {
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
                // What does not fit into the chip waits on the host, and stays there when the guest moves.
                let empty = ports.read(LSR, 1)[0] & 1 == 0;
                let in_loopback = ports.read(MCR, 1)[0] & 0x10 != 0;
                let count = if fifo { argument % FIFO_DEPTH + 1 } else { 1 };
                if empty && !in_loopback {
                    let input = program.bytes(count.into());
                    ports.devices.iter_mut().for_each(|port| assert_eq!(port.enqueue(input), input.len()));
                }
            }
            6 => ports.rest(),
            _ => ports.move_on(argument & 1 != 0),
        }
    }
    ports.move_on(false);
}

/// Operations: read and write of registers, power button, move.
pub(super) fn event_device(program: &mut Program<'_>) {
    static POWER: AtomicUsize = AtomicUsize::new(0);
    let fresh = || {
        let on_power = |_| {
            POWER.fetch_add(1, Ordering::Relaxed);
        };
        Ged::new(Arc::new(TestLine::default()), Box::new(on_power))
    };
    let mut devices = Pair::new(fresh);
    while let Some((operation, argument)) = program.operation() {
        match operation & 3 {
            0 => drop(devices.read(u64::from(program.u16()) % (WINDOW + 8), usize::from(argument) % 9)),
            1 => devices.write(u64::from(program.u16()) % (WINDOW + 8), program.bytes(usize::from(argument) % 9)),
            2 => devices.devices.iter_mut().for_each(Ged::press_power_button),
            _ => devices.move_on(argument & 1 != 0),
        }
    }
    devices.move_on(false);
}
