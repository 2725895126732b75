//! State in KVM has QEMU's format: QEMU's real sections load, save to the same bytes, and have the same description.

use minivmm::kvm::state::{Apic, Cpu, CpuCommon, IoApic, KvmClock, Pic, Pit};
use minivmm::migration::global::{GlobalState, Timer};
use serde_json::Value;
use vmstate::VmState;
use vmstate::codec::{Reader, Writer};
use vmstate::raw::vmdesc;

const DEVICES: &str = include_str!("../../vmstate/tests/fixtures/qemu-10.0-microvm.jsonl");
const CPUS: &str = include_str!("fixtures/qemu-10.0-cpu.jsonl");

/// Loads each fixture of `name`, saves it again, and compares bytes and description.
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
        // Compared as text: the order of the keys is QEMU's, too.
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

/// A subsection of version 1 with this name and body.
fn subsection(name: &str, body: &[u8]) -> Vec<u8> {
    [&[5, name.len() as u8], name.as_bytes(), &[0, 0, 0, 1], body].concat()
}

/// Subsections that the lab's processor never makes, in the layout and order of target/i386/machine.c, filled with distinct
/// bytes.
#[test]
fn state_of_features_goes_through_as_qemu_sends_it() {
    let mut out = Writer::new();
    vmstate::Section::save(&mut Cpu::default(), &mut out).unwrap();
    let plain = out.into_bytes();
    let sizes = [
        ("cpu/msr_ia32_feature_control", 8),
        // Four control registers, then 3, 18 and 18 counters and event selects.
        ("cpu/msr_architectural_pmu", 8 * (4 + 3 + 18 + 18)),
        // Eight masks, sixteen upper halves, sixteen whole registers.
        ("cpu/avx512", 8 * 8 + 16 * 32 + 16 * 64),
        ("cpu/umwait", 4),
        ("cpu/msr_smi_count", 8),
        ("cpu/pkru", 4),
        ("cpu/mcg_ext_ctl", 8),
        ("cpu/virt_ssbd", 8),
        ("cpu/msr_tsx_ctrl", 4),
    ];
    let ramp: Vec<u8> = (0..2000_u32).map(|at| (at * 7 + at / 256 + 1) as u8).collect();
    let mut body = plain.clone();
    for (name, size) in sizes {
        body.extend(subsection(name, &ramp[..size]));
    }
    let mut cpu = Cpu::default();
    vmstate::Section::load(&mut cpu, &mut Reader::strict(&body), 12).unwrap();
    assert_eq!((cpu.pkru, cpu.opmask[0]), (0x0108_0f16, 0x0108_0f16_1d24_2b32));
    let mut out = Writer::new();
    vmstate::Section::save(&mut cpu, &mut out).unwrap();
    assert_eq!(out.into_bytes(), body);

    let nested = [plain.clone(), subsection("cpu/nested_state", &[0, 1, 0, 0, 0, 0, 0, 128])].concat();
    let refused = vmstate::Section::load(&mut Cpu::default(), &mut Reader::strict(&nested), 12).unwrap_err();
    assert!(refused.to_string().contains("nested virtualization is not migrated"), "{refused}");
    let unknown = [plain, subsection("cpu/intel_amx_xtile", &[0; 8256])].concat();
    let refused = vmstate::Section::load(&mut Cpu::default(), &mut Reader::strict(&unknown), 12).unwrap_err();
    assert!(refused.to_string().contains("cpu/intel_amx_xtile"), "{refused}");
}
