//! Hypervisor state is QEMU's: its real sections load into ours, save to the same bytes, and describe themselves alike.

use minivmm::kvm::state::{Apic, Cpu, CpuCommon, IoApic, KvmClock, Pic, Pit};
use minivmm::migration::global::{GlobalState, Timer};
use serde_json::Value;
use vmstate::VmState;
use vmstate::codec::{Reader, Writer};
use vmstate::raw::vmdesc;

const DEVICES: &str = include_str!("../../vmstate/tests/fixtures/qemu-10.0-microvm.jsonl");
const CPUS: &str = include_str!("fixtures/qemu-10.0-cpu.jsonl");

/// Loads each fixture of `name`, saves it again, and compares the bytes and how it describes itself.
fn same<T: VmState>(name: &str, fresh: impl Fn() -> T) {
    let mut compared = 0;
    for line in DEVICES.lines().chain(CPUS.lines()) {
        let mut fixture: Value = serde_json::from_str(line).unwrap();
        if fixture["device"]["name"] != name {
            continue;
        }
        let text = fixture["body"].as_str().unwrap();
        let body: Vec<u8> =
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
        let version = u32::try_from(fixture["version"].as_u64().unwrap()).unwrap();
        let mut device = fresh();
        let mut input = Reader::strict(&body).complete();
        device.load_or_keep(&mut input, version).unwrap();
        assert_eq!(input.rest(), b"", "{name}: bytes left over");
        let mut out = Writer::recording();
        device.save(&mut out).unwrap();
        let (bytes, outcomes) = out.into_parts();
        assert_eq!(bytes, body, "{name}");
        let theirs = fixture["device"].as_object_mut().unwrap();
        theirs.shift_remove("name");
        theirs.shift_remove("instance_id");
        let ours = Value::from(vmdesc(T::DESCRIPTION, &outcomes).unwrap());
        // As text: the order of the keys is QEMU's too.
        assert_eq!(ours.to_string(), fixture["device"].to_string());
        compared += 1;
    }
    assert!(compared > 0, "no fixture of {name}");
}

#[test]
fn chips_and_clocks_are_qemus() {
    same("cpu_common", CpuCommon::default);
    same("apic", Apic::default);
    same("ioapic", IoApic::default);
    same("i8259", Pic::default);
    same("i8254", Pit::default);
    same("kvmclock", KvmClock::default);
    same("timer", Timer::default);
    same("globalstate", || GlobalState::new("running"));
}

#[test]
fn a_vcpu_is_qemus() {
    same("cpu", Cpu::default);
}
