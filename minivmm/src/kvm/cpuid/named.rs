//! `--cpu MODEL`: CPUID leaves of a model, as QEMU makes them (target/i386/cpu.c, `cpu_x86_cpuid`).

use crate::cpu::{FLAGS, Feature, Model, Place, Register};
use crate::kvm::cpuid::leaves::Leaves;
use crate::kvm::cpuid::offer::Offer;

/// Leaf 1 EBX: CLFLUSH's line in units of 8 bytes.
const CLFLUSH_LINE: u32 = 8 << 8;
/// Leaf 5 ECX: MONITOR's extensions are listed, interrupts break MWAIT. QEMU sets these bits with and without `monitor`.
pub(super) const MWAIT_EXTENSIONS: u32 = 0b11;
/// Leaf 0x8000_0008 EAX: physical address bits, QEMU's without `host-phys-bits`, and linear address bits without and with `la57`.
const PHYSICAL_BITS: u32 = 40;
const LINEAR_BITS: [u32; 2] = [48, 57];
/// Leaf 0x8000_0001 EDX on AMD: the bits that repeat leaf 1 EDX (AMD APM volume 3, appendix E.4.2).
const EDX_REPEATED: u32 = 0x0183_f3ff;
/// "KVMKVMKVM" in EBX, ECX, EDX (Documentation/virt/kvm/x86/cpuid.rst).
const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];

/// Vendors in EBX, ECX, EDX of leaf 0 (Intel SDM volume 2 and AMD APM volume 3, CPUID).
const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];

/// Returns the leaves of `model` with `changes`, for the vendor of `offer`; XSAVE's leaf and the topology are set later.
pub(super) fn leaves(offer: &Offer, model: &Model, changes: &[(Feature, bool)]) -> Leaves {
    let mut leaves = Leaves::default();
    let features: Vec<_> = model.features().map(|feature| (feature, true)).collect();
    change(&mut leaves, &features);
    change(&mut leaves, changes);
    let vendor @ [ebx, ecx, edx] = offer.vendor();
    let (level, extended_level) = levels(&leaves, model);
    leaves.set(0x0, 0, [level, ebx, ecx, edx]);
    let [_, _, flags, more] = leaves.get(0x1, 0);
    leaves.set(0x1, 0, [model.signature, CLFLUSH_LINE, flags, more]);
    if vendor == INTEL {
        leaves.set(0x2, 0, model.caches.descriptors);
        for (index, cache) in (0..).zip(model.caches.levels) {
            leaves.set(0x4, index, cache);
        }
    }
    leaves.set(0x5, 0, [0, 0, MWAIT_EXTENSIONS, 0]);
    *leaves.register_mut(0x7, 0, Register::Eax) = highest_subleaf(&leaves, 0x7);
    let [ebx_kvm, ecx_kvm, edx_kvm] = KVM_SIGNATURE;
    leaves.set(0x4000_0000, 0, [0x4000_0001, ebx_kvm, ecx_kvm, edx_kvm]);
    leaves.set(0x8000_0000, 0, [extended_level, ebx, ecx, edx]);
    let [_, _, flags, more] = leaves.get(0x8000_0001, 0);
    let repeated = if vendor == INTEL { 0 } else { leaves.register(0x1, 0, Register::Edx) & EDX_REPEATED };
    leaves.set(0x8000_0001, 0, [model.signature, 0, flags, more | repeated]);
    for (function, registers) in (0x8000_0002..).zip(brand(model.brand)) {
        leaves.set(function, 0, registers);
    }
    leaves.set(0x8000_0005, 0, model.caches.first_level);
    leaves.set(0x8000_0006, 0, model.caches.upper_levels);
    let la57 = leaves.register(0x7, 0, Register::Ecx) >> 16 & 1;
    // KVM's page tables may map fewer physical bits (api.rst, KVM_GET_SUPPORTED_CPUID; bits 16 to 23).
    let mapped = PHYSICAL_BITS.min(offer.register(0x8000_0008, 0, Register::Eax) >> 16 & 0xff);
    *leaves.register_mut(0x8000_0008, 0, Register::Eax) =
        PHYSICAL_BITS | LINEAR_BITS[la57 as usize] << 8 | mapped << 16;
    if extended_level >= 0x8000_001d {
        for (index, cache) in (0..).zip(model.caches.levels) {
            leaves.set(0x8000_001d, index, cache);
        }
    }
    leaves
}

/// Switches features on and off.
pub(super) fn change(leaves: &mut Leaves, changes: &[(Feature, bool)]) {
    for (feature, on) in changes {
        for (place, bit) in feature.bits() {
            if let Place::Cpuid { function, index, register } = place {
                leaves.switch((function, index, register), bit, *on);
            }
        }
    }
}

/// Returns the highest leaf of either range: the model's, or that of a feature in a higher leaf.
fn levels(leaves: &Leaves, model: &Model) -> (u32, u32) {
    let reported = FLAGS.iter().filter_map(|flags| match flags.place {
        Place::Cpuid { function, index, register } if leaves.register(function, index, register) != 0 => Some(function),
        _ => None,
    });
    let (extended, basic): (Vec<u32>, Vec<u32>) = reported
        .filter(|function| !(0x4000_0000..0x8000_0000).contains(function))
        .partition(|&function| function >= 0x8000_0000);
    let highest = |least, reported: Vec<u32>| reported.into_iter().fold(least, u32::max);
    (highest(model.level, basic), highest(model.extended_level, extended))
}

fn highest_subleaf(leaves: &Leaves, function: u32) -> u32 {
    let reported =
        leaves.numbers().into_iter().filter(|&(of, index)| of == function && leaves.get(of, index) != [0; 4]);
    reported.map(|(_, index)| index).max().unwrap_or(0)
}

/// Encodes 48 letters in the registers of three leaves.
fn brand(text: &str) -> [[u32; 4]; 3] {
    let mut bytes = [0; 48];
    let length = text.len().min(bytes.len());
    bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [0, 16, 32].map(|leaf| [0, 4, 8, 12].map(|at| word(leaf + at)))
}
