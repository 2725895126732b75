//! CPUID features that this host can give a guest: KVM_GET_SUPPORTED_CPUID, and additions to it.

use std::arch::x86_64::__cpuid;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use crate::cpu::Register;
use crate::error::{Error, Result};
use crate::kvm::cpuid::leaves::Leaves;

/// Leaf 0x4000_0001, EAX: the bits that QEMU has names for. Their state is in MSRs that every migration has, or they have none.
/// `kvm-hint-dedicated` is in EDX, and only the user can know whether it is true.
const PARAVIRTUAL: u32 = 0x0100_feff;
/// MSIs that name more than 256 vCPUs, a feature of the VMM instead of KVM. With at most 8 vCPUs it has no effect; QEMU shows
/// it with every interrupt controller.
const MSI_EXT_DEST_ID: u32 = 1 << 15;
/// Leaf 1, ECX: VMX, and SMX, whose only use is to enter VMX (Intel SDM, CPUID).
const ECX_VMX_SMX: u32 = 1 << 5 | 1 << 6;
/// Leaf 0x8000_0001, ECX: SVM, and SKINIT, which is a part of it (AMD APM volume 3, E.4.2).
const ECX_SVM_SKINIT: u32 = 1 << 2 | 1 << 12;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EAX_ARAT: u32 = 1 << 2;
/// Leaf 0x8000_0007, EBX: a guest may clear an overflow of the machine-check banks and continue, and may recover from errors in
/// its software. KVM lists neither; its injected machine checks fit both, and QEMU shows them (target/i386/kvm/kvm.c,
/// `kvm_arch_get_supported_cpuid`).
const EBX_OVERFLOW_RECOV_SUCCOR: u32 = 1 << 0 | 1 << 1;

/// CPUID features that this host offers.
///
/// Nested virtualization is excluded, because its state (KVM_GET_NESTED_STATE) is not migrated: a guest that never sees VMX or
/// SVM has no such state.
#[derive(Clone, Debug)]
pub struct Offer {
    leaves: Leaves,
}

impl Offer {
    /// Queries KVM and the processor.
    ///
    /// # Errors
    /// [`Error::Kvm`].
    pub fn read(kvm: &Kvm) -> Result<Self> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let supported = supported.map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(Self::new(&supported, kvm.check_extension(Cap::TscDeadlineTimer), brand()))
    }

    /// Builds the offer from what KVM supports. `tsc_deadline` is KVM_CAP_TSC_DEADLINE_TIMER, and `brand` leaves 0x8000_0002 to
    /// 0x8000_0004; KVM lists neither among the supported leaves (api.rst, 4.46).
    pub fn new(supported: &CpuId, tsc_deadline: bool, brand: [[u32; 4]; 3]) -> Self {
        let mut leaves = Leaves::new(supported);
        let ecx = leaves.register_mut(0x1, 0, Register::Ecx);
        *ecx = *ecx & !(ECX_TSC_DEADLINE | ECX_VMX_SMX) | ECX_HYPERVISOR;
        if tsc_deadline {
            *ecx |= ECX_TSC_DEADLINE;
        }
        *leaves.register_mut(0x6, 0, Register::Eax) |= EAX_ARAT;
        let paravirtual = leaves.register_mut(0x4000_0001, 0, Register::Eax);
        *paravirtual = (*paravirtual | MSI_EXT_DEST_ID) & PARAVIRTUAL;
        *leaves.register_mut(0x8000_0001, 0, Register::Ecx) &= !ECX_SVM_SKINIT;
        *leaves.register_mut(0x8000_0007, 0, Register::Ebx) |= EBX_OVERFLOW_RECOV_SUCCOR;
        leaves.set(0x8000_000a, 0, [0; 4]);
        for (function, registers) in (0x8000_0002..).zip(brand) {
            leaves.set(function, 0, registers);
        }
        Self { leaves }
    }

    pub(super) fn leaves(&self) -> &Leaves {
        &self.leaves
    }

    pub(super) fn register(&self, function: u32, index: u32, register: Register) -> u32 {
        self.leaves.register(function, index, register)
    }

    /// Leaf 0 or 0x8000_0000 without the highest leaf: the host's vendor, which every guest sees. Instructions that switch
    /// modes differ by vendor, and KVM runs those of the host (QEMU shows the host's, too: target/i386/host-cpu.c).
    pub(super) fn vendor(&self) -> [u32; 3] {
        let [_, ebx, ecx, edx] = self.leaves.get(0, 0);
        [ebx, ecx, edx]
    }
}

/// Reads the processor's brand string.
fn brand() -> [[u32; 4]; 3] {
    [0x8000_0002, 0x8000_0003, 0x8000_0004].map(|function| {
        let answer = __cpuid(function);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    })
}
