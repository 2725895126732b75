//! `Skylake-Server`: Intel's first generation of Xeon Scalable, with AVX-512 and IBRS, without TSX.

use crate::cpu::model::Model;
use crate::cpu::models::qemu64;

/// QEMU's `Skylake-Server-v5`, which QEMU's microvm means by `Skylake-Server`.
pub(super) const V5: Model = Model {
    names: &["Skylake-Server-v5", "Skylake-Server"],
    qemu: "Skylake-Server-v5",
    // Family 6, model 85, stepping 4.
    signature: 0x0005_0654,
    level: 0xd,
    extended_level: 0x8000_0008,
    brand: "Intel Xeon Processor (Skylake, IBRS, no TSX)",
    features: "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 pni pclmulqdq \
               ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave avx f16c rdrand hypervisor arat \
               fsgsbase bmi1 avx2 smep bmi2 erms invpcid avx512f avx512dq rdseed adx smap clwb avx512cd avx512bw avx512vl pku \
               spec-ctrl xsaveopt xsavec xgetbv1 xsaves lahf-lm abm 3dnowprefetch syscall nx pdpe1gb rdtscp lm",
    caches: &qemu64::LEGACY,
};
