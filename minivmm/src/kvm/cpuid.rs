//! What the guest's CPUID says: what KVM and the host offer, minus the host's topology and nested virtualization, plus
//! the machine's own topology.
//!
//! The machine is one package of `cpus` cores with one thread each, as QEMU's `-smp N`. A function of the host's offer
//! and the two numbers only, so two hosts with the same offer give the same CPU.
//!
//! Nested virtualization is not offered, because its state (KVM_GET_NESTED_STATE) is not migrated: a guest that never
//! sees VMX or SVM never has such state.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// CPUID leaf 0x4000_0001: clocksource, no I/O delay, second clocksource, steal time, PV EOI, PV unhalt, PV TLB flush,
/// PV send IPI, stable clocksource. Those whose state is in MSRs that every migration carries, or that have none.
/// Not asynchronous page faults: their tokens would not survive a migration.
const KVM_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 24;

/// Leaf 1, ECX: VMX, and SMX, whose only use is to enter VMX (Intel SDM, CPUID).
const ECX_VMX_SMX: u32 = 1 << 5 | 1 << 6;
/// Leaf 0x8000_0001, ECX: SVM, and SKINIT, which is a part of it (AMD APM volume 3, E.4.2).
const ECX_SVM_SKINIT: u32 = 1 << 2 | 1 << 12;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
/// Leaf 0x8000_0007, EDX: the TSC runs at one rate for ever. Not true across hosts.
const EDX_INVARIANT_TSC: u32 = 1 << 8;

/// CPUID of vCPU `index` of `cpus`, from what KVM supports. `tsc_deadline`: KVM_CAP_TSC_DEADLINE_TIMER, which the
/// supported leaves do not tell (api.rst, 4.46).
pub fn for_vcpu(supported: &CpuId, index: u8, cpus: u8, tsc_deadline: bool) -> CpuId {
    let mut cpuid = supported.clone();
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f | 0x8000_001e));
    for entry in cpuid.as_mut_slice() {
        adapt(entry, index, cpus, tsc_deadline);
    }
    if supported.as_slice().iter().any(|entry| entry.function == 0 && entry.eax >= 0xb) {
        for entry in topology(index, cpus) {
            // Refused only when the table is full at 256 leaves, which no host comes near.
            let _ = cpuid.push(entry);
        }
    }
    cpuid
}

/// `machine`, which is another vCPU's CPUID of the same machine, as vCPU `index` has it.
pub fn with_apic_id(machine: &CpuId, index: u8) -> CpuId {
    let mut cpuid = machine.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => entry.ebx = entry.ebx & 0x00ff_ffff | u32::from(index) << 24,
            0xb => entry.edx = index.into(),
            _ => {}
        }
    }
    cpuid
}

fn adapt(entry: &mut kvm_cpuid_entry2, index: u8, cpus: u8, tsc_deadline: bool) {
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0xffff | u32::from(cpus) << 16 | u32::from(index) << 24;
            entry.ecx = entry.ecx & !(ECX_TSC_DEADLINE | ECX_VMX_SMX) | ECX_HYPERVISOR;
            if tsc_deadline {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
            entry.edx = if cpus > 1 { entry.edx | EDX_HTT } else { entry.edx & !EDX_HTT };
        }
        // Caches: levels 1 and 2 to each core, the last one to the package.
        0x4 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { u32::from(cpus) - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (u32::from(cpus) - 1) << 26;
        }
        0x4000_0001 => entry.eax &= KVM_FEATURES,
        0x8000_0001 => entry.ecx &= !ECX_SVM_SKINIT,
        0x8000_0007 => entry.edx &= !EDX_INVARIANT_TSC,
        0x8000_0008 => entry.ecx = u32::from(cpus) - 1,
        0x8000_001d => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { u32::from(cpus) - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
        }
        // SVM: revision, number of address space ids, features.
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        _ => {}
    }
}

/// Leaf 0xb: threads of a core, cores of the package (Intel SDM, CPUID "Extended Topology Enumeration").
fn topology(index: u8, cpus: u8) -> [kvm_cpuid_entry2; 3] {
    let core_bits = u32::from(cpus).next_power_of_two().trailing_zeros();
    let level = |number: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index: number,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: number | kind << 8,
        edx: index.into(),
        ..Default::default()
    };
    [level(0, 1, 0, 1), level(1, 2, core_bits, cpus.into()), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> CpuId {
        let leaf =
            |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() };
        CpuId::from_entries(&[
            leaf(0, 0xd, 0, 0, 0),
            leaf(1, 0x800f12, 0x0514_0800, 0x200, 0x1000_0010),
            leaf(0xb, 1, 2, 3, 4),
            leaf(0x4000_0001, 0xffff_ffff, 0, 0, 0),
            leaf(0x8000_0001, 0x800f12, 0, 0x35c2_33ff, 0x2fd3_fbff),
            leaf(0x8000_0007, 0, 0, 0, 0x100),
            leaf(0x8000_000a, 1, 0x8000, 0, 0x1bcff),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index)).unwrap()
    }

    /// Bits from the Intel SDM (leaves 1 and 0xb) and Documentation/virt/kvm/x86/cpuid.rst.
    #[test]
    fn topology_is_the_machines_own() {
        let cpuid = for_vcpu(&offer(), 2, 3, true);
        let one = find(&cpuid, 1, 0);
        assert_eq!((one.ebx, one.ecx, one.edx), (0x0203_0800, 0x8100_0200, 0x1000_0010));
        let cores = find(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
        assert_eq!(find(&cpuid, 0x4000_0001, 0).eax, 0x0100_0aeb);
        assert_eq!(find(&cpuid, 0x8000_0007, 0).edx, 0);
        assert_eq!(cpuid.as_slice().iter().filter(|entry| entry.function == 0xb).count(), 3);
    }

    /// An AMD host's offer, and an Intel one's: VMX is leaf 1 ECX bit 5, SMX bit 6 (Intel SDM volume 2, CPUID); SVM is
    /// leaf 0x8000_0001 ECX bit 2, SKINIT bit 12, and leaf 0x8000_000a describes SVM (AMD APM volume 3, appendix E).
    #[test]
    fn nested_virtualization_is_masked() {
        let mut offer = offer();
        offer.as_mut_slice()[1].ecx = 0xfeda_7fff;
        let cpuid = for_vcpu(&offer, 0, 1, true);
        assert_eq!(find(&cpuid, 1, 0).ecx, 0xffda_7f9f);
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx, 0x35c2_23fb);
        let svm = find(&cpuid, 0x8000_000a, 0);
        assert_eq!((svm.eax, svm.ebx, svm.ecx, svm.edx), (0, 0, 0, 0));
    }

    /// One vCPU's leaves say all but the APIC ids of the others', so one list describes a machine.
    #[test]
    fn vcpus_differ_in_their_apic_id_only() {
        let first = for_vcpu(&offer(), 0, 3, true);
        for index in 0..3 {
            assert_eq!(with_apic_id(&first, index).as_slice(), for_vcpu(&offer(), index, 3, true).as_slice());
        }
    }

    #[test]
    fn one_cpu_is_not_multithreaded() {
        let one = find(&for_vcpu(&offer(), 0, 1, false), 1, 0);
        assert_eq!((one.ebx, one.ecx, one.edx), (0x0001_0800, 0x8000_0200, 0x0000_0010));
    }
}
