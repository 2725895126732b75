//! Sections `cpu_common` and `cpu`: an x86 vCPU as QEMU 10.0 sends it (`target/i386/machine.c`'s layout, version 12).

use vmstate::VmState;

use super::cpu_needed::TSC_RATIO_RESET;
use super::registers::{FpReg, Hi16ZmmReg, MtrrVar, Segment, XmmReg, YmmhReg, ZmmhReg};

/// Section `cpu_common`: fields that all of QEMU's targets share.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "cpu_common", version = 1)]
pub struct CpuCommon {
    /// 1 while the vCPU waits in HLT.
    pub halted: u32,
    /// QEMU's software interrupt flags; 0 with an in-kernel LAPIC.
    pub interrupt_request: u32,
}

/// Section `cpu`, version 12. Field names are QEMU's; the general registers are in encoding order (RAX, RCX, RDX, RBX,
/// RSP, RBP, RSI, RDI, R8…R15), the segments in the order ES, CS, SS, DS, FS, GS.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "cpu", version = 12, minimum_version = 11)]
#[vmstate(subsection(name = "cpu/async_pf_msr", version = 1, needed = Self::has_async_pf))]
#[vmstate(subsection(name = "cpu/async_pf_int_msr", version = 1, needed = Self::has_async_pf_int))]
#[vmstate(subsection(name = "cpu/async_pv_eoi_msr", version = 1, needed = Self::has_pv_eoi))]
#[vmstate(subsection(name = "cpu/steal_time_msr", version = 1, needed = Self::has_steal_time))]
#[vmstate(subsection(name = "cpu/poll_control_msr", version = 1, needed = Self::has_poll_control))]
#[vmstate(subsection(name = "cpu/fpop_ip_dp", version = 1, needed = Self::has_last_x87))]
#[vmstate(subsection(name = "cpu/msr_tsc_adjust", version = 1, needed = Self::has_tsc_adjust))]
#[vmstate(subsection(name = "cpu/msr_tscdeadline", version = 1, needed = Self::has_tsc_deadline))]
#[vmstate(subsection(name = "cpu/msr_ia32_misc_enable", needed = Self::has_misc_enable))]
#[vmstate(subsection(name = "cpu/msr_ia32_feature_control", version = 1, needed = Self::has_feature_control))]
#[vmstate(subsection(name = "cpu/msr_architectural_pmu", version = 1, needed = Self::has_pmu))]
#[vmstate(subsection(name = "cpu/avx512", version = 1, needed = Self::has_avx512))]
#[vmstate(subsection(name = "cpu/xss", needed = Self::has_xss))]
#[vmstate(subsection(name = "cpu/umwait", version = 1, needed = Self::has_umwait))]
#[vmstate(subsection(name = "cpu/tsc_khz", version = 1, needed = Self::has_tsc_khz))]
#[vmstate(subsection(name = "cpu/msr_smi_count", version = 1, needed = Self::has_smi_count))]
#[vmstate(subsection(name = "cpu/pkru", version = 1, needed = Self::has_pkru))]
#[vmstate(subsection(name = "cpu/spec_ctrl", needed = Self::has_spec_ctrl))]
#[vmstate(subsection(name = "cpu/amd_tsc_scale_msr", version = 1, needed = Self::has_tsc_ratio))]
#[vmstate(subsection(name = "cpu/mcg_ext_ctl", version = 1, needed = Self::has_mcg_ext_ctl))]
#[vmstate(subsection(name = "cpu/virt_ssbd", version = 1, needed = Self::has_virt_ssbd))]
#[vmstate(subsection(name = "cpu/nested_state", version = 1))]
#[vmstate(subsection(name = "cpu/msr_tsx_ctrl", version = 1, needed = Self::has_tsx_ctrl))]
#[vmstate(subsection(name = "cpu/pdptrs", version = 1, needed = Self::has_pdptrs))]
pub struct Cpu {
    /// General registers.
    #[vmstate(name = "env.regs")]
    pub regs: [u64; 16],
    /// RIP.
    #[vmstate(name = "env.eip")]
    pub eip: u64,
    /// RFLAGS.
    #[vmstate(name = "env.eflags")]
    pub eflags: u64,
    /// QEMU's cached mode bits; derived on save, ignored on load.
    #[vmstate(name = "env.hflags")]
    pub hflags: u32,
    /// FCW.
    #[vmstate(name = "env.fpuc")]
    pub fpuc: u16,
    /// FSW, with the stack top in place.
    #[vmstate(name = "env.fpus_vmstate")]
    pub fpus: u16,
    /// Abridged tag word: bit i set means physical register i is in use.
    #[vmstate(name = "env.fptag_vmstate")]
    pub fptag: u16,
    /// 0: 80-bit registers follow.
    #[vmstate(name = "env.fpregs_format_vmstate")]
    pub fpregs_format: u16,
    /// x87 registers.
    #[vmstate(name = "env.fpregs")]
    pub fpregs: [FpReg; 8],
    /// Segment registers.
    #[vmstate(name = "env.segs")]
    pub segs: [Segment; 6],
    /// LDTR.
    #[vmstate(name = "env.ldt")]
    pub ldt: Segment,
    /// TR.
    #[vmstate(name = "env.tr")]
    pub tr: Segment,
    /// GDTR.
    #[vmstate(name = "env.gdt")]
    pub gdt: Segment,
    /// IDTR.
    #[vmstate(name = "env.idt")]
    pub idt: Segment,
    /// IA32_SYSENTER_CS.
    #[vmstate(name = "env.sysenter_cs")]
    pub sysenter_cs: u32,
    /// IA32_SYSENTER_ESP.
    #[vmstate(name = "env.sysenter_esp")]
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    #[vmstate(name = "env.sysenter_eip")]
    pub sysenter_eip: u64,
    /// CR0.
    #[vmstate(name = "env.cr[0]")]
    pub cr0: u64,
    /// CR2.
    #[vmstate(name = "env.cr[2]")]
    pub cr2: u64,
    /// CR3.
    #[vmstate(name = "env.cr[3]")]
    pub cr3: u64,
    /// CR4.
    #[vmstate(name = "env.cr[4]")]
    pub cr4: u64,
    /// Debug registers; 4 and 5 mirror 6 and 7.
    #[vmstate(name = "env.dr")]
    pub dr: [u64; 8],
    /// All ones: A20 open.
    #[vmstate(name = "env.a20_mask")]
    pub a20_mask: i32,
    /// MXCSR.
    #[vmstate(name = "env.mxcsr")]
    pub mxcsr: u32,
    /// XMM0…15.
    #[vmstate(name = "env.xmm_regs")]
    pub xmm: [XmmReg; 16],
    /// IA32_EFER.
    #[vmstate(name = "env.efer")]
    pub efer: u64,
    /// STAR.
    #[vmstate(name = "env.star")]
    pub star: u64,
    /// LSTAR.
    #[vmstate(name = "env.lstar")]
    pub lstar: u64,
    /// CSTAR.
    #[vmstate(name = "env.cstar")]
    pub cstar: u64,
    /// SFMASK.
    #[vmstate(name = "env.fmask")]
    pub fmask: u64,
    /// KernelGSbase.
    #[vmstate(name = "env.kernelgsbase")]
    pub kernel_gs_base: u64,
    /// SMBASE.
    #[vmstate(name = "env.smbase")]
    pub smbase: u32,
    /// IA32_PAT.
    #[vmstate(name = "env.pat")]
    pub pat: u64,
    /// More of QEMU's mode bits: bit 2 is "NMIs blocked".
    #[vmstate(name = "env.hflags2")]
    pub hflags2: u32,
    /// SVM emulation state of QEMU's TCG, zero under KVM.
    #[vmstate(name = "env.vm_hsave")]
    pub vm_hsave: u64,
    /// As above.
    #[vmstate(name = "env.vm_vmcb")]
    pub vm_vmcb: u64,
    /// As above.
    #[vmstate(name = "env.tsc_offset")]
    pub svm_tsc_offset: u64,
    /// As above.
    #[vmstate(name = "env.intercept")]
    pub intercept: u64,
    /// As above.
    #[vmstate(name = "env.intercept_cr_read")]
    pub intercept_cr_read: u16,
    /// As above.
    #[vmstate(name = "env.intercept_cr_write")]
    pub intercept_cr_write: u16,
    /// As above.
    #[vmstate(name = "env.intercept_dr_read")]
    pub intercept_dr_read: u16,
    /// As above.
    #[vmstate(name = "env.intercept_dr_write")]
    pub intercept_dr_write: u16,
    /// As above.
    #[vmstate(name = "env.intercept_exceptions")]
    pub intercept_exceptions: u32,
    /// As above.
    #[vmstate(name = "env.v_tpr")]
    pub v_tpr: u8,
    /// Fixed-range MTRRs: 64K, two 16K, eight 4K.
    #[vmstate(name = "env.mtrr_fixed")]
    pub mtrr_fixed: [u64; 11],
    /// MTRRdefType.
    #[vmstate(name = "env.mtrr_deftype")]
    pub mtrr_deftype: u64,
    /// Variable-range MTRRs.
    #[vmstate(name = "env.mtrr_var")]
    pub mtrr_var: [MtrrVar; 8],
    /// Vector of an interrupt being delivered, or -1.
    #[vmstate(name = "env.interrupt_injected")]
    pub interrupt_injected: i32,
    /// KVM_MP_STATE_*.
    #[vmstate(name = "env.mp_state")]
    pub mp_state: u32,
    /// Guest TSC.
    #[vmstate(name = "env.tsc")]
    pub tsc: u64,
    /// Vector of an exception being delivered, or -1.
    #[vmstate(name = "env.exception_nr")]
    pub exception_nr: i32,
    /// Whether the interrupt being delivered is a software one.
    #[vmstate(name = "env.soft_interrupt")]
    pub soft_interrupt: u8,
    /// An NMI is being delivered.
    #[vmstate(name = "env.nmi_injected")]
    pub nmi_injected: u8,
    /// An NMI waits.
    #[vmstate(name = "env.nmi_pending")]
    pub nmi_pending: u8,
    /// The exception being delivered has an error code.
    #[vmstate(name = "env.has_error_code")]
    pub has_error_code: u8,
    /// Start-up IPI vector.
    #[vmstate(name = "env.sipi_vector")]
    pub sipi_vector: u32,
    /// IA32_MCG_CAP.
    #[vmstate(name = "env.mcg_cap")]
    pub mcg_cap: u64,
    /// IA32_MCG_STATUS.
    #[vmstate(name = "env.mcg_status")]
    pub mcg_status: u64,
    /// IA32_MCG_CTL.
    #[vmstate(name = "env.mcg_ctl")]
    pub mcg_ctl: u64,
    /// CTL, STATUS, ADDR, MISC of ten machine-check banks.
    #[vmstate(name = "env.mce_banks")]
    pub mce_banks: [u64; 40],
    /// IA32_TSC_AUX.
    #[vmstate(name = "env.tsc_aux")]
    pub tsc_aux: u64,
    /// MSR_KVM_SYSTEM_TIME_NEW.
    #[vmstate(name = "env.system_time_msr")]
    pub system_time_msr: u64,
    /// MSR_KVM_WALL_CLOCK_NEW.
    #[vmstate(name = "env.wall_clock_msr")]
    pub wall_clock_msr: u64,
    /// XCR0.
    #[vmstate(name = "env.xcr0", since = 12)]
    pub xcr0: u64,
    /// XSTATE_BV of the XSAVE header.
    #[vmstate(name = "env.xstate_bv", since = 12)]
    pub xstate_bv: u64,
    /// Upper halves of YMM0…15.
    #[vmstate(name = "env.xmm_regs", since = 12)]
    pub ymmh: [YmmhReg; 16],
    /// MSR_KVM_ASYNC_PF_EN.
    #[vmstate(name = "env.async_pf_en_msr", subsection = "cpu/async_pf_msr")]
    pub async_pf_en_msr: u64,
    /// MSR_KVM_ASYNC_PF_INT.
    #[vmstate(name = "env.async_pf_int_msr", subsection = "cpu/async_pf_int_msr")]
    pub async_pf_int_msr: u64,
    /// MSR_KVM_PV_EOI_EN.
    #[vmstate(name = "env.pv_eoi_en_msr", subsection = "cpu/async_pv_eoi_msr")]
    pub pv_eoi_en_msr: u64,
    /// MSR_KVM_STEAL_TIME.
    #[vmstate(name = "env.steal_time_msr", subsection = "cpu/steal_time_msr")]
    pub steal_time_msr: u64,
    /// MSR_KVM_POLL_CONTROL; 1 at reset.
    #[vmstate(name = "env.poll_control_msr", subsection = "cpu/poll_control_msr")]
    pub poll_control_msr: u64,
    /// Opcode of the last x87 instruction.
    #[vmstate(name = "env.fpop", subsection = "cpu/fpop_ip_dp")]
    pub fpop: u16,
    /// Its address.
    #[vmstate(name = "env.fpip", subsection = "cpu/fpop_ip_dp")]
    pub fpip: u64,
    /// Its operand's address.
    #[vmstate(name = "env.fpdp", subsection = "cpu/fpop_ip_dp")]
    pub fpdp: u64,
    /// IA32_TSC_ADJUST.
    #[vmstate(name = "env.tsc_adjust", subsection = "cpu/msr_tsc_adjust")]
    pub tsc_adjust: u64,
    /// IA32_TSC_DEADLINE.
    #[vmstate(name = "env.tsc_deadline", subsection = "cpu/msr_tscdeadline")]
    pub tsc_deadline: u64,
    /// IA32_MISC_ENABLE; 1 at reset.
    #[vmstate(name = "env.msr_ia32_misc_enable", subsection = "cpu/msr_ia32_misc_enable")]
    pub misc_enable: u64,
    /// IA32_XSS.
    #[vmstate(name = "env.xss", subsection = "cpu/xss")]
    pub xss: u64,
    /// Guest TSC frequency in kHz.
    #[vmstate(name = "env.tsc_khz", subsection = "cpu/tsc_khz")]
    pub tsc_khz: i64,
    /// IA32_SPEC_CTRL.
    #[vmstate(name = "env.spec_ctrl", subsection = "cpu/spec_ctrl")]
    pub spec_ctrl: u64,
    /// IA32_FEATURE_CONTROL.
    #[vmstate(name = "env.msr_ia32_feature_control", subsection = "cpu/msr_ia32_feature_control")]
    pub feature_control: u64,
    /// IA32_FIXED_CTR_CTRL.
    #[vmstate(name = "env.msr_fixed_ctr_ctrl", subsection = "cpu/msr_architectural_pmu")]
    pub fixed_ctr_ctrl: u64,
    /// IA32_PERF_GLOBAL_CTRL.
    #[vmstate(name = "env.msr_global_ctrl", subsection = "cpu/msr_architectural_pmu")]
    pub perf_global_ctrl: u64,
    /// IA32_PERF_GLOBAL_STATUS.
    #[vmstate(name = "env.msr_global_status", subsection = "cpu/msr_architectural_pmu")]
    pub perf_global_status: u64,
    /// IA32_PERF_GLOBAL_OVF_CTRL.
    #[vmstate(name = "env.msr_global_ovf_ctrl", subsection = "cpu/msr_architectural_pmu")]
    pub perf_global_ovf_ctrl: u64,
    /// IA32_FIXED_CTR0…2.
    #[vmstate(name = "env.msr_fixed_counters", subsection = "cpu/msr_architectural_pmu")]
    pub fixed_counters: [u64; 3],
    /// IA32_PMC0…17.
    #[vmstate(name = "env.msr_gp_counters", subsection = "cpu/msr_architectural_pmu")]
    pub gp_counters: [u64; 18],
    /// IA32_PERFEVTSEL0…17.
    #[vmstate(name = "env.msr_gp_evtsel", subsection = "cpu/msr_architectural_pmu")]
    pub gp_event_selects: [u64; 18],
    /// Mask registers of AVX-512.
    #[vmstate(name = "env.opmask_regs", subsection = "cpu/avx512")]
    pub opmask: [u64; 8],
    /// Upper halves of ZMM0…15.
    #[vmstate(name = "env.xmm_regs", subsection = "cpu/avx512")]
    pub zmmh: [ZmmhReg; 16],
    /// ZMM16…31.
    #[vmstate(name = "env.xmm_regs", subsection = "cpu/avx512")]
    pub hi16_zmm: [Hi16ZmmReg; 16],
    /// IA32_UMWAIT_CONTROL.
    #[vmstate(name = "env.umwait", subsection = "cpu/umwait")]
    pub umwait: u32,
    /// MSR_SMI_COUNT.
    #[vmstate(name = "env.msr_smi_count", subsection = "cpu/msr_smi_count")]
    pub smi_count: u64,
    /// Rights of protection keys.
    #[vmstate(name = "env.pkru", subsection = "cpu/pkru")]
    pub pkru: u32,
    /// MSR TSC_RATIO, for nested guests: a QEMU that shows SVM to the guest always sends it.
    #[vmstate(name = "env.amd_tsc_scale_msr", subsection = "cpu/amd_tsc_scale_msr")]
    pub amd_tsc_scale_msr: u64,
    /// IA32_MCG_EXT_CTL.
    #[vmstate(name = "env.mcg_ext_ctl", subsection = "cpu/mcg_ext_ctl")]
    pub mcg_ext_ctl: u64,
    /// MSR_VIRT_SSBD.
    #[vmstate(name = "env.virt_ssbd", subsection = "cpu/virt_ssbd")]
    pub virt_ssbd: u64,
    /// IA32_TSX_CTRL.
    #[vmstate(name = "env.tsx_ctrl", subsection = "cpu/msr_tsx_ctrl")]
    pub tsx_ctrl: u32,
    /// State of nested virtualization; a stream with it is refused by name.
    #[vmstate(name = "env.nested_state", subsection = "cpu/nested_state")]
    pub(super) nested_state: Option<NestedState>,
    /// PDPTEs that a guest in 32-bit PAE paging has loaded from the address in CR3. KVM loads them from there again.
    #[vmstate(name = "env.pdptrs", subsection = "cpu/pdptrs")]
    pub pdptrs: [u64; 4],
}

/// Header of QEMU's state of nested virtualization, whose presence is refused.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "cpu/kvm_nested_state", version = 1, validate = Self::refuse)]
pub(super) struct NestedState {
    flags: u16,
    format: u16,
    size: u32,
}

impl NestedState {
    fn refuse(&self) -> Result<(), &'static str> {
        Err("nested virtualization is not migrated: end the guest's own guests and start it with -cpu …,-vmx,-svm")
    }
}

impl Default for Cpu {
    /// Reset values, for subsections and versions that a stream lacks.
    fn default() -> Self {
        Self {
            regs: [0; 16],
            eip: 0,
            eflags: 2,
            hflags: 0,
            fpuc: 0x37f,
            fpus: 0,
            fptag: 0,
            fpregs_format: 0,
            fpregs: Default::default(),
            segs: Default::default(),
            ldt: Segment::default(),
            tr: Segment::default(),
            gdt: Segment::default(),
            idt: Segment::default(),
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            dr: [0; 8],
            a20_mask: -1,
            mxcsr: 0x1f80,
            xmm: Default::default(),
            efer: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            smbase: 0x30000,
            pat: 0x0007_0406_0007_0406,
            hflags2: 0,
            vm_hsave: 0,
            vm_vmcb: 0,
            svm_tsc_offset: 0,
            intercept: 0,
            intercept_cr_read: 0,
            intercept_cr_write: 0,
            intercept_dr_read: 0,
            intercept_dr_write: 0,
            intercept_exceptions: 0,
            v_tpr: 0,
            mtrr_fixed: [0; 11],
            mtrr_deftype: 0,
            mtrr_var: Default::default(),
            interrupt_injected: -1,
            mp_state: 0,
            tsc: 0,
            exception_nr: -1,
            soft_interrupt: 0,
            nmi_injected: 0,
            nmi_pending: 0,
            has_error_code: 0,
            sipi_vector: 0,
            mcg_cap: 0,
            mcg_status: 0,
            mcg_ctl: 0,
            mce_banks: [0; 40],
            tsc_aux: 0,
            system_time_msr: 0,
            wall_clock_msr: 0,
            xcr0: 1,
            xstate_bv: 0,
            ymmh: Default::default(),
            async_pf_en_msr: 0,
            async_pf_int_msr: 0,
            pv_eoi_en_msr: 0,
            steal_time_msr: 0,
            poll_control_msr: 1,
            fpop: 0,
            fpip: 0,
            fpdp: 0,
            tsc_adjust: 0,
            tsc_deadline: 0,
            misc_enable: 1,
            xss: 0,
            tsc_khz: 0,
            spec_ctrl: 0,
            feature_control: 0,
            fixed_ctr_ctrl: 0,
            perf_global_ctrl: 0,
            perf_global_status: 0,
            perf_global_ovf_ctrl: 0,
            fixed_counters: [0; 3],
            gp_counters: [0; 18],
            gp_event_selects: [0; 18],
            opmask: [0; 8],
            zmmh: Default::default(),
            hi16_zmm: Default::default(),
            umwait: 0,
            smi_count: 0,
            pkru: 0,
            mcg_ext_ctl: 0,
            virt_ssbd: 0,
            tsx_ctrl: 0,
            nested_state: None,
            amd_tsc_scale_msr: TSC_RATIO_RESET,
            pdptrs: [0; 4],
        }
    }
}
