//! Model-specific registers, many at a time.
//!
//! KVM_GET_MSRS and KVM_SET_MSRS stop at the first register that KVM refuses, and return how many were done before it
//! (Documentation/virt/kvm/api.rst, 4.18 and 4.19): this identifies the register.

use std::collections::BTreeMap;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{StateError, call};

/// Most registers KVM takes in one call (`MAX_IO_MSRS`, arch/x86/kvm/x86.c).
const MAX_BATCH: usize = 256;

/// Reads `indices`, without the registers that this KVM lacks.
pub(super) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<BTreeMap<u32, u64>, StateError> {
    let mut values = BTreeMap::new();
    let mut rest = indices;
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(MAX_BATCH)];
        let mut msrs = table(batch.iter().map(|&index| (index, 0)));
        let count = call("KVM_GET_MSRS", vcpu.get_msrs(&mut msrs))?;
        values.extend(msrs.as_slice()[..count].iter().map(|entry| (entry.index, entry.data)));
        let refused = usize::from(count < batch.len());
        rest = &rest[count + refused..];
    }
    Ok(values)
}

/// Writes `values` in the given order. A refused register is ignored if it already has the value, or if this KVM lacks it and
/// the value is 0.
pub(super) fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), StateError> {
    let mut rest = values;
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(MAX_BATCH)];
        let count = call("KVM_SET_MSRS", vcpu.set_msrs(&table(batch.iter().copied())))?;
        rest = &rest[count..];
        if let Some((&(index, value), others)) = rest.split_first().filter(|_| count < batch.len()) {
            if read(vcpu, &[index])?.get(&index).copied().unwrap_or(0) != value {
                return Err(StateError::Msr { index, value });
            }
            rest = others;
        }
    }
    Ok(())
}

fn table(values: impl Iterator<Item = (u32, u64)>) -> Msrs {
    let entries: Vec<_> = values.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    Msrs::from_entries(&entries).expect("a batch is smaller than the table's limit")
}

/// Register numbers (Intel SDM volume 4, AMD APM volume 2, and Documentation/virt/kvm/x86/msr.rst for KVM's own).
pub(super) mod index {
    pub(in super::super) const TSC: u32 = 0x10;
    pub(in super::super) const SMI_COUNT: u32 = 0x34;
    pub(in super::super) const FEATURE_CONTROL: u32 = 0x3a;
    pub(in super::super) const TSC_ADJUST: u32 = 0x3b;
    pub(in super::super) const SPEC_CTRL: u32 = 0x48;
    pub(in super::super) const PMC0: u32 = 0xc1;
    pub(in super::super) const UMWAIT_CONTROL: u32 = 0xe1;
    pub(in super::super) const TSX_CTRL: u32 = 0x122;
    pub(in super::super) const SYSENTER_CS: u32 = 0x174;
    pub(in super::super) const SYSENTER_ESP: u32 = 0x175;
    pub(in super::super) const SYSENTER_EIP: u32 = 0x176;
    pub(in super::super) const MCG_CAP: u32 = 0x179;
    pub(in super::super) const MCG_STATUS: u32 = 0x17a;
    pub(in super::super) const MCG_CTL: u32 = 0x17b;
    pub(in super::super) const PERFEVTSEL0: u32 = 0x186;
    pub(in super::super) const MISC_ENABLE: u32 = 0x1a0;
    pub(in super::super) const MTRR_PHYS_BASE_0: u32 = 0x200;
    pub(in super::super) const MTRR_FIXED: [u32; 11] =
        [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
    pub(in super::super) const PAT: u32 = 0x277;
    pub(in super::super) const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub(in super::super) const FIXED_CTR0: u32 = 0x309;
    pub(in super::super) const FIXED_CTR_CTRL: u32 = 0x38d;
    pub(in super::super) const PERF_GLOBAL_STATUS: u32 = 0x38e;
    pub(in super::super) const PERF_GLOBAL_CTRL: u32 = 0x38f;
    pub(in super::super) const MC0_CTL: u32 = 0x400;
    pub(in super::super) const MCG_EXT_CTL: u32 = 0x4d0;
    pub(in super::super) const TSC_DEADLINE: u32 = 0x6e0;
    pub(in super::super) const XSS: u32 = 0xda0;
    pub(in super::super) const EFER: u32 = 0xc000_0080;
    pub(in super::super) const STAR: u32 = 0xc000_0081;
    pub(in super::super) const LSTAR: u32 = 0xc000_0082;
    pub(in super::super) const CSTAR: u32 = 0xc000_0083;
    pub(in super::super) const FMASK: u32 = 0xc000_0084;
    pub(in super::super) const FS_BASE: u32 = 0xc000_0100;
    pub(in super::super) const GS_BASE: u32 = 0xc000_0101;
    pub(in super::super) const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub(in super::super) const TSC_AUX: u32 = 0xc000_0103;
    pub(in super::super) const VIRT_SSBD: u32 = 0xc001_011f;
    /// First pair of KVM clock registers: aliases of the `_NEW` ones. Writing the old system-time register makes KVM give up
    /// the master clock (`kvm_write_system_time`), so they are neither read nor written.
    pub(in super::super) const KVM_WALL_CLOCK_OLD: u32 = 0x11;
    pub(in super::super) const KVM_SYSTEM_TIME_OLD: u32 = 0x12;
    pub(in super::super) const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    pub(in super::super) const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
    pub(in super::super) const KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;
    pub(in super::super) const KVM_STEAL_TIME: u32 = 0x4b56_4d03;
    pub(in super::super) const KVM_PV_EOI_EN: u32 = 0x4b56_4d04;
    pub(in super::super) const KVM_POLL_CONTROL: u32 = 0x4b56_4d05;
    pub(in super::super) const KVM_ASYNC_PF_INT: u32 = 0x4b56_4d06;
    /// Written by the guest as an acknowledgement, so it has no state.
    pub(in super::super) const KVM_ASYNC_PF_ACK: u32 = 0x4b56_4d07;
}
