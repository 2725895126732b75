//! Registers of a vCPU with several fields: structs nested in section `cpu`, as in QEMU 10.0 (`target/i386/machine.c`).

use std::error::Error;

use vmstate::{Temporary, VmState};

/// One x87 register: 80 bits, in ST order as FXSAVE stores them.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "fpreg", version = 0)]
#[expect(clippy::manual_non_exhaustive, reason = "the private field is the temporary struct's place on the wire")]
pub struct FpReg {
    /// Significand.
    #[vmstate(skip)]
    pub mantissa: u64,
    /// Sign and exponent.
    #[vmstate(skip)]
    pub exponent: u16,
    #[vmstate(tmp = FpRegTmp)]
    tmp: (),
}

impl FpReg {
    /// Makes a register with this significand, sign and exponent.
    pub fn new(mantissa: u64, exponent: u16) -> Self {
        Self { mantissa, exponent, tmp: () }
    }
}

/// Temporary struct into which QEMU converts its register, a union, to send it.
#[derive(Clone, Copy, Debug, VmState)]
#[vmstate(name = "fpreg_tmp", version = 0)]
struct FpRegTmp {
    #[vmstate(name = "tmp_mant")]
    mantissa: u64,
    #[vmstate(name = "tmp_exp")]
    exponent: u16,
}

impl From<&FpReg> for FpRegTmp {
    fn from(&FpReg { mantissa, exponent, .. }: &FpReg) -> Self {
        Self { mantissa, exponent }
    }
}

impl Temporary<FpReg> for FpRegTmp {
    fn apply(self, register: &mut FpReg) -> Result<(), Box<dyn Error + Send + Sync>> {
        *register = FpReg::new(self.mantissa, self.exponent);
        Ok(())
    }
}

/// Segment register with its hidden part; `flags` is bits 32..63 of a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "segment", version = 1)]
pub struct Segment {
    /// Selector.
    pub selector: u32,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Attributes, at their places in the upper half of a descriptor.
    pub flags: u32,
}

/// Low or high 128 bits of a vector register.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "xmm_reg", version = 1)]
pub struct XmmReg {
    /// Bits 0..63.
    #[vmstate(name = "_q_ZMMReg[0]")]
    pub low: u64,
    /// Bits 64..127.
    #[vmstate(name = "_q_ZMMReg[1]")]
    pub high: u64,
}

/// Bits 128..255 of a vector register.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "ymmh_reg", version = 1)]
pub struct YmmhReg {
    /// Bits 128..191.
    #[vmstate(name = "_q_ZMMReg[2]")]
    pub low: u64,
    /// Bits 192..255.
    #[vmstate(name = "_q_ZMMReg[3]")]
    pub high: u64,
}

/// Upper half of a ZMM register.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "zmmh_reg", version = 1)]
pub struct ZmmhReg {
    /// Bits 256..319.
    #[vmstate(name = "_q_ZMMReg[4]")]
    pub q4: u64,
    /// Bits 320..383.
    #[vmstate(name = "_q_ZMMReg[5]")]
    pub q5: u64,
    /// Bits 384..447.
    #[vmstate(name = "_q_ZMMReg[6]")]
    pub q6: u64,
    /// Bits 448..511.
    #[vmstate(name = "_q_ZMMReg[7]")]
    pub q7: u64,
}

/// A ZMM register that only AVX-512 has.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "hi16_zmm_reg", version = 1)]
pub struct Hi16ZmmReg {
    /// Bits 0..63.
    #[vmstate(name = "_q_ZMMReg[0]")]
    pub q0: u64,
    /// Bits 64..127.
    #[vmstate(name = "_q_ZMMReg[1]")]
    pub q1: u64,
    /// Bits 128..191.
    #[vmstate(name = "_q_ZMMReg[2]")]
    pub q2: u64,
    /// Bits 192..255.
    #[vmstate(name = "_q_ZMMReg[3]")]
    pub q3: u64,
    /// Bits 256..319.
    #[vmstate(name = "_q_ZMMReg[4]")]
    pub q4: u64,
    /// Bits 320..383.
    #[vmstate(name = "_q_ZMMReg[5]")]
    pub q5: u64,
    /// Bits 384..447.
    #[vmstate(name = "_q_ZMMReg[6]")]
    pub q6: u64,
    /// Bits 448..511.
    #[vmstate(name = "_q_ZMMReg[7]")]
    pub q7: u64,
}

/// A variable-range MTRR pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "mtrr_var", version = 1)]
pub struct MtrrVar {
    /// MTRRphysBase.
    pub base: u64,
    /// MTRRphysMask.
    pub mask: u64,
}
