//! QEMU's own devices, derived: real sections load, save to the same bytes, and have QEMU's self-description.

#[path = "../devices/mod.rs"]
mod devices;

use serde_json::Value;
use vmstate::VmState;
use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::raw::vmdesc;
use vmstate::testing::bytes;

/// Loads each fixture section of `name` into a fresh `T`, saves it again, and compares bytes and description.
fn same_as_qemu<T: VmState>(name: &str, fresh: impl Fn() -> T) {
    let fixtures = include_str!("../fixtures/qemu-10.0-microvm.jsonl").lines();
    let fixtures = fixtures.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut compared = 0;
    for fixture in fixtures.filter(|fixture| fixture["device"]["name"] == name) {
        let body = unhex(fixture["body"].as_str().unwrap());
        let version = u32::try_from(fixture["version"].as_u64().unwrap()).unwrap();
        assert_eq!(version, T::DESCRIPTION.version);

        for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
            let mut device = fresh();
            let mut input = Reader::new(&body, 0, strictness, Limits::default()).complete();
            device.load_or_keep(&mut input, version).unwrap();
            assert_eq!(input.rest(), b"", "{name}: bytes left over");

            let mut out = Writer::recording();
            device.save(&mut out).unwrap();
            let (bytes, outcomes) = out.into_parts();
            assert_eq!(bytes, body, "{name}");

            let mut expected = fixture["device"].as_object().unwrap().clone();
            expected.shift_remove("name");
            expected.shift_remove("instance_id");
            let described = vmdesc(T::DESCRIPTION, &outcomes).unwrap();
            // Compared as text: the order of the keys must be QEMU's, too.
            assert_eq!(Value::from(described).to_string(), Value::from(expected).to_string());
        }

        for (at, change) in
            (0..body.len()).flat_map(|at| [0x01, 0x05 ^ body[at], 0x80, 0xff].map(|change| (at, change)))
        {
            let mut damaged = body.clone();
            damaged[at] ^= change;
            for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
                let mut device = fresh();
                let before = bytes(&mut device);
                let mut input = Reader::new(&damaged, 0, strictness, Limits::default()).complete();
                if device.load_or_keep(&mut input, version).is_err() {
                    assert_eq!(bytes(&mut device), before, "{name} damaged at {at}");
                }
            }
        }

        for cut in 0..body.len() {
            let mut device = fresh();
            let mut input = Reader::new(&body[..cut], 0, Strictness::Strict, Limits::default());
            let error = device.load_or_keep(&mut input, version).unwrap_err();
            assert!(error.is_incomplete(), "{name} cut at {cut}: {error}");
        }
        compared += 1;
    }
    assert!(compared > 0, "no fixture of {name}");
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn timer() {
    same_as_qemu("timer", devices::Timers::default);
}

#[test]
fn fw_cfg() {
    same_as_qemu("fw_cfg", devices::FwCfg::default);
}

#[test]
fn cpu_common() {
    same_as_qemu("cpu_common", devices::CpuCommon::default);
}

#[test]
fn kvm_tpr_opt() {
    same_as_qemu("kvm-tpr-opt", devices::KvmTprOpt::default);
}

#[test]
fn apic() {
    same_as_qemu("apic", devices::Apic::default);
}

#[test]
fn ioapic() {
    same_as_qemu("ioapic", devices::IoApic::default);
}

#[test]
fn kvmclock() {
    same_as_qemu("kvmclock", devices::KvmClock::default);
}

#[test]
fn acpi_ged() {
    same_as_qemu("acpi-ged", devices::AcpiGed::default);
}

#[test]
fn i8259() {
    same_as_qemu("i8259", devices::Pic::default);
}

#[test]
fn i8254() {
    same_as_qemu("i8254", devices::Pit::default);
}

#[test]
fn serial() {
    same_as_qemu("serial", devices::IsaSerial::default);
}

#[test]
fn mc146818rtc() {
    same_as_qemu("mc146818rtc", devices::Rtc::new);
}

#[test]
fn globalstate() {
    same_as_qemu("globalstate", devices::GlobalState::new);
}
