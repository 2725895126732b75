//! The devices that are attacked: those of QEMU's `microvm`, derived, and a struct with a field of every kind.

#[path = "../../../vmstate/tests/devices/mod.rs"]
mod microvm;

use crate::every_kind::EveryKind;
use crate::rollback::Rollback;

/// Names, instance ids and fresh devices, in QEMU's order.
pub fn all() -> Vec<(&'static str, u32, Rollback<'static>)> {
    vec![
        ("timer", 0, Rollback::new(microvm::Timers::default())),
        ("fw_cfg", 0, Rollback::new(microvm::FwCfg::default())),
        ("cpu_common", 0, Rollback::new(microvm::CpuCommon::default())),
        ("kvm-tpr-opt", 0, Rollback::new(microvm::KvmTprOpt::default())),
        ("apic", 0, Rollback::new(microvm::Apic::default())),
        ("ioapic", 0, Rollback::new(microvm::IoApic::default())),
        ("kvmclock", 0, Rollback::new(microvm::KvmClock::default())),
        ("acpi-ged", 0, Rollback::new(microvm::AcpiGed::default())),
        ("i8259", 0, Rollback::new(microvm::Pic::default())),
        ("i8259", 1, Rollback::new(microvm::Pic::default())),
        ("i8254", 0, Rollback::new(microvm::Pit::default())),
        ("mc146818rtc", 0, Rollback::new(microvm::Rtc::new())),
        ("serial", 0, Rollback::new(microvm::IsaSerial::default())),
        ("globalstate", 0, Rollback::new(microvm::GlobalState::new())),
        ("zoo", 0, Rollback::new(EveryKind::full())),
    ]
}
