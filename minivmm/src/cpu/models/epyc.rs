//! `EPYC`: AMD's first generation (Naples), with IBPB, XSAVES and the cache topology of the hardware.

use crate::cpu::model::{Caches, Model};

/// QEMU's `EPYC-v4`, which QEMU's microvm means by `EPYC`.
pub(super) const V4: Model = Model {
    names: &["EPYC-v4", "EPYC"],
    qemu: "EPYC-v4",
    // Family 23, model 1, stepping 2.
    signature: 0x0080_0f12,
    level: 0xd,
    extended_level: 0x8000_001e,
    brand: "AMD EPYC-v4 Processor",
    features: "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 pni pclmulqdq \
               ssse3 fma cx16 sse4.1 sse4.2 x2apic movbe popcnt aes xsave avx f16c rdrand hypervisor arat fsgsbase bmi1 avx2 \
               smep bmi2 rdseed adx smap clflushopt sha-ni xsaveopt xsavec xgetbv1 xsaves lahf-lm cr8legacy abm sse4a \
               misalignsse 3dnowprefetch osvw topoext perfctr-core syscall nx mmxext fxsr-opt pdpe1gb rdtscp lm clzero \
               xsaveerptr ibpb",
    caches: &CACHES,
};

/// 32 KiB L1 data, 64 KiB L1 instructions, 512 KiB L2, 8 MiB L3.
const CACHES: Caches = Caches {
    descriptors: [1, 0, 0x4b, 0x002c_ff80],
    levels: [
        [0x121, 0x01c0_003f, 0x3f, 1],
        [0x122, 0x00c0_003f, 0xff, 1],
        [0x43, 0x01c0_003f, 0x3ff, 0],
        [0x163, 0x03c0_003f, 0x1fff, 2],
    ],
    first_level: [0x01ff_01ff, 0x01ff_01ff, 0x2008_0140, 0x4004_0140],
    upper_levels: [0, 0x4200_4200, 0x0200_6140, 0x0040_8140],
};
