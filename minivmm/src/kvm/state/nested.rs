//! Detects nested virtualization in a stream, which is refused because no section carries its state.
//!
//! A guest with an active hypervisor has state in KVM (KVM_GET_NESTED_STATE). The CPUID of a guest that began here offers
//! neither VMX nor SVM, so only other programs send such a guest.

use std::ops::RangeInclusive;

use super::vcpu::VcpuState;

/// CR4.VMXE (Intel SDM volume 3, 2.5).
const CR4_VMXE: u64 = 1 << 13;
/// EFER.SVME (AMD APM volume 2, 3.1.7).
const EFER_SVME: u64 = 1 << 12;
/// IA32_FEATURE_CONTROL, and its bits that let VMXON work inside and outside SMX (Intel SDM volume 4, table 2-2).
const FEATURE_CONTROL: u32 = 0x3a;
const FEATURE_CONTROL_VMX: u64 = 1 << 1 | 1 << 2;
const VMX_ENABLED: &str = "IA32_FEATURE_CONTROL with VMX enabled";
/// IA32_VMX_BASIC to IA32_VMX_VMFUNC: capabilities of VMX.
const VMX_CAPABILITIES: RangeInclusive<u32> = 0x480..=0x491;
/// VM_HSAVE_PA: address at which SVM keeps the state of its host (AMD APM volume 2, 15.30.4).
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// Whether a register only describes VMX. A guest without VMX cannot read it.
pub(super) fn describes_vmx(msr: u32) -> bool {
    VMX_CAPABILITIES.contains(&msr)
}

/// Returns the name of a part of `state` that belongs to nested virtualization; `None` if there is none.
pub(super) fn found(state: &VcpuState) -> Option<String> {
    let cpu = &state.cpu;
    if cpu.cr4 & CR4_VMXE != 0 {
        return Some("CR4.VMXE".into());
    }
    if cpu.efer & EFER_SVME != 0 {
        return Some("EFER.SVME".into());
    }
    if cpu.vm_hsave != 0 || cpu.vm_vmcb != 0 {
        return Some("the address of an SVM state area".into());
    }
    if cpu.has_tsc_ratio() {
        return Some("MSR TSC_RATIO".into());
    }
    if cpu.feature_control & FEATURE_CONTROL_VMX != 0 {
        return Some(VMX_ENABLED.into());
    }
    state.extra.msrs.iter().find_map(|msr| match msr.index {
        FEATURE_CONTROL if msr.value & FEATURE_CONTROL_VMX != 0 => Some(VMX_ENABLED.into()),
        VM_HSAVE_PA if msr.value != 0 => Some("VM_HSAVE_PA".into()),
        index if describes_vmx(index) && msr.value != 0 => Some(format!("VMX capability MSR {index:#x}")),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::state::extra::Msr;

    fn with_msr(index: u32, value: u64) -> VcpuState {
        let mut state = VcpuState::default();
        state.extra.msrs = vec![Msr { index: 0x10a, value: u64::MAX }, Msr { index, value }];
        state
    }

    fn with(change: impl FnOnce(&mut VcpuState)) -> VcpuState {
        let mut state = VcpuState::default();
        // A 64-bit kernel's registers without VMXE and SVME: SCE, LME, LMA, NXE; all other bits of CR4 up to PKE.
        (state.cpu.efer, state.cpu.cr4) = (0xd01, 0x7f_dfff);
        change(&mut state);
        state
    }

    #[test]
    fn an_ordinary_guest_has_none() {
        assert_eq!(found(&with(|_| {})), None);
        // The lock bit alone enables nothing, and registers may be present with the value 0.
        for (index, value) in [(0x3a, 1), (0x480, 0), (0xc001_0117, 0), (0x47f, 1), (0x492, 1)] {
            assert_eq!(found(&with_msr(index, value)), None, "{index:#x}");
        }
    }

    #[test]
    fn each_sign_is_named() {
        assert_eq!(found(&with(|state| state.cpu.cr4 |= 0x2000)).unwrap(), "CR4.VMXE");
        assert_eq!(found(&with(|state| state.cpu.efer |= 0x1000)).unwrap(), "EFER.SVME");
        assert_eq!(found(&with(|state| state.cpu.vm_vmcb = 0x1000)).unwrap(), "the address of an SVM state area");
        assert_eq!(found(&with(|state| state.cpu.amd_tsc_scale_msr += 1)).unwrap(), "MSR TSC_RATIO");
        assert_eq!(found(&with_msr(0x3a, 5)).unwrap(), "IA32_FEATURE_CONTROL with VMX enabled");
        assert_eq!(found(&with_msr(0x3a, 2)).unwrap(), "IA32_FEATURE_CONTROL with VMX enabled");
        assert_eq!(
            found(&with(|state| state.cpu.feature_control = 4)).unwrap(),
            "IA32_FEATURE_CONTROL with VMX enabled"
        );
        assert_eq!(found(&with_msr(0xc001_0117, 0x1000)).unwrap(), "VM_HSAVE_PA");
        assert_eq!(found(&with_msr(0x480, 1)).unwrap(), "VMX capability MSR 0x480");
        assert_eq!(found(&with_msr(0x491, 1)).unwrap(), "VMX capability MSR 0x491");
    }
}
