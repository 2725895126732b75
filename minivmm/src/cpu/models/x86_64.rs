//! `x86-64-v2` and `x86-64-v3`: `qemu64` with the features of the x86-64 psABI's microarchitecture levels (x86-64 psABI 1.0,
//! table 3.1). QEMU has no such models: its command line names them `qemu64` with features.

use crate::cpu::model::Model;
use crate::cpu::models::qemu64;

/// Level 2. `qemu64` already has CX16, LAHF and SSE3 of it.
pub(super) const V2: Model = Model {
    names: &["x86-64-v2"],
    qemu: "qemu64-v1,+popcnt,+sse4.1,+sse4.2,+ssse3",
    features: "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 pni cx16 x2apic \
               hypervisor lahf-lm syscall nx lm ssse3 sse4.1 sse4.2 popcnt",
    ..qemu64::V1
};

/// Level 3: level 2, and AVX2 with what belongs to it. `abm` is LZCNT; OSXSAVE follows from XSAVE when the guest sets CR4.
pub(super) const V3: Model = Model {
    names: &["x86-64-v3"],
    qemu: "qemu64-v1,+popcnt,+sse4.1,+sse4.2,+ssse3,+avx,+avx2,+bmi1,+bmi2,+f16c,+fma,+abm,+movbe,+xsave",
    features: "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 pni cx16 x2apic \
               hypervisor lahf-lm syscall nx lm ssse3 sse4.1 sse4.2 popcnt avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    ..qemu64::V1
};
