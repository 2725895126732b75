//! A virtual x86-64 CPU: mostly single registers, some arrays, two optional parts.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use vmstate::VmState;

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "cpu", version = 12, minimum_version = 11)]
#[vmstate(subsection(name = "cpu/nmi", needed = Self::nmi_is_blocked))]
#[vmstate(subsection(name = "cpu/steal_time", needed = Self::has_steal_time))]
pub(super) struct Cpu {
    regs: [u64; 16],
    eip: u64,
    eflags: u64,
    fpu_control: u16,
    fpu_status: u16,
    fpu_tag: u16,
    fpu_regs: [FpuRegister; 8],
    segments: [Segment; 6],
    ldt: Segment,
    tr: Segment,
    gdt: Segment,
    idt: Segment,
    sysenter_cs: u32,
    sysenter_esp: u64,
    sysenter_eip: u64,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    dr: [u64; 8],
    a20_mask: i32,
    mxcsr: u32,
    xmm: [Vector; 16],
    efer: u64,
    star: u64,
    lstar: u64,
    cstar: u64,
    fmask: u64,
    kernel_gs_base: u64,
    smbase: u32,
    pat: u64,
    hflags2: u32,
    halted: bool,
    mp_state: u32,
    tsc: u64,
    #[vmstate(since = 12)]
    xcr0: u64,
    mcg_status: u64,
    mcg_ctl: u64,
    mce_banks: [u64; 32],
    tsc_aux: u64,
    tsc_adjust: u64,
    tsc_deadline: u64,
    misc_enable: u64,
    system_time: u64,
    wall_clock: u64,
    async_pf_enable: u64,
    pv_eoi_enable: u64,
    mtrr_default: u64,
    mtrr_fixed: [u64; 11],
    mtrr_variable: [MtrrRange; 8],
    interrupt_injected: i32,
    soft_interrupt: u8,
    exception_injected: u8,
    exception_pending: bool,
    exception_number: i32,
    has_error_code: bool,
    error_code: u32,
    sipi_vector: u32,
    #[vmstate(equal)]
    tsc_khz: u32,
    spec_ctrl: u64,
    pkru: u32,
    #[vmstate(subsection = "cpu/nmi")]
    nmi_injected: bool,
    #[vmstate(subsection = "cpu/nmi")]
    nmi_pending: bool,
    #[vmstate(subsection = "cpu/steal_time")]
    steal_time: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "segment")]
struct Segment {
    selector: u32,
    base: u64,
    limit: u32,
    flags: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "fpreg")]
struct FpuRegister {
    mantissa: u64,
    exponent: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "xmm_reg")]
struct Vector {
    low: u64,
    high: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "mtrr_var")]
struct MtrrRange {
    base: u64,
    mask: u64,
}

impl Cpu {
    pub(super) fn new(seed: u64) -> Self {
        let flat = |selector, flags| Segment { selector, base: 0, limit: u32::MAX, flags };
        let table = |base, limit| Segment { base, limit, ..Segment::default() };
        let code = flat(0x10, 0x00a0_9b00);
        let data = flat(0x18, 0x00c0_9300);
        Self {
            regs: std::array::from_fn(|n| if n % 3 == 0 { 0xffff_8880_0400_0000 + seed * n as u64 } else { n as u64 }),
            eip: 0xffff_ffff_8110_1234 + seed,
            eflags: 0x246,
            fpu_control: 0x37f,
            segments: [data, code, data, data, Segment::default(), flat(0, 0)],
            tr: table(0xffff_fe00_0000_3000, 0x4087),
            gdt: table(0xffff_fe00_0000_1000, 0x7f),
            idt: table(0xffff_fe00_0000_0000, 0xfff),
            sysenter_cs: 0x10,
            sysenter_esp: 0xffff_fe00_0000_3000,
            sysenter_eip: 0xffff_ffff_8200_1510,
            cr0: 0x8005_0033,
            cr2: 0x7ffd_1234_5000 + seed,
            cr3: 0x0420_a000,
            cr4: 0x0075_06f0,
            dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            a20_mask: -1,
            mxcsr: 0x1f80,
            xmm: std::array::from_fn(|n| match n {
                0..4 => Vector { low: 0x2f2f_2f2f_6c6f_6361 ^ seed, high: 0x6c2f_6269_6e00_0000 + n as u64 },
                _ => Vector::default(),
            }),
            efer: 0xd01,
            star: 0x0023_0010_0000_0000,
            lstar: 0xffff_ffff_8200_0080,
            cstar: 0xffff_ffff_8200_1510,
            fmask: 0x0025_7fd5,
            smbase: 0x3_0000,
            pat: 0x0407_0506_0007_0106,
            tsc: 0x34_5678_9abc + seed,
            xcr0: 7,
            mcg_ctl: u64::MAX,
            mce_banks: std::array::from_fn(|n| if n % 4 == 0 { u64::MAX } else { 0 }),
            tsc_deadline: 0x34_5678_ffff,
            misc_enable: 1,
            system_time: 0x0240_1001,
            wall_clock: 0x0240_2000,
            pv_eoi_enable: 0x1_3bc1_b041,
            mtrr_default: 0xc00,
            mtrr_fixed: [0x0606_0606_0606_0606; 11],
            interrupt_injected: -1,
            exception_number: -1,
            tsc_khz: 2_495_998,
            steal_time: 0x1_3bc1_d001,
            ..Self::default()
        }
    }

    fn nmi_is_blocked(&self) -> bool {
        self.nmi_injected || self.nmi_pending
    }

    fn has_steal_time(&self) -> bool {
        self.steal_time != 0
    }
}
