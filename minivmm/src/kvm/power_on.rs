//! State of a vCPU that firmware would leave to a kernel: CPUID, a few MSRs, and the boot registers.

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_sregs};

use crate::cpu::Register;
use crate::error::{Error, Result};
use crate::kvm::cpuid;
use crate::kvm::vcpu::Vcpu;

/// IA32_MISC_ENABLE: fast strings, as every firmware sets it.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// MSRs that report features, each with the CPUID bit that announces it to the guest (Intel SDM volume 2, CPUID):
/// IA32_ARCH_CAPABILITIES with leaf 7 EDX bit 29, IA32_PERF_CAPABILITIES with leaf 1 ECX bit 15.
const ANNOUNCED: [(u32, u32, Register, u32); 2] = [(0x10a, 0x7, Register::Edx, 29), (0x345, 0x1, Register::Ecx, 15)];

/// IA32_MTRR_DEF_TYPE: enabled, everything write-back. Without it Linux does not use PAT.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

impl Vcpu {
    /// Sets the vCPU's CPUID.
    ///
    /// # Errors
    /// [`Error::Kvm`].
    pub fn set_cpuid(&self, cpuid: &CpuId) -> Result<()> {
        self.fd().set_cpuid2(cpuid).map_err(Error::kvm("KVM_SET_CPUID2"))
    }

    /// Clears the MSRs that report features and that `shown` does not announce, as QEMU does (target/i386/kvm/kvm.c,
    /// `kvm_init_msrs`): a value that the guest cannot read must not prevent its migration. A KVM that keeps the host's value
    /// nevertheless does not let the guest read it.
    pub fn clear_hidden_msrs(&self, shown: &CpuId) {
        for (index, function, register, bit) in ANNOUNCED {
            if !cpuid::shows(shown, function, register, bit) {
                let msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]);
                let _ = msrs.map(|msrs| self.fd().set_msrs(&msrs));
            }
        }
    }

    /// Sets the MSRs that firmware sets on every CPU.
    ///
    /// # Errors
    /// [`Error::Kvm`].
    pub fn set_firmware_msrs(&self) -> Result<()> {
        let entries = [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry { index, data, reserved: 0 });
        let msrs = Msrs::from_entries(&entries).expect("two entries are fewer than the limit");
        match self.fd().set_msrs(&msrs).map_err(Error::kvm("KVM_SET_MSRS"))? {
            count if count == entries.len() => Ok(()),
            // KVM stops at the first MSR it refuses (api.rst, 4.19).
            _ => Err(Error::Kvm {
                call: "KVM_SET_MSRS for IA32_MISC_ENABLE, IA32_MTRR_DEF_TYPE",
                source: std::io::ErrorKind::Unsupported.into(),
            }),
        }
    }

    /// Sets the start of the vCPU; `change` modifies the system registers of a reset.
    ///
    /// # Errors
    /// [`Error::Kvm`].
    pub fn set_start(&self, registers: &kvm_regs, change: impl FnOnce(&mut kvm_sregs)) -> Result<()> {
        let mut sregs = self.fd().get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
        change(&mut sregs);
        self.fd().set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
        self.fd().set_regs(registers).map_err(Error::kvm("KVM_SET_REGS"))
    }
}
