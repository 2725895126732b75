//! KVM's calls for a machine's clocks.

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_clock_data, kvm_device_attr};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::pair::Clocks;
use super::{StateError, call, msr};

/// A machine's clocks in KVM.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvmClocks<'a> {
    pub(super) vm: &'a VmFd,
    pub(super) vcpus: &'a [&'a VcpuFd],
}

impl Clocks for KvmClocks<'_> {
    fn clock(&self) -> Result<kvm_clock_data, StateError> {
        call("KVM_GET_CLOCK", self.vm.get_clock())
    }

    fn set_clock(&self, ns: u64) -> Result<(), StateError> {
        call("KVM_SET_CLOCK", self.vm.set_clock(&kvm_clock_data { clock: ns, ..Default::default() }))
    }

    fn tsc(&self, vcpu: usize) -> Result<u64, StateError> {
        Ok(msr::read(self.vcpus[vcpu], &[msr::index::TSC])?.get(&msr::index::TSC).copied().unwrap_or(0))
    }

    fn set_tsc(&self, vcpu: usize, tsc: u64) -> Result<(), StateError> {
        msr::write(self.vcpus[vcpu], &[(msr::index::TSC, tsc)])
    }

    fn tsc_offset(&self, vcpu: usize) -> Option<u64> {
        get_tsc_offset(self.vcpus[vcpu]).ok()
    }

    fn set_tsc_offset(&self, vcpu: usize, offset: u64) -> Result<(), StateError> {
        set_tsc_offset(self.vcpus[vcpu], offset)
    }
}

/// Requests that kvm-ioctls has for other devices, but not for x86 vCPUs. The macro makes public functions without
/// documentation.
mod request {
    #![allow(missing_docs, unreachable_pub)]

    use kvm_bindings::{KVMIO, kvm_device_attr};
    use vmm_sys_util::ioctl_iow_nr;

    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
}

fn get_tsc_offset(vcpu: &VcpuFd) -> Result<u64, StateError> {
    let mut offset = 0_u64;
    let attribute = tsc_offset_attribute(&raw mut offset as u64);
    // SAFETY: the attribute's address is of a live u64, which is what KVM_VCPU_TSC_OFFSET writes.
    match unsafe { ioctl_with_ref(vcpu, request::KVM_GET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(offset),
        _ => Err(StateError::Ioctl { call: "KVM_GET_DEVICE_ATTR", source: kvm_ioctls::Error::last() }),
    }
}

fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), StateError> {
    let attribute = tsc_offset_attribute(&raw const offset as u64);
    // SAFETY: the attribute's address is of a live u64, which is what KVM_VCPU_TSC_OFFSET reads.
    match unsafe { ioctl_with_ref(vcpu, request::KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => Err(StateError::Ioctl { call: "KVM_SET_DEVICE_ATTR", source: kvm_ioctls::Error::last() }),
    }
}

fn tsc_offset_attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET.into(), addr }
}
