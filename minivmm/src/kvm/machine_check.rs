//! Machine-check banks: as many as QEMU gives a vCPU, which is as many as section `cpu` has room for.
//!
//! Without KVM_X86_SETUP_MCE (api.rst, 4.105) a vCPU has 32: what is behind the tenth would be lost in a migration, and
//! QEMU, told of 32, writes registers that its vCPU does not have.

use kvm_bindings::KVMIO;
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

use crate::error::{Error, Result};

/// IA32_MCG_CAP of QEMU's vCPUs without its number of banks (`MCE_CAP_DEF`, target/i386/cpu.h): MCG_CTL_P, MCG_SER_P.
const MCG_CAP: u64 = 1 << 8 | 1 << 24;
/// Of banks (`MCE_BANKS_DEF`).
const BANKS: u64 = 10;

/// Gives the vCPU its banks, as far as this host's KVM knows machine checks.
///
/// # Errors
/// [`Error::Kvm`].
pub fn set_up(kvm: &Kvm, vcpu: &VcpuFd) -> Result<()> {
    let most = u64::try_from(kvm.check_extension_int(Cap::Mce)).unwrap_or(0);
    if most == 0 {
        return Ok(());
    }
    let failed = |call| Err(Error::kvm(call)(kvm_ioctls::Error::last()));
    let mut supported = 0_u64;
    // SAFETY: the kernel writes the u64 that it is given.
    if unsafe { ioctl_with_mut_ref(kvm, request::KVM_X86_GET_MCE_CAP_SUPPORTED(), &mut supported) } != 0 {
        return failed("KVM_X86_GET_MCE_CAP_SUPPORTED");
    }
    let cap = MCG_CAP & supported | BANKS.min(most);
    // SAFETY: the kernel reads the u64 that it is given.
    match unsafe { ioctl_with_ref(vcpu, request::KVM_X86_SETUP_MCE(), &cap) } {
        0 => Ok(()),
        _ => failed("KVM_X86_SETUP_MCE"),
    }
}

/// kvm-ioctls has none of them. The macro makes public functions without documentation.
mod request {
    #![allow(missing_docs, unreachable_pub)]

    use super::*;

    ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
    ioctl_ior_nr!(KVM_X86_GET_MCE_CAP_SUPPORTED, KVMIO, 0x9d, u64);
}
