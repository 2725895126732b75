//! Definition of a CPU model.

use crate::cpu::features::Feature;

/// A named CPU that is the same on every host. A released model never changes: a difference gets a new version.
#[derive(Debug)]
pub struct Model {
    /// The model's names: the one with a version first, then its aliases.
    pub names: &'static [&'static str],
    /// QEMU's name of the processor: the value of `-cpu`.
    pub qemu: &'static str,
    /// Leaf 1 EAX: family, model and stepping.
    pub signature: u32,
    /// Highest leaf below 0x4000_0000, unless a feature takes more.
    pub level: u32,
    /// Highest leaf from 0x8000_0000 on, unless a feature takes more.
    pub extended_level: u32,
    /// Brand string: leaves 0x8000_0002 to 0x8000_0004.
    pub brand: &'static str,
    /// Names of the model's features.
    pub features: &'static str,
    /// Caches of a machine with one vCPU.
    pub caches: &'static Caches,
}

/// Description of caches in CPUID: EAX, EBX, ECX, EDX of each leaf.
#[derive(Debug)]
pub struct Caches {
    /// Leaf 2, where the vendor is Intel.
    pub descriptors: [u32; 4],
    /// Leaf 4 where the vendor is Intel, and leaf 0x8000_001d if the model has it: L1 data, L1 instructions, L2, L3.
    pub levels: [[u32; 4]; 4],
    /// Leaf 0x8000_0005.
    pub first_level: [u32; 4],
    /// Leaf 0x8000_0006.
    pub upper_levels: [u32; 4],
}

/// Features that KVM adds to every model: QEMU's `kvm_default_props` (target/i386/kvm/kvm-cpu.c).
const PARAVIRTUAL: &str =
    "kvmclock kvm-nopiodelay kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-msi-ext-dest-id kvmclock-stable-bit";

impl Model {
    /// The model's features, and those that KVM adds.
    pub fn features(&self) -> impl Iterator<Item = Feature> {
        self.features.split_whitespace().chain(PARAVIRTUAL.split(' ')).filter_map(Feature::find)
    }
}
