//! Topology of the machine: one package of cores with one thread each, as QEMU's `-smp N` (target/i386/cpu.c, `cpu_x86_cpuid`).

use kvm_bindings::CpuId;

use crate::cpu::Register;
use crate::kvm::cpuid::leaves::Leaves;
use crate::kvm::cpuid::offer::Offer;

const EDX_HTT: u32 = 28;
/// Leaf 0x8000_0001 ECX: there is more than one core, in AMD's encoding.
const ECX_CMP_LEGACY: u32 = 1;
/// Leaf 0 EBX: "Genu", of GenuineIntel.
const INTEL: u32 = 0x756e_6547;

/// Sets the topology in the leaves of the first of `cpus` vCPUs.
pub(super) fn set(leaves: &mut Leaves, offer: &Offer, cpus: u8) {
    let count = u32::from(cpus);
    // Bits of the APIC id that number the core, and the largest number.
    let bits = count.next_power_of_two().trailing_zeros();
    let more = (1 << bits) - 1;
    let several = cpus > 1;
    let ebx = leaves.register_mut(0x1, 0, Register::Ebx);
    *ebx = *ebx & 0xffff | if several { count << 16 } else { 0 };
    leaves.switch((0x1, 0, Register::Edx), EDX_HTT, several);
    for (function, index) in leaves.numbers() {
        let eax = leaves.register(function, index, Register::Eax);
        // Caches: each core has levels 1 and 2, and the package the last level. Type 0 is no cache.
        let sharing = if eax >> 5 & 7 >= 3 { more << 14 } else { 0 };
        match function {
            0x4 if eax & 0x1f != 0 => {
                *leaves.register_mut(function, index, Register::Eax) = eax & 0x3fff | sharing | more << 26;
            }
            0x8000_001d if eax & 0x1f != 0 => {
                *leaves.register_mut(function, index, Register::Eax) = eax & 0x3fff | sharing;
            }
            _ => {}
        }
    }
    if leaves.register(0x0, 0, Register::Eax) >= 0xb {
        // Threads of a core, cores of the package (Intel SDM, CPUID "Extended Topology Enumeration").
        leaves.set(0xb, 0, [0, 1, 0x100, 0]);
        leaves.set(0xb, 1, [bits, count, 0x201, 0]);
        leaves.set(0xb, 2, [0, 0, 2, 0]);
    }
    let offered = offer.register(0x8000_0001, 0, Register::Ecx) >> ECX_CMP_LEGACY & 1 == 1;
    if leaves.register(0x0, 0, Register::Ebx) != INTEL && several && offered {
        leaves.switch((0x8000_0001, 0, Register::Ecx), ECX_CMP_LEGACY, true);
    }
    let highest = leaves.register(0x8000_0000, 0, Register::Eax);
    if highest >= 0x8000_0008 {
        *leaves.register_mut(0x8000_0008, 0, Register::Ecx) = if several { bits << 12 | (count - 1) } else { 0 };
    }
    if highest >= 0x8000_001e {
        // One thread for each core, and one node: the ids are the vCPU's.
        leaves.set(0x8000_001e, 0, [0; 4]);
    }
}

/// Converts CPUID of any vCPU of the machine to that of vCPU `index`.
pub fn with_apic_id(machine: &CpuId, index: u8) -> CpuId {
    let mut cpuid = machine.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => entry.ebx = entry.ebx & 0x00ff_ffff | u32::from(index) << 24,
            0xb => entry.edx = index.into(),
            0x8000_001e => {
                entry.eax = index.into();
                entry.ebx = entry.ebx & !0xff | u32::from(index);
            }
            _ => {}
        }
    }
    cpuid
}
