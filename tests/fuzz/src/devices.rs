//! The devices that are attacked: QEMU's `microvm`, derived, and the zoo.

#[path = "../../../vmstate/tests/devices/mod.rs"]
mod microvm;

use crate::unharmed::Unharmed;
use crate::zoo::Zoo;

/// Names, instances and fresh devices, in QEMU's order.
pub fn all() -> Vec<(&'static str, u32, Unharmed<'static>)> {
    vec![
        ("timer", 0, Unharmed::new(microvm::Timers::default())),
        ("fw_cfg", 0, Unharmed::new(microvm::FwCfg::default())),
        ("cpu_common", 0, Unharmed::new(microvm::CpuCommon::default())),
        ("kvm-tpr-opt", 0, Unharmed::new(microvm::KvmTprOpt::default())),
        ("apic", 0, Unharmed::new(microvm::Apic::default())),
        ("ioapic", 0, Unharmed::new(microvm::IoApic::default())),
        ("kvmclock", 0, Unharmed::new(microvm::KvmClock::default())),
        ("acpi-ged", 0, Unharmed::new(microvm::AcpiGed::default())),
        ("i8259", 0, Unharmed::new(microvm::Pic::default())),
        ("i8259", 1, Unharmed::new(microvm::Pic::default())),
        ("i8254", 0, Unharmed::new(microvm::Pit::default())),
        ("mc146818rtc", 0, Unharmed::new(microvm::Rtc::new())),
        ("serial", 0, Unharmed::new(microvm::IsaSerial::default())),
        ("globalstate", 0, Unharmed::new(microvm::GlobalState::new())),
        ("zoo", 0, Unharmed::new(Zoo::full())),
    ]
}
