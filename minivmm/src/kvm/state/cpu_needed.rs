//! Conditions for the subsections of section `cpu`, which are QEMU's (target/i386/machine.c).

use super::cpu::Cpu;
use super::registers::{Hi16ZmmReg, ZmmhReg};

/// MSR TSC_RATIO after a reset, a ratio of 1 (AMD APM volume 2, 15.30.5).
pub(super) const TSC_RATIO_RESET: u64 = 1 << 32;

impl Cpu {
    pub(super) fn has_async_pf(&self) -> bool {
        self.async_pf_en_msr != 0
    }

    pub(super) fn has_async_pf_int(&self) -> bool {
        self.async_pf_int_msr != 0
    }

    pub(super) fn has_pv_eoi(&self) -> bool {
        self.pv_eoi_en_msr != 0
    }

    pub(super) fn has_steal_time(&self) -> bool {
        self.steal_time_msr != 0
    }

    pub(super) fn has_poll_control(&self) -> bool {
        self.poll_control_msr != 1
    }

    pub(super) fn has_last_x87(&self) -> bool {
        self.fpop != 0 || self.fpip != 0 || self.fpdp != 0
    }

    pub(super) fn has_tsc_adjust(&self) -> bool {
        self.tsc_adjust != 0
    }

    pub(super) fn has_tsc_deadline(&self) -> bool {
        self.tsc_deadline != 0
    }

    pub(super) fn has_misc_enable(&self) -> bool {
        self.misc_enable != 1
    }

    pub(super) fn has_xss(&self) -> bool {
        self.xss != 0
    }

    pub(super) fn has_tsc_khz(&self) -> bool {
        self.tsc_khz != 0
    }

    pub(super) fn has_spec_ctrl(&self) -> bool {
        self.spec_ctrl != 0
    }

    pub(super) fn has_feature_control(&self) -> bool {
        self.feature_control != 0
    }

    /// Whether a counter counts or has counted. QEMU sends the subsection earlier: after a reset IA32_PERF_GLOBAL_CTRL enables
    /// all counters.
    pub(super) fn has_pmu(&self) -> bool {
        let one = [self.fixed_ctr_ctrl, self.perf_global_status, self.perf_global_ovf_ctrl];
        let all = one.iter().chain(&self.fixed_counters).chain(&self.gp_counters).chain(&self.gp_event_selects);
        all.into_iter().any(|&register| register != 0)
    }

    /// QEMU's condition: registers that are all zero are not sent.
    pub(super) fn has_avx512(&self) -> bool {
        self.opmask != [0; 8] || self.zmmh != [ZmmhReg::default(); 16] || self.hi16_zmm != [Hi16ZmmReg::default(); 16]
    }

    pub(super) fn has_umwait(&self) -> bool {
        self.umwait != 0
    }

    pub(super) fn has_smi_count(&self) -> bool {
        self.smi_count != 0
    }

    pub(super) fn has_pkru(&self) -> bool {
        self.pkru != 0
    }

    pub(super) fn has_tsc_ratio(&self) -> bool {
        self.amd_tsc_scale_msr != TSC_RATIO_RESET
    }

    pub(super) fn has_pdptrs(&self) -> bool {
        self.pdptrs != [0; 4]
    }

    pub(super) fn has_mcg_ext_ctl(&self) -> bool {
        self.mcg_ext_ctl != 0
    }

    pub(super) fn has_virt_ssbd(&self) -> bool {
        self.virt_ssbd != 0
    }

    pub(super) fn has_tsx_ctrl(&self) -> bool {
        self.tsx_ctrl != 0
    }
}
