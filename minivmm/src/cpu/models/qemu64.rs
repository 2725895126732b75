//! `qemu64`: the smallest CPU that runs a 64-bit Linux.

use crate::cpu::model::{Caches, Model};

/// QEMU's `qemu64-v1`.
pub(super) const V1: Model = Model {
    names: &["qemu64-v1", "qemu64"],
    qemu: "qemu64-v1",
    // Family 15, model 107, stepping 1.
    signature: 0x0006_0fb1,
    level: 0xd,
    extended_level: 0x8000_000a,
    brand: "QEMU Virtual CPU version 2.5+",
    features: "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 pni cx16 x2apic \
               hypervisor lahf-lm syscall nx lm",
    caches: &LEGACY,
};

/// QEMU's `legacy-cache=on`: 32 KiB L1 twice, 4 MiB L2, 16 MiB L3.
pub(super) const LEGACY: Caches = Caches {
    descriptors: [1, 0, 0x4d, 0x002c_307d],
    levels: [
        [0x121, 0x01c0_003f, 0x3f, 1],
        [0x122, 0x01c0_003f, 0x3f, 1],
        [0x143, 0x03c0_003f, 0xfff, 1],
        [0x163, 0x03c0_003f, 0x3fff, 6],
    ],
    first_level: [0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140],
    upper_levels: [0, 0x4200_4200, 0x0200_8140, 0x0080_8140],
};
