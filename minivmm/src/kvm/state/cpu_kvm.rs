//! Converts between section `cpu` and KVM's structs: registers, segments, events, MSRs. x87 and vector state is in
//! `cpu_xsave.rs`.

use std::collections::BTreeMap;

use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events};

use super::cpu::Cpu;
use super::msr::index;
use super::registers::{MtrrVar, Segment};

/// hflags2 bit "NMIs are blocked" (QEMU's `HF2_NMI_MASK`).
const HFLAGS2_NMI: u32 = 1 << 2;
/// hflags2 bits that QEMU's vCPUs have set from reset on: nested virtualization does not hold back interrupts (`HF2_GIF_MASK`,
/// without which QEMU delivers none and KVM refuses QEMU's nested state), nor those of a nested guest (`HF2_VGIF_MASK`).
const HFLAGS2_RESET: u32 = 1 | 1 << 8;

/// Most general counters that KVM gives a guest (`KVM_MAX_NR_INTEL_GP_COUNTERS`, arch/x86/include/asm/kvm_host.h). QEMU's
/// section has room for more; KVM has other registers at their numbers, as MSR_PLATFORM_INFO.
const COUNTERS_MAX: u32 = 8;

/// Vectors of the exceptions that have a payload.
const DEBUG: u8 = 1;
const PAGE_FAULT: u8 = 14;
/// Bits of DR6 that report the trap, and those that are 1 if there was none.
const DR6_TRAPS: u64 = 0xf;
const DR6_ACTIVE_LOW: u64 = 0xffff_0ff0;

/// Most bits of an MTRR's mask that QEMU fills.
const MTRR_MASK_BITS: u32 = 52;

impl Cpu {
    /// MSRs in section `cpu`; TSC-deadline is last, since it arms a timer, for which the TSC must be right.
    pub(super) fn msr_indices() -> Vec<u32> {
        let mut indices: Vec<u32> = vec![
            index::TSC,
            index::TSC_ADJUST,
            index::SYSENTER_CS,
            index::SYSENTER_ESP,
            index::SYSENTER_EIP,
            index::MCG_CAP,
            index::MCG_STATUS,
            index::MCG_CTL,
            index::PAT,
            index::MTRR_DEF_TYPE,
            index::STAR,
            index::LSTAR,
            index::CSTAR,
            index::FMASK,
            index::KERNEL_GS_BASE,
            index::TSC_AUX,
            index::KVM_WALL_CLOCK,
            index::KVM_SYSTEM_TIME,
            index::KVM_ASYNC_PF_EN,
            index::KVM_ASYNC_PF_INT,
            index::KVM_STEAL_TIME,
            index::KVM_PV_EOI_EN,
            index::KVM_POLL_CONTROL,
            index::MISC_ENABLE,
            index::XSS,
            index::SPEC_CTRL,
        ];
        indices.extend(index::MTRR_FIXED);
        indices.extend((0..16).map(|n| index::MTRR_PHYS_BASE_0 + n));
        indices.extend((0..40).map(|n| index::MC0_CTL + n));
        indices.push(index::TSC_DEADLINE);
        indices
    }

    pub(super) fn take_msrs(&mut self, values: &BTreeMap<u32, u64>) {
        let get = |index: u32| values.get(&index).copied().unwrap_or(0);
        self.tsc = get(index::TSC);
        self.tsc_adjust = get(index::TSC_ADJUST);
        self.sysenter_cs = get(index::SYSENTER_CS) as u32;
        self.sysenter_esp = get(index::SYSENTER_ESP);
        self.sysenter_eip = get(index::SYSENTER_EIP);
        self.mcg_cap = get(index::MCG_CAP);
        self.mcg_status = get(index::MCG_STATUS);
        self.mcg_ctl = get(index::MCG_CTL);
        self.pat = get(index::PAT);
        self.mtrr_deftype = get(index::MTRR_DEF_TYPE);
        self.star = get(index::STAR);
        self.lstar = get(index::LSTAR);
        self.cstar = get(index::CSTAR);
        self.fmask = get(index::FMASK);
        self.kernel_gs_base = get(index::KERNEL_GS_BASE);
        self.tsc_aux = get(index::TSC_AUX);
        self.wall_clock_msr = get(index::KVM_WALL_CLOCK);
        self.system_time_msr = get(index::KVM_SYSTEM_TIME);
        self.async_pf_en_msr = get(index::KVM_ASYNC_PF_EN);
        self.async_pf_int_msr = get(index::KVM_ASYNC_PF_INT);
        self.steal_time_msr = get(index::KVM_STEAL_TIME);
        self.pv_eoi_en_msr = get(index::KVM_PV_EOI_EN);
        self.poll_control_msr = values.get(&index::KVM_POLL_CONTROL).copied().unwrap_or(1);
        self.misc_enable = values.get(&index::MISC_ENABLE).copied().unwrap_or(1);
        self.xss = get(index::XSS);
        self.spec_ctrl = get(index::SPEC_CTRL);
        self.mtrr_fixed = index::MTRR_FIXED.map(get);
        self.mtrr_var = std::array::from_fn(|n| {
            let base = index::MTRR_PHYS_BASE_0 + 2 * n as u32;
            MtrrVar { base: get(base), mask: get(base + 1) }
        });
        self.mce_banks = std::array::from_fn(|n| get(index::MC0_CTL + n as u32));
        self.tsc_deadline = get(index::TSC_DEADLINE);
    }

    /// MSRs for which QEMU has subsections, sent only if they are not zero, in the order in which they are written: the
    /// counters are enabled after all of them are set.
    pub(super) fn optional_msr_indices() -> Vec<u32> {
        let mut indices = vec![
            index::SMI_COUNT,
            index::FEATURE_CONTROL,
            index::UMWAIT_CONTROL,
            index::TSX_CTRL,
            index::MCG_EXT_CTL,
            index::VIRT_SSBD,
        ];
        indices.extend((0..3).map(|n| index::FIXED_CTR0 + n));
        indices.extend((0..COUNTERS_MAX).map(|n| index::PMC0 + n));
        indices.extend((0..COUNTERS_MAX).map(|n| index::PERFEVTSEL0 + n));
        indices.extend([index::PERF_GLOBAL_STATUS, index::FIXED_CTR_CTRL, index::PERF_GLOBAL_CTRL]);
        indices
    }

    pub(super) fn take_optional_msrs(&mut self, values: &BTreeMap<u32, u64>) {
        let get = |index: u32| values.get(&index).copied().unwrap_or(0);
        self.smi_count = get(index::SMI_COUNT);
        self.feature_control = get(index::FEATURE_CONTROL);
        self.umwait = get(index::UMWAIT_CONTROL) as u32;
        self.tsx_ctrl = get(index::TSX_CTRL) as u32;
        self.mcg_ext_ctl = get(index::MCG_EXT_CTL);
        self.virt_ssbd = get(index::VIRT_SSBD);
        self.fixed_counters = std::array::from_fn(|n| get(index::FIXED_CTR0 + n as u32));
        self.gp_counters = std::array::from_fn(|n| get(index::PMC0 + n as u32));
        self.gp_event_selects = std::array::from_fn(|n| get(index::PERFEVTSEL0 + n as u32));
        self.perf_global_status = get(index::PERF_GLOBAL_STATUS);
        self.fixed_ctr_ctrl = get(index::FIXED_CTR_CTRL);
        self.perf_global_ctrl = get(index::PERF_GLOBAL_CTRL);
    }

    /// Those of [`optional_msr_indices`](Self::optional_msr_indices) that are not zero; in a new vCPU all are zero.
    /// IA32_PERF_GLOBAL_OVF_CTRL reads as zero: writing it clears bits of the status.
    pub(super) fn optional_msr_values(&self) -> Vec<(u32, u64)> {
        let array = |msr: u32, first: u32, values: &[u64]| values.get(msr.checked_sub(first)? as usize).copied();
        let value = |msr: u32| match msr {
            index::SMI_COUNT => self.smi_count,
            index::FEATURE_CONTROL => self.feature_control,
            index::UMWAIT_CONTROL => self.umwait.into(),
            index::TSX_CTRL => self.tsx_ctrl.into(),
            index::MCG_EXT_CTL => self.mcg_ext_ctl,
            index::VIRT_SSBD => self.virt_ssbd,
            index::PERF_GLOBAL_STATUS => self.perf_global_status,
            index::FIXED_CTR_CTRL => self.fixed_ctr_ctrl,
            index::PERF_GLOBAL_CTRL => self.perf_global_ctrl,
            _ => array(msr, index::FIXED_CTR0, &self.fixed_counters)
                .or_else(|| array(msr, index::PERFEVTSEL0, &self.gp_event_selects))
                .or_else(|| array(msr, index::PMC0, &self.gp_counters))
                .unwrap_or(0),
        };
        let all = Self::optional_msr_indices().into_iter().map(|msr| (msr, value(msr)));
        all.filter(|(_, value)| *value != 0).collect()
    }

    /// Sets the bits from `physical_bits` to 51 in the masks of variable MTRRs, as QEMU sends them (`fill_mtrr_mask`,
    /// target/i386/kvm/kvm.c): a destination with more physical bits then has the full mask.
    pub(super) fn widen_mtrr_masks(&mut self, physical_bits: u32) {
        let above = above(physical_bits);
        self.mtrr_var.iter_mut().for_each(|pair| pair.mask |= above & ((1 << MTRR_MASK_BITS) - 1));
    }

    /// Values for [`msr_indices`](Self::msr_indices), in that order, for a guest with `physical_bits` of address. The TSC,
    /// which `clock` sets, and IA32_MCG_CAP, which KVM_X86_SETUP_MCE sets, are left out.
    pub(super) fn msr_values(&self, physical_bits: u32) -> Vec<(u32, u64)> {
        let value = |msr: u32| match msr {
            index::TSC_ADJUST => self.tsc_adjust,
            index::SYSENTER_CS => u64::from(self.sysenter_cs),
            index::SYSENTER_ESP => self.sysenter_esp,
            index::SYSENTER_EIP => self.sysenter_eip,
            index::MCG_STATUS => self.mcg_status,
            index::MCG_CTL => self.mcg_ctl,
            index::PAT => self.pat,
            index::MTRR_DEF_TYPE => self.mtrr_deftype,
            index::STAR => self.star,
            index::LSTAR => self.lstar,
            index::CSTAR => self.cstar,
            index::FMASK => self.fmask,
            index::KERNEL_GS_BASE => self.kernel_gs_base,
            index::TSC_AUX => self.tsc_aux,
            index::KVM_WALL_CLOCK => self.wall_clock_msr,
            index::KVM_SYSTEM_TIME => self.system_time_msr,
            index::KVM_ASYNC_PF_EN => self.async_pf_en_msr,
            index::KVM_ASYNC_PF_INT => self.async_pf_int_msr,
            index::KVM_STEAL_TIME => self.steal_time_msr,
            index::KVM_PV_EOI_EN => self.pv_eoi_en_msr,
            index::KVM_POLL_CONTROL => self.poll_control_msr,
            index::MISC_ENABLE => self.misc_enable,
            index::XSS => self.xss,
            index::SPEC_CTRL => self.spec_ctrl,
            index::TSC_DEADLINE => self.tsc_deadline,
            _ => self.table_msr(msr, physical_bits),
        };
        let written = |msr: &u32| !matches!(*msr, index::TSC | index::MCG_CAP);
        Self::msr_indices().into_iter().filter(written).map(|msr| (msr, value(msr))).collect()
    }

    fn table_msr(&self, msr: u32, physical_bits: u32) -> u64 {
        if let Some(n) = index::MTRR_FIXED.iter().position(|&fixed| fixed == msr) {
            return self.mtrr_fixed[n];
        }
        if let Some(bank) = msr.checked_sub(index::MC0_CTL).and_then(|n| self.mce_banks.get(n as usize)) {
            return *bank;
        }
        let n = (msr - index::MTRR_PHYS_BASE_0) as usize;
        let pair = self.mtrr_var[n / 2];
        // KVM refuses a bit beyond the guest's addresses (`kvm_mtrr_valid`, arch/x86/kvm/mtrr.c).
        if n.is_multiple_of(2) { pair.base } else { pair.mask & !above(physical_bits) }
    }

    pub(super) fn take_regs(&mut self, regs: &kvm_regs) {
        self.regs = [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9, regs.r10,
            regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        self.eip = regs.rip;
        self.eflags = regs.rflags;
    }

    pub(super) fn kvm_regs(&self) -> kvm_regs {
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = self.regs;
        #[rustfmt::skip]
        let regs = kvm_regs {
            rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15,
            rip: self.eip, rflags: self.eflags,
        };
        regs
    }

    pub(super) fn take_sregs(&mut self, sregs: &kvm_sregs) {
        self.segs = [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs].map(Segment::from);
        self.ldt = sregs.ldt.into();
        self.tr = sregs.tr.into();
        self.gdt = Segment { base: sregs.gdt.base, limit: sregs.gdt.limit.into(), ..Default::default() };
        self.idt = Segment { base: sregs.idt.base, limit: sregs.idt.limit.into(), ..Default::default() };
        self.cr0 = sregs.cr0;
        self.cr2 = sregs.cr2;
        self.cr3 = sregs.cr3;
        self.cr4 = sregs.cr4;
        self.efer = sregs.efer;
        self.hflags = self.derive_hflags();
    }

    /// CR8 and the APIC base are in the LAPIC's section; an interrupt being delivered is set with the events.
    pub(super) fn kvm_sregs(&self, apic_base: u64, cr8: u64) -> kvm_sregs {
        let [es, cs, ss, ds, fs, gs] = self.segs.map(kvm_segment::from);
        kvm_sregs {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr: self.tr.into(),
            ldt: self.ldt.into(),
            gdt: table(&self.gdt),
            idt: table(&self.idt),
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8,
            efer: self.efer,
            apic_base,
            interrupt_bitmap: [0; 4],
        }
    }

    /// Mode bits that QEMU caches (`x86_update_hflags`): privilege, and bits of CR0 and RFLAGS at QEMU's places.
    fn derive_hflags(&self) -> u32 {
        let [_, cs, ss, ..] = &self.segs;
        let bit = |set: bool, at: u32| u32::from(set) << at;
        let long = self.efer & (1 << 10) != 0;
        let cs64 = long && cs.flags & (1 << 21) != 0;
        let mut hflags = (ss.flags >> 13) & 3;
        hflags |= bit(self.cr0 & 1 != 0, 7); // PE
        hflags |= ((self.cr0 as u32) << 8) & 0xe00; // MP, EM, TS
        hflags |= (self.eflags as u32) & 0x2_3100; // VM, IOPL, TF
        hflags |= bit(self.cr4 & (1 << 9) != 0, 22); // OSFXSR
        hflags |= bit(long, 14);
        if cs64 {
            hflags |= 1 << 4 | 1 << 5 | 1 << 15; // CS32, SS32, CS64
        } else {
            hflags |= bit(cs.flags & (1 << 22) != 0, 4) | bit(ss.flags & (1 << 22) != 0, 5);
            hflags |= bit(self.segs[3].base | self.segs[0].base | ss.base != 0, 6); // ADDSEG
        }
        hflags
    }

    pub(super) fn take_debug_regs(&mut self, regs: &kvm_debugregs) {
        let [db0, db1, db2, db3] = regs.db;
        self.dr = [db0, db1, db2, db3, regs.dr6, regs.dr7, regs.dr6, regs.dr7];
    }

    pub(super) fn kvm_debug_regs(&self) -> kvm_debugregs {
        let [db0, db1, db2, db3, _, _, dr6, dr7] = self.dr;
        kvm_debugregs { db: [db0, db1, db2, db3], dr6, dr7, ..Default::default() }
    }

    pub(super) fn take_events(&mut self, events: &kvm_vcpu_events) {
        let exception = events.exception.injected != 0 || events.exception.pending != 0;
        self.exception_nr = if exception { events.exception.nr.into() } else { -1 };
        self.has_error_code = events.exception.has_error_code;
        self.interrupt_injected = if events.interrupt.injected != 0 { events.interrupt.nr.into() } else { -1 };
        self.soft_interrupt = events.interrupt.soft;
        self.nmi_injected = events.nmi.injected;
        self.nmi_pending = events.nmi.pending;
        self.hflags2 = HFLAGS2_RESET | if events.nmi.masked != 0 { HFLAGS2_NMI } else { 0 };
        self.sipi_vector = events.sipi_vector;
    }

    /// Moves the payload of a pending exception to where its delivery would put it: QEMU's sections have no room for it, unless
    /// the guest runs a nested one (`cpu_pre_save`, target/i386/machine.c). With section `minivmm/vcpu` KVM delivers it to the
    /// same place again (`kvm_deliver_exception_payload`, arch/x86/kvm/x86.c).
    pub(super) fn deliver_payload(&mut self, events: &kvm_vcpu_events) {
        if events.exception.pending == 0 || events.exception_has_payload == 0 {
            return;
        }
        let payload = events.exception_payload;
        match events.exception.nr {
            DEBUG => {
                let dr6 = (self.dr[6] & !DR6_TRAPS | DR6_ACTIVE_LOW | payload) ^ payload & DR6_ACTIVE_LOW;
                (self.dr[4], self.dr[6]) = (dr6 & !(1 << 12), dr6 & !(1 << 12));
            }
            PAGE_FAULT => self.cr2 = payload,
            _ => {}
        }
    }

    /// Events that section `cpu` has; `minivmm/vcpu` completes them.
    pub(super) fn kvm_events(&self) -> kvm_vcpu_events {
        let mut events = kvm_vcpu_events { sipi_vector: self.sipi_vector, ..Default::default() };
        if let Ok(nr) = u8::try_from(self.exception_nr) {
            events.exception.injected = 1;
            events.exception.nr = nr;
            events.exception.has_error_code = self.has_error_code;
        }
        if let Ok(nr) = u8::try_from(self.interrupt_injected) {
            events.interrupt.injected = 1;
            events.interrupt.nr = nr;
            events.interrupt.soft = self.soft_interrupt;
        }
        events.nmi.injected = self.nmi_injected;
        events.nmi.pending = self.nmi_pending;
        events.nmi.masked = u8::from(self.hflags2 & HFLAGS2_NMI != 0);
        events
    }
}

/// Mask of the bits beyond physical addresses.
fn above(physical_bits: u32) -> u64 {
    u64::MAX.checked_shl(physical_bits).unwrap_or(0)
}

fn table(segment: &Segment) -> kvm_dtable {
    kvm_dtable { base: segment.base, limit: segment.limit as u16, padding: [0; 3] }
}

impl From<kvm_segment> for Segment {
    fn from(segment: kvm_segment) -> Self {
        let bit = |value: u8, at: u32| u32::from(value & 1) << at;
        let flags = u32::from(segment.type_ & 15) << 8
            | bit(segment.s, 12)
            | u32::from(segment.dpl & 3) << 13
            | bit(segment.present, 15)
            | bit(segment.avl, 20)
            | bit(segment.l, 21)
            | bit(segment.db, 22)
            | bit(segment.g, 23);
        Self {
            selector: segment.selector.into(),
            base: segment.base,
            limit: segment.limit,
            flags: if segment.unusable != 0 { 0 } else { flags },
        }
    }
}

impl From<Segment> for kvm_segment {
    fn from(segment: Segment) -> Self {
        let bit = |at: u32| (segment.flags >> at & 1) as u8;
        Self {
            base: segment.base,
            limit: segment.limit,
            selector: segment.selector as u16,
            type_: (segment.flags >> 8 & 15) as u8,
            present: bit(15),
            dpl: (segment.flags >> 13 & 3) as u8,
            db: bit(22),
            s: bit(12),
            l: bit(21),
            g: bit(23),
            avl: bit(20),
            unusable: bit(15) ^ 1,
            padding: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(cpu: &Cpu, physical_bits: u32) -> Vec<u64> {
        let values = cpu.msr_values(physical_bits);
        (0..8).map(|n| values.iter().find(|(index, _)| *index == 0x201 + 2 * n).unwrap().1).collect()
    }

    /// 2 GiB write-back for a guest with 40 bits of address, and an unused register, as QEMU 10.0 sends them.
    #[test]
    fn mtrr_masks_go_as_qemus_and_come_as_the_guest_can_have_them() {
        let mut cpu = Cpu::default();
        cpu.mtrr_var[0].mask = 0xff_8000_0800;
        cpu.widen_mtrr_masks(40);
        assert_eq!(cpu.mtrr_var.map(|pair| pair.mask)[..2], [0xf_ffff_8000_0800, 0xf_ff00_0000_0000]);
        assert_eq!(masks(&cpu, 40)[..2], [0xff_8000_0800, 0]);
        assert_eq!(masks(&cpu, 46)[..2], [0x3fff_8000_0800, 0x3f00_0000_0000]);
        cpu.mtrr_var[7].mask = u64::MAX;
        for (bits, expected) in [(0, 0), (36, 0xf_ffff_ffff), (52, 0xf_ffff_ffff_ffff), (64, u64::MAX), (255, u64::MAX)]
        {
            assert_eq!(masks(&cpu, bits)[7], expected, "{bits}");
        }
    }

    fn exception(nr: u8, payload: Option<u64>) -> kvm_vcpu_events {
        let mut events = kvm_vcpu_events::default();
        (events.exception.pending, events.exception.nr) = (1, nr);
        (events.exception_has_payload, events.exception_payload) = (payload.is_some().into(), payload.unwrap_or(0));
        events
    }

    /// Intel SDM volume 3, 4.7 and 17.2.3: CR2 is the address; in DR6 a single step is bit 14, and bit 16 is 0 only inside of RTM.
    #[test]
    fn a_payload_is_where_its_exception_would_put_it() {
        let mut cpu = Cpu { dr: [0, 0, 0, 0, 0xffff_0ff2, 0, 0xffff_0ff2, 0], ..Cpu::default() };
        cpu.deliver_payload(&exception(14, None));
        assert_eq!(cpu.cr2, 0);
        cpu.deliver_payload(&exception(14, Some(0x7fff_1000)));
        assert_eq!((cpu.cr2, cpu.dr[6]), (0x7fff_1000, 0xffff_0ff2));
        cpu.deliver_payload(&exception(1, Some(1 << 14)));
        assert_eq!((cpu.dr[6], cpu.dr[4]), (0xffff_4ff0, 0xffff_4ff0));
        cpu.deliver_payload(&exception(1, Some(1 << 16 | 1)));
        assert_eq!(cpu.dr[6], 0xfffe_4ff1);
    }

    #[test]
    fn registers_of_qemus_subsections_are_written_if_they_hold_something() {
        assert_eq!(Cpu::default().optional_msr_values(), []);
        let all = Cpu::optional_msr_indices();
        let values: BTreeMap<u32, u64> = all.iter().map(|&index| (index, u64::from(index) + 1)).collect();
        let mut cpu = Cpu::default();
        cpu.take_optional_msrs(&values);
        assert_eq!(
            cpu.optional_msr_values(),
            all.iter().map(|&index| (index, u64::from(index) + 1)).collect::<Vec<_>>()
        );
        // Numbers of Intel SDM volume 4: IA32_PMC2, IA32_PERFEVTSEL1, IA32_FIXED_CTR2; control comes last.
        assert_eq!((cpu.gp_counters[2], cpu.gp_event_selects[1], cpu.fixed_counters[2]), (0xc4, 0x188, 0x30c));
        assert_eq!(all.last(), Some(&0x38f));
        assert!(all.iter().all(|index| !Cpu::msr_indices().contains(index)));
    }

    #[test]
    fn neither_the_tsc_nor_the_number_of_machine_check_banks_is_written_as_a_register() {
        let written: Vec<u32> = Cpu::default().msr_values(46).into_iter().map(|(index, _)| index).collect();
        assert!(!written.contains(&0x10) && !written.contains(&0x179));
        assert_eq!(written.len() + 2, Cpu::msr_indices().len());
    }
}
