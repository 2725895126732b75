//! State of a whole vCPU: the KVM calls and their order.
//!
//! Reading: KVM_GET_MP_STATE first, since it may accept a pending INIT and change everything else;
//! KVM_GET_VCPU_EVENTS last. All vCPUs are stopped. Writing: CPUID was set when the vCPU was made; KVM_SET_LAPIC after
//! KVM_SET_SREGS (which enables the LAPIC) and before KVM_SET_MSRS (else a TSC deadline is dropped); the TSC before
//! the deadline; KVM_SET_VCPU_EVENTS last, since KVM_SET_REGS clears a pending exception. FS and GS bases come with
//! the segments, EFER with the special registers.

use kvm_bindings::{KVM_MP_STATE_HALTED, kvm_mp_state, kvm_xsave};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use super::apic::Apic;
use super::cpu::{Cpu, CpuCommon};
use super::extra::VcpuExtra;
use super::shown::Shown;
use super::{StateError, call, msr};
use crate::kvm::machine_check;

/// All sections of one vCPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VcpuState {
    /// Section `cpu_common`.
    pub common: CpuCommon,
    /// Section `cpu`.
    pub cpu: Cpu,
    /// Section `apic`.
    pub apic: Apic,
    /// Section `minivmm/vcpu`.
    pub extra: VcpuExtra,
}

/// Features of this host's KVM, queried once. A value proves that the XSAVE area of a vCPU here is no larger than `kvm_xsave`:
/// it grows only if the process requests more (ARCH_REQ_XCOMP_GUEST_PERM), which this one never does.
#[derive(Clone, Debug)]
pub struct HostFeatures {
    extra_msrs: Vec<u32>,
    /// MSRs of QEMU's subsections that this KVM has.
    optional_msrs: Vec<u32>,
    machine_checks: machine_check::Supported,
}

impl HostFeatures {
    /// Queries which state of a vCPU KVM can read and write.
    ///
    /// # Errors
    /// The MSR list cannot be read, or vCPUs have more XSAVE state than the format carries.
    pub fn new(kvm: &Kvm) -> Result<Self, StateError> {
        const LIMIT: usize = size_of::<kvm_xsave>();
        let bytes = usize::try_from(kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        if bytes > LIMIT {
            return Err(StateError::XsaveSize { bytes, limit: LIMIT });
        }
        let all = call("KVM_GET_MSR_INDEX_LIST", kvm.get_msr_index_list())?;
        let machine_checks = call("KVM_X86_GET_MCE_CAP_SUPPORTED", machine_check::Supported::by(kvm))?;
        let mut optional_msrs = Cpu::optional_msr_indices();
        optional_msrs.retain(|index| all.as_slice().contains(index));
        Ok(Self { extra_msrs: VcpuExtra::msr_indices(all.as_slice()), optional_msrs, machine_checks })
    }

    fn set_xsave(&self, vcpu: &VcpuFd, area: &kvm_xsave) -> Result<(), StateError> {
        // SAFETY: KVM reads as many bytes as KVM_CAP_XSAVE2 says, and `self` proves that `area` has as many.
        call("KVM_SET_XSAVE", unsafe { vcpu.set_xsave(area) })
    }
}

impl VcpuState {
    /// Reads a stopped vCPU. `now` is the machine's clock in ns, and `tsc` the vCPU's TSC at that instant, if the host can read
    /// it.
    ///
    /// # Errors
    /// An ioctl failed.
    pub fn get(vcpu: &VcpuFd, host: &HostFeatures, now: i64, tsc: Option<u64>) -> Result<Self, StateError> {
        let mut state = Self::default();
        let cpu = &mut state.cpu;
        cpu.mp_state = call("KVM_GET_MP_STATE", vcpu.get_mp_state())?.mp_state;
        state.common.halted = u32::from(cpu.mp_state == KVM_MP_STATE_HALTED);
        cpu.take_regs(&call("KVM_GET_REGS", vcpu.get_regs())?);
        let sregs = call("KVM_GET_SREGS", vcpu.get_sregs())?;
        cpu.take_sregs(&sregs);
        let area = call("KVM_GET_XSAVE", vcpu.get_xsave())?;
        let shown = Shown::read(vcpu)?;
        state.extra.take_xsave_rest(cpu.take_xsave(&area, &shown));
        let xcrs = call("KVM_GET_XCRS", vcpu.get_xcrs())?;
        cpu.xcr0 = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|xcr| xcr.xcr == 0).map_or(1, |xcr| xcr.value);
        cpu.take_debug_regs(&call("KVM_GET_DEBUGREGS", vcpu.get_debug_regs())?);
        let page = call("KVM_GET_LAPIC", vcpu.get_lapic())?;
        (state.apic, state.extra.apic_current_count) = Apic::from_kvm(&page, sregs.apic_base, now);
        cpu.tsc_khz = call("KVM_GET_TSC_KHZ", vcpu.get_tsc_khz())?.into();
        cpu.take_msrs(&msr::read(vcpu, &Cpu::msr_indices())?);
        cpu.take_optional_msrs(&msr::read(vcpu, &host.optional_msrs)?);
        cpu.widen_mtrr_masks(shown.physical_bits);
        // For a destination without `minivmm/clock`, which has only this TSC for its clock. A difference of more than a second
        // means that the TSC is scaled.
        let second = cpu.tsc_khz.unsigned_abs() * 1000;
        cpu.tsc = tsc.filter(|tsc| tsc.abs_diff(cpu.tsc) <= second).unwrap_or(cpu.tsc);
        if state.apic.deadline_timer_is_armed() && cpu.tsc_deadline == 0 {
            // The timer expired, but its interrupt may not be in the IRR yet: it fires again at the destination.
            cpu.tsc_deadline = cpu.tsc;
        }
        state.extra.take_msrs(msr::read(vcpu, &host.extra_msrs)?);
        let events = call("KVM_GET_VCPU_EVENTS", vcpu.get_vcpu_events())?;
        cpu.take_events(&events);
        cpu.deliver_payload(&events);
        state.extra.take_events(&events);
        Ok(state)
    }

    /// Writes a vCPU that has not run yet, except for its TSC.
    ///
    /// # Errors
    /// An ioctl failed; the vCPU must not run.
    pub fn set(&self, vcpu: &VcpuFd, host: &HostFeatures) -> Result<(), StateError> {
        let (cpu, extra) = (&self.cpu, &self.extra);
        let mp_state = kvm_mp_state { mp_state: cpu.mp_state };
        call("KVM_SET_MP_STATE", vcpu.set_mp_state(mp_state))?;
        call("KVM_SET_REGS", vcpu.set_regs(&cpu.kvm_regs()))?;
        let sregs = cpu.kvm_sregs(self.apic.apicbase.into(), u64::from(self.apic.tpr >> 4));
        call("KVM_SET_SREGS", vcpu.set_sregs(&sregs))?;
        let mut xcrs = call("KVM_GET_XCRS", vcpu.get_xcrs())?;
        if xcrs.nr_xcrs > 0 {
            xcrs.nr_xcrs = 1;
            xcrs.xcrs[0].xcr = 0;
            xcrs.xcrs[0].value = cpu.xcr0;
            call("KVM_SET_XCRS", vcpu.set_xcrs(&xcrs))?;
        }
        let shown = Shown::read(vcpu)?;
        host.set_xsave(vcpu, &cpu.kvm_xsave(&extra.xsave_rest, &shown)?)?;
        call("KVM_SET_DEBUGREGS", vcpu.set_debug_regs(&cpu.kvm_debug_regs()))?;
        let page = call("KVM_GET_LAPIC", vcpu.get_lapic())?;
        call("KVM_SET_LAPIC", vcpu.set_lapic(&self.apic.to_kvm(&page, extra.apic_current_count)))?;
        let extra_msrs: Vec<_> = extra.msrs.iter().map(|msr| (msr.index, msr.value)).collect();
        msr::write(vcpu, &extra_msrs)?;
        if msr::read(vcpu, &[msr::index::MCG_CAP])?.get(&msr::index::MCG_CAP) != Some(&cpu.mcg_cap) {
            call("KVM_X86_SETUP_MCE", machine_check::set_up_as(vcpu, cpu.mcg_cap, host.machine_checks))?;
        }
        msr::write(vcpu, &cpu.optional_msr_values())?;
        msr::write(vcpu, &cpu.msr_values(shown.physical_bits))?;
        let host_flags = call("KVM_GET_VCPU_EVENTS", vcpu.get_vcpu_events())?.flags;
        let mut events = cpu.kvm_events();
        extra.complete_events(&mut events, host_flags);
        call("KVM_SET_VCPU_EVENTS", vcpu.set_vcpu_events(&events))
    }
}
