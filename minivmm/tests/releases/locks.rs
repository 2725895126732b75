//! Streams of earlier minivmms still load: each section's format is locked, with examples at reset and of a real guest.
//! `tests/virtio/locks.rs` has the virtio devices.

use std::sync::Arc;

use minivmm::bus::BusDevice;
use minivmm::devices::ged::Ged;
use minivmm::devices::generation::Generation;
use minivmm::devices::serial::{Output, Serial};
use minivmm::irq::TestLine;
use minivmm::kvm::state::extra::Msr;
use minivmm::kvm::state::processor::{Leaf, Processor};
use minivmm::kvm::state::{Apic, ClockReference, Cpu, CpuCommon, IoApic, KvmClock, Pic, Pit, VcpuExtra};
use minivmm::migration::global::{GlobalState, Timer};
use minivmm::migration::in_transit::InTransit;
use minivmm::migration::ownership::Tickets;
use minivmm::migration::preflight::{Card, DEVICES_MAX, Disk, Facts, Preflight};
use serde_json::Value;
use vmstate::Section;
use vmstate::codec::Reader;
use vmstate::ownership::{Record, Role, Ticket};

use super::machine;

/// Sections of a Linux guest in QEMU 10.0.
const DEVICES: &str = include_str!("../../../vmstate/tests/fixtures/qemu-10.0-microvm.jsonl");
const CPUS: &str = include_str!("../fixtures/qemu-10.0-cpu.jsonl");

/// Reads section `name` of a Linux guest.
fn linux<T: Section + Default>(name: &str) -> T {
    linux_in(T::default(), name)
}

fn linux_in<T: Section>(device: T, name: &str) -> T {
    let mut lines = [DEVICES, CPUS].into_iter().flat_map(str::lines);
    let fixture = lines.find_map(|line| {
        let fixture: Value = serde_json::from_str(line).unwrap();
        (fixture["device"]["name"] == name).then_some(fixture)
    });
    let fixture = fixture.unwrap();
    let text = fixture["body"].as_str().unwrap();
    let body: Vec<u8> =
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
    loaded(device, fixture["version"].as_u64().unwrap() as u32, &body)
}

fn loaded<T: Section>(mut device: T, version: u32, body: &[u8]) -> T {
    device.load(&mut Reader::strict(body), version).unwrap();
    device
}

#[test]
fn processors() {
    vmstate::lock!("tests/locks/cpu_common", reset: CpuCommon::default(), linux: linux::<CpuCommon>("cpu_common"));
    vmstate::lock!("tests/locks/cpu", reset: Cpu::default(), linux: linux::<Cpu>("cpu"));
    vmstate::lock!("tests/locks/apic", reset: Apic::default(), linux: linux::<Apic>("apic"));
}

#[test]
fn chips_and_clocks() {
    vmstate::lock!("tests/locks/ioapic", reset: IoApic::default(), linux: linux::<IoApic>("ioapic"));
    vmstate::lock!("tests/locks/i8259", reset: Pic::default(), linux: linux::<Pic>("i8259"));
    vmstate::lock!("tests/locks/i8254", reset: Pit::default(), linux: linux::<Pit>("i8254"));
    vmstate::lock!("tests/locks/kvmclock", reset: KvmClock::default(), linux: linux::<KvmClock>("kvmclock"));
    vmstate::lock!("tests/locks/timer", reset: Timer::default(), linux: linux::<Timer>("timer"));
    vmstate::lock!("tests/locks/globalstate", running: GlobalState::new("running"), paused: GlobalState::new("paused"));
}

/// Names, order and optional sections of KVM's state.
#[test]
fn whole_machine() {
    vmstate::lock!("tests/locks/machine", two_vcpus: machine());
}

/// Sections that QEMU lacks. Bytes: docs/minivmm-devices.md.
#[test]
fn minivmms_own() {
    let clock = b"\0\0\0\0\0\0\0\x07\0\x2d\xc6\xc0\0\0\0\x01\0\0\0\0\0\0\0\x09";
    vmstate::lock!(
        "tests/locks/minivmm-clock",
        reset: ClockReference::default(),
        one_vcpu: loaded(ClockReference::default(), 1, clock),
        measured: loaded(ClockReference::default(), 2, &[clock.as_slice(), b"\0\0\0\0\0\0\0\x0b"].concat()),
    );
    let mut extra = vmstate::codec::Writer::new();
    VcpuExtra::default().save(&mut extra).unwrap();
    let mut extra = extra.into_bytes();
    // Three bytes of XSAVE area, and one register: 0x48 is 5.
    extra.truncate(extra.len() - 8);
    extra.extend(b"\0\0\0\x03\xa1\xa2\xa3\0\0\0\x01\0\0\0\x48\0\0\0\0\0\0\0\x05");
    vmstate::lock!(
        "tests/locks/minivmm-vcpu",
        reset: VcpuExtra::default(),
        xsave: loaded(VcpuExtra::default(), 1, &extra),
    );
    vmstate::lock!(
        "tests/locks/minivmm-generation",
        told: loaded(Generation::default(), 1, b"\0\0\0\0\0\x09\xf0\0"),
    );
    // Two bytes of input, one of output, and a card with a socket, one byte received, two unsent, none waiting.
    let in_transit = b"\0\0\0\x02ab\0\0\0\x01c\x01\0\0\0\0\0\0\0\x07\0\0\0\x01d\0\0\0\x02ef\0\0\0\0";
    vmstate::lock!(
        "tests/locks/minivmm-in-transit",
        nothing: InTransit::default(),
        one_card: loaded(InTransit::default(), 1, in_transit),
    );
    let record = Some(Record { token: *b"abcdefghijklmnop", generation: 5 });
    let disk = Ticket { role: Role::Disk(1), bytes: 0x1000, record };
    let lease = Ticket { role: Role::Lease, bytes: 0, record };
    vmstate::lock!(
        "tests/locks/minivmm-ownership",
        nothing: Tickets::new(&[]),
        disk_without_record: Tickets::new(&[Ticket { record: None, ..disk }]),
        disk_and_lease: Tickets::new(&[disk, lease]),
    );
}

/// The preflight section of a machine with a leaf, a register, a disk and a card.
#[test]
fn preflight() {
    let leaf = Leaf { function: 1, index: 2, flags: 3, eax: 4, ebx: 5, ecx: 6, edx: 7 };
    let processor = Processor::new(vec![leaf], vec![Msr { index: 0x10a, value: 9 }], 3_000_000);
    let disks = vec![Disk { window: 7, sectors: 8, read_only: true }];
    let cards = vec![Card { window: 6, mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56] }];
    let facts = Facts::new(2, 512 << 20, processor, disks, cards);
    let mut agreed = [0; DEVICES_MAX];
    agreed[0] = 10;
    vmstate::lock!(
        "tests/locks/minivmm-preflight",
        empty: Preflight::default(),
        machine: Preflight::new(facts.clone(), agreed),
    );
}

fn serial() -> Serial {
    Serial::new(Arc::new(TestLine::default()), Output::new(Box::new(std::io::sink())).unwrap())
}

/// A serial port with a byte that the guest has not read.
fn waiting() -> Serial {
    let mut serial = serial();
    serial.write(1, &[1]);
    serial.enqueue(b"?");
    serial
}

fn event_device() -> Ged {
    Ged::new(Arc::new(TestLine::default()), Box::new(|_| {}))
}

/// An event device with an event that the guest has not read.
fn pressed() -> Ged {
    let mut device = event_device();
    device.press_power_button();
    device
}

#[test]
fn devices() {
    vmstate::lock!("tests/locks/serial", reset: serial(), linux: linux_in(serial(), "serial"), waiting: waiting());
    vmstate::lock!("tests/locks/acpi-ged", reset: event_device(), pressed: pressed());
}
