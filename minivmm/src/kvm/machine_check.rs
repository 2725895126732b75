//! Machine-check banks: as many as a vCPU of QEMU has and section `cpu` has room for.
//!
//! Without KVM_X86_SETUP_MCE (api.rst, 4.105) a vCPU has 32 banks: a migration would lose those after the tenth, and a QEMU
//! that receives 32 would write registers that its vCPU lacks.

use kvm_bindings::KVMIO;
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

use crate::error::{Error, Result};

/// IA32_MCG_CAP of QEMU's vCPUs without its number of banks (`MCE_CAP_DEF`, target/i386/cpu.h): MCG_CTL_P, MCG_SER_P.
const MCG_CAP: u64 = 1 << 8 | 1 << 24;
/// Machine-check banks of a vCPU (QEMU's `MCE_BANKS_DEF`).
const BANKS: u64 = 10;
/// Bits of IA32_MCG_CAP that are the number of banks.
const COUNT: u64 = 0xff;

/// Sets up the vCPU's banks, as far as this host's KVM supports machine checks.
///
/// # Errors
/// [`Error::Kvm`].
pub fn set_up(kvm: &Kvm, vcpu: &VcpuFd) -> Result<()> {
    let supported = Supported::by(kvm).map_err(Error::kvm("KVM_X86_GET_MCE_CAP_SUPPORTED"))?;
    set_up_as(vcpu, MCG_CAP | BANKS, supported).map_err(Error::kvm("KVM_X86_SETUP_MCE"))
}

/// Machine-check features that this host's KVM supports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Supported {
    /// Bits of IA32_MCG_CAP above the number of banks.
    flags: u64,
    banks: u64,
}

impl Supported {
    /// Queries what KVM supports.
    ///
    /// # Errors
    /// KVM_X86_GET_MCE_CAP_SUPPORTED failed.
    pub fn by(kvm: &Kvm) -> std::result::Result<Self, kvm_ioctls::Error> {
        let banks = u64::try_from(kvm.check_extension_int(Cap::Mce)).unwrap_or(0);
        let mut flags = 0_u64;
        // SAFETY: the kernel writes the u64 that it is given.
        if banks > 0 && unsafe { ioctl_with_mut_ref(kvm, request::KVM_X86_GET_MCE_CAP_SUPPORTED(), &mut flags) } != 0 {
            return Err(kvm_ioctls::Error::last());
        }
        Ok(Self { flags: flags & !COUNT, banks })
    }

    /// Returns the part of `wanted`, a value of IA32_MCG_CAP, that a vCPU here can have; `None` if there is none.
    fn of(self, wanted: u64) -> Option<u64> {
        let banks = (wanted & COUNT).min(BANKS).min(self.banks);
        (banks > 0).then_some(wanted & self.flags | banks)
    }
}

/// Sets up the vCPU's machine checks as the source had them, by its IA32_MCG_CAP `wanted`, as far as KVM supports them. QEMU
/// sends what it requested from its KVM, and a destination of QEMU silently drops what its host lacks.
///
/// # Errors
/// KVM_X86_SETUP_MCE failed.
pub fn set_up_as(vcpu: &VcpuFd, wanted: u64, supported: Supported) -> std::result::Result<(), kvm_ioctls::Error> {
    let Some(cap) = supported.of(wanted) else { return Ok(()) };
    // SAFETY: the kernel reads the u64 that it is given.
    match unsafe { ioctl_with_ref(vcpu, request::KVM_X86_SETUP_MCE(), &cap) } {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

/// Requests that kvm-ioctls lacks. The macro makes public functions without documentation.
mod request {
    #![allow(missing_docs, unreachable_pub)]

    use super::*;

    ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
    ioctl_ior_nr!(KVM_X86_GET_MCE_CAP_SUPPORTED, KVMIO, 0x9d, u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value that QEMU 10.0 sends, on hosts of Intel (SER_P, CTL_P, LMCE_P), of AMD (CTL_P) and without machine checks.
    #[test]
    fn a_vcpu_gets_what_its_host_has_of_what_it_had() {
        let intel = Supported { flags: 1 << 27 | 1 << 24 | 1 << 8, banks: 32 };
        let amd = Supported { flags: 1 << 8, banks: 32 };
        assert_eq!(intel.of(0x100_010a), Some(0x100_010a));
        assert_eq!(amd.of(0x100_010a), Some(0x10a));
        assert_eq!(amd.of(0x10a), Some(0x10a));
        assert_eq!(Supported { banks: 6, ..amd }.of(0x100_010a), Some(0x106));
        assert_eq!(Supported::default().of(0x100_010a), None);
        // A hostile number of banks is limited to the room in section `cpu`; for none, the vCPU stays as it was made.
        assert_eq!(intel.of(u64::MAX), Some(0x900_010a));
        assert_eq!(intel.of(0x100_0100), None);
    }
}
