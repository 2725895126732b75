//! Compares the processor that a guest sees with this host's. Features that only this host has do not matter: the guest keeps
//! its own CPUID.

use std::ops::RangeInclusive;

use super::compare::Difference;
use crate::cpu::{FLAGS, PERF_FORMATS, Place, Register};
use crate::kvm::state::processor::Leaf;
use crate::kvm::state::{Processor, clock};

/// IA32_PERF_CAPABILITIES.
const PERF_CAPABILITIES: Place = Place::Msr { index: 0x345 };
const OTHER_HOST: &str = "migrate to a host of the same kind, or start the guest anew here";

/// Appends the differences between the guest's processor and the one that this host offers. `tsc_scales`: this host's KVM can
/// scale a TSC.
pub(super) fn compare(guest: &Processor, here: &Processor, tsc_scales: bool, differences: &mut Vec<Difference>) {
    let mut differ = |what, remedy: &str| differences.push(Difference { what, remedy: remedy.into() });
    let (vendor, ours) = (vendor(guest), vendor(here));
    if vendor != ours {
        differ(format!("the guest's processor is of {vendor}, this host's of {ours}"), OTHER_HOST);
    }
    let missing = missing(guest, here);
    if !missing.is_empty() {
        let remedy = "migrate to a host whose CPU and KVM offer them, or start the guest anew here";
        differ(format!("the guest was shown CPU features that this host lacks: {}", missing.join(", ")), remedy);
    }
    for leaf in guest.leaves.iter().filter(|leaf| is_different(leaf, here)) {
        let what = format!("leaf {:#x}.{} of CPUID says something else at the source", leaf.function, leaf.index);
        differ(what, OTHER_HOST);
    }
    for component in moved(guest, here) {
        differ(format!("XSAVE component {component} has another offset or another size"), OTHER_HOST);
    }
    for (what, place, shift, bits) in AT_LEAST {
        let [guest, here] = [guest, here].map(|processor| value(processor, *place) >> shift & ((1 << bits) - 1));
        if guest > here {
            differ(format!("the guest was shown {what} {guest}, this host has {here}"), OTHER_HOST);
        }
    }
    let [formats, ours] = [guest, here].map(|processor| value(processor, PERF_CAPABILITIES) & PERF_FORMATS);
    if formats != 0 && formats != ours {
        let what = format!("LBR and PEBS records have formats {formats:#x} at the source, {ours:#x} here (MSR 0x345)");
        differ(what, OTHER_HOST);
    }
    let (rate, ours) = (guest.tsc_khz, here.tsc_khz);
    if rate != 0 && !tsc_scales && !clock::same_rate(rate, ours) {
        let what =
            format!("the guest's TSC runs at {rate} kHz, this host's at {ours} kHz, and its KVM cannot scale it");
        differ(what, "migrate to a host with the same TSC rate, or with TSC scaling");
    }
}

/// Numbers of which a host needs at least as much as the guest sees: label, place, first bit, number of bits (Intel SDM volume
/// 2, CPUID leaves 0xa and 0x8000_0008).
const AT_LEAST: &[(&str, Place, u32, u32)] = &[
    ("physical address bits:", Place::Cpuid { function: 0x8000_0008, index: 0, register: Register::Eax }, 0, 8),
    ("linear address bits:", Place::Cpuid { function: 0x8000_0008, index: 0, register: Register::Eax }, 8, 8),
    ("performance monitoring version", Place::Cpuid { function: 0xa, index: 0, register: Register::Eax }, 0, 8),
    ("performance counters:", Place::Cpuid { function: 0xa, index: 0, register: Register::Eax }, 8, 8),
    ("performance counter bits:", Place::Cpuid { function: 0xa, index: 0, register: Register::Eax }, 16, 8),
    ("fixed performance counters:", Place::Cpuid { function: 0xa, index: 0, register: Register::Edx }, 0, 5),
];

/// Leaves that are compared bit by bit or number by number, or that are only informative: vendor, caches, power states,
/// topology, frequencies, names. All others describe a feature in detail, and have to be equal.
const KNOWN: &[RangeInclusive<u32>] = &[
    0x0..=0x7,
    0xa..=0xb,
    0xd..=0xd,
    0x15..=0x16,
    0x18..=0x18,
    0x1a..=0x1a,
    0x1f..=0x1f,
    0x4000_0000..=0x4000_00ff,
    0x8000_0000..=0x8000_0008,
    0x8000_0019..=0x8000_001a,
    0x8000_001d..=0x8000_001e,
    0x8000_0021..=0x8000_0021,
    0x8000_0026..=0x8000_0026,
];

fn is_different(leaf: &Leaf, here: &Processor) -> bool {
    let registers = |leaf: &Leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx];
    let ours = here.leaves.iter().find(|ours| (ours.function, ours.index) == (leaf.function, leaf.index));
    let same = ours.map_or([0; 4], registers) == registers(leaf);
    registers(leaf) != [0; 4] && !same && !KNOWN.iter().any(|known| known.contains(&leaf.function))
}

/// Reads the value at `place`; 0 if it does not exist, as CPUID answers.
fn value(processor: &Processor, place: Place) -> u64 {
    match place {
        Place::Msr { index } => processor.msrs.iter().find(|msr| msr.index == index).map_or(0, |msr| msr.value),
        Place::Cpuid { function, index, register } => {
            let leaf = processor.leaves.iter().find(|leaf| (leaf.function, leaf.index) == (function, index));
            let value = leaf.map_or(0, |leaf| match register {
                Register::Eax => leaf.eax,
                Register::Ebx => leaf.ebx,
                Register::Ecx => leaf.ecx,
                Register::Edx => leaf.edx,
            });
            value.into()
        }
    }
}

fn missing(guest: &Processor, here: &Processor) -> Vec<String> {
    let mut missing = Vec::new();
    for flags in FLAGS {
        let lacking = value(guest, flags.place) & !value(here, flags.place) & !flags.ignored;
        missing.extend((0..u64::BITS).filter(|bit| lacking >> bit & 1 == 1).map(|bit| flags.describe(bit)));
    }
    missing
}

/// XSAVE components that both have with different offsets or sizes: the area is migrated unchanged.
fn moved(guest: &Processor, here: &Processor) -> impl Iterator<Item = u32> {
    let leaf = |processor: &Processor, component, register| {
        value(processor, Place::Cpuid { function: 0xd, index: component, register })
    };
    let has = |processor: &Processor, component| leaf(processor, 0, Register::Eax) >> component & 1 == 1;
    // Components 0 and 1, x87 and SSE, have fixed offsets.
    let both: Vec<u32> = (2..32).filter(|&component| has(guest, component) && has(here, component)).collect();
    let place = move |processor: &Processor, component| {
        (leaf(processor, component, Register::Eax), leaf(processor, component, Register::Ebx))
    };
    both.into_iter().filter(move |&component| place(guest, component) != place(here, component))
}

/// The twelve letters of leaf 0, in the order EBX, EDX, ECX.
fn vendor(processor: &Processor) -> String {
    let letters = [Register::Ebx, Register::Edx, Register::Ecx];
    let words = letters.map(|register| value(processor, Place::Cpuid { function: 0, index: 0, register }) as u32);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.escape_ascii().to_string()
}
