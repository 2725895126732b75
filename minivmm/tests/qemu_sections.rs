//! Hypervisor state is QEMU's: its real sections load into ours, save to the same bytes, and describe themselves alike.

use minivmm::kvm::state::{Apic, Cpu, CpuCommon, IoApic, KvmClock, Pic, Pit};
use minivmm::migration::global::{GlobalState, Timer};
use serde_json::Value;
use vmstate::VmState;
use vmstate::codec::{Reader, Writer};
use vmstate::schema::vmdesc;

const DEVICES: &str = include_str!("../../vmstate/tests/fixtures/qemu-10.0-microvm.jsonl");
const CPUS: &str = include_str!("fixtures/qemu-10.0-cpu.jsonl");

/// Loads each fixture of `name`, saves it again and compares the bytes; returns how it describes itself and how QEMU did.
fn same_bytes<T: VmState>(fixtures: &str, name: &str, fresh: impl Fn() -> T) -> Vec<(Value, Value)> {
    let fixtures = fixtures.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let pairs: Vec<_> = fixtures
        .filter(|fixture| fixture["device"]["name"] == name)
        .map(|mut fixture| {
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
            let mut theirs = fixture["device"].take();
            theirs.as_object_mut().unwrap().shift_remove("name");
            theirs.as_object_mut().unwrap().shift_remove("instance_id");
            (Value::from(vmdesc(T::DESCRIPTION, &outcomes).unwrap()), theirs)
        })
        .collect();
    assert!(!pairs.is_empty(), "no fixture of {name}");
    pairs
}

fn same<T: VmState>(name: &str, fresh: impl Fn() -> T) {
    for (ours, theirs) in same_bytes(DEVICES, name, fresh) {
        assert_eq!(ours.to_string(), theirs.to_string());
    }
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
    for (ours, mut theirs) in same_bytes(CPUS, "cpu", Cpu::default) {
        // QEMU describes an x87 register as a temporary struct inside another; the ten bytes are the same.
        let registers = theirs["fields"].as_array_mut().unwrap();
        let registers = registers.iter_mut().find(|field| field["name"] == "env.fpregs").unwrap();
        registers["struct"]["fields"] = registers["struct"]["fields"][0]["fields"].take();
        assert_eq!(ours.to_string(), theirs.to_string());
    }
}
