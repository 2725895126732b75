//! Converts between section `cpu` and the XSAVE area: x87, SSE and AVX state at offsets that all processors share, and the
//! components for which QEMU has subsections, at offsets from CPUID.

use std::ops::Range;

use kvm_bindings::kvm_xsave;

use super::StateError;
use super::cpu::Cpu;
use super::registers::{FpReg, Hi16ZmmReg, XmmReg, YmmhReg, ZmmhReg};
use super::shown::Shown;

/// Offsets in the standard XSAVE format (Intel SDM volume 1, 13.4).
mod xsave {
    pub(super) const MXCSR: usize = 24;
    pub(super) const ST0: usize = 32;
    pub(super) const XMM0: usize = 160;
    pub(super) const XSTATE_BV: usize = 512;
    pub(super) const YMMH0: usize = 576;
    /// Offset of the first byte after x87, SSE and AVX state.
    pub(super) const REST: usize = 832;
}

/// Bytes of `kvm_xsave` after the AVX state: AVX-512, PKRU and the other components that XCR0 enables.
pub(super) const XSAVE_REST: usize = 4096 - xsave::REST;

impl Cpu {
    /// Takes x87, SSE, AVX and AVX-512 state and protection keys from `area`; returns all bytes after the AVX state.
    pub(super) fn take_xsave(&mut self, area: &kvm_xsave, shown: &Shown) -> Vec<u8> {
        let bytes: Vec<u8> = area.region.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.fpuc = le(&bytes, 0) as u16;
        self.fpus = le(&bytes, 2) as u16;
        self.fptag = u16::from(bytes[4]);
        self.fpop = le(&bytes, 6) as u16;
        self.fpip = le(&bytes, 8);
        self.fpdp = le(&bytes, 16);
        self.mxcsr = le(&bytes, xsave::MXCSR) as u32;
        self.fpregs = std::array::from_fn(|n| {
            FpReg::new(le(&bytes, xsave::ST0 + 16 * n), le(&bytes, xsave::ST0 + 16 * n + 8) as u16)
        });
        self.xmm = std::array::from_fn(|n| XmmReg {
            low: le(&bytes, xsave::XMM0 + 16 * n),
            high: le(&bytes, xsave::XMM0 + 16 * n + 8),
        });
        self.xstate_bv = le(&bytes, xsave::XSTATE_BV);
        self.ymmh = std::array::from_fn(|n| YmmhReg {
            low: le(&bytes, xsave::YMMH0 + 16 * n),
            high: le(&bytes, xsave::YMMH0 + 16 * n + 8),
        });
        self.take_components(&bytes, shown);
        bytes[xsave::REST..].to_vec()
    }

    /// Builds the area from this section's state and `rest`, which may be shorter than [`XSAVE_REST`].
    ///
    /// # Errors
    /// The guest has used a component that this host's processor lacks.
    pub(super) fn kvm_xsave(&self, rest: &[u8], shown: &Shown) -> Result<kvm_xsave, StateError> {
        let mut bytes = [0_u8; 4096];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.fpuc.to_le_bytes());
        put(2, &self.fpus.to_le_bytes());
        put(4, &[self.fptag as u8]);
        put(6, &self.fpop.to_le_bytes());
        put(8, &self.fpip.to_le_bytes());
        put(16, &self.fpdp.to_le_bytes());
        put(xsave::MXCSR, &self.mxcsr.to_le_bytes());
        put(xsave::MXCSR + 4, &0xffff_u32.to_le_bytes());
        for (n, register) in self.fpregs.iter().enumerate() {
            put(xsave::ST0 + 16 * n, &register.mantissa.to_le_bytes());
            put(xsave::ST0 + 16 * n + 8, &register.exponent.to_le_bytes());
        }
        for (n, register) in self.xmm.iter().enumerate() {
            put(xsave::XMM0 + 16 * n, &register.low.to_le_bytes());
            put(xsave::XMM0 + 16 * n + 8, &register.high.to_le_bytes());
        }
        put(xsave::XSTATE_BV, &self.xstate_bv.to_le_bytes());
        for (n, register) in self.ymmh.iter().enumerate() {
            put(xsave::YMMH0 + 16 * n, &register.low.to_le_bytes());
            put(xsave::YMMH0 + 16 * n + 8, &register.high.to_le_bytes());
        }
        put(xsave::REST, &rest[..rest.len().min(XSAVE_REST)]);
        self.put_components(&mut bytes, shown)?;
        let mut area = kvm_xsave::default();
        for (word, chunk) in area.region.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*chunk);
        }
        Ok(area)
    }

    /// Takes the components for which CPUID gives an offset; the others are zero.
    fn take_components(&mut self, bytes: &[u8], shown: &Shown) {
        let words = |place: &Option<Range<usize>>, word: usize| match place {
            Some(place) => le(bytes, place.start + 8 * word),
            None => 0,
        };
        self.opmask = std::array::from_fn(|n| words(&shown.opmask, n));
        self.zmmh = std::array::from_fn(|n| {
            let [q4, q5, q6, q7] = std::array::from_fn(|q| words(&shown.zmm_hi256, 4 * n + q));
            ZmmhReg { q4, q5, q6, q7 }
        });
        self.hi16_zmm = std::array::from_fn(|n| {
            let [q0, q1, q2, q3, q4, q5, q6, q7] = std::array::from_fn(|q| words(&shown.hi16_zmm, 8 * n + q));
            Hi16ZmmReg { q0, q1, q2, q3, q4, q5, q6, q7 }
        });
        let pkru = shown.pkru.as_ref().and_then(|place| bytes[place.clone()].try_into().ok());
        self.pkru = pkru.map_or(0, u32::from_le_bytes);
    }

    /// Writes the components that are not all zero: zeros were not sent or change nothing, since a minivmm's rest has them
    /// already.
    fn put_components(&self, bytes: &mut [u8], shown: &Shown) -> Result<(), StateError> {
        let mut put = |place: &Option<Range<usize>>, what, values: Vec<u8>| match place {
            Some(place) => {
                bytes[place.clone()].copy_from_slice(&values);
                Ok(())
            }
            None => Err(StateError::Lacks { what }),
        };
        let all = |words: &mut dyn Iterator<Item = u64>| words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
        if self.has_avx512() {
            let zmmh = self.zmmh.iter().flat_map(|&ZmmhReg { q4, q5, q6, q7 }| [q4, q5, q6, q7]);
            let hi16 = self.hi16_zmm.iter();
            let hi16 = hi16.flat_map(|&Hi16ZmmReg { q0, q1, q2, q3, q4, q5, q6, q7 }| [q0, q1, q2, q3, q4, q5, q6, q7]);
            put(&shown.opmask, "AVX-512", all(&mut self.opmask.into_iter()))?;
            put(&shown.zmm_hi256, "AVX-512", all(&mut zmmh.into_iter()))?;
            put(&shown.hi16_zmm, "AVX-512", all(&mut hi16.into_iter()))?;
        }
        match self.has_pkru() {
            true => put(&shown.pkru, "protection keys", self.pkru.to_le_bytes().to_vec()),
            false => Ok(()),
        }
    }
}

/// Reads up to eight little-endian bytes at `at`.
fn le(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::super::shown::tests::of_intel;
    use super::*;

    /// Each byte of the components is distinct; the offsets are those of Intel's processors.
    fn area() -> [u8; 4096] {
        let mut bytes = [0; 4096];
        for (at, byte) in bytes.iter_mut().enumerate().filter(|(at, _)| (1088..2692).contains(at)) {
            *byte = (at * 7 + at / 256) as u8;
        }
        bytes
    }

    fn kvm(bytes: &[u8; 4096]) -> kvm_xsave {
        let mut area = kvm_xsave::default();
        for (word, chunk) in area.region.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*chunk);
        }
        area
    }

    fn bytes(area: &kvm_xsave) -> Vec<u8> {
        area.region.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn components_go_by_themselves_as_to_a_qemu() {
        let (before, shown) = (area(), of_intel());
        let mut cpu = Cpu::default();
        cpu.take_xsave(&kvm(&before), &shown);
        assert_eq!(cpu.opmask[1], u64::from_le_bytes(before[1096..1104].try_into().unwrap()));
        assert_eq!(cpu.zmmh[15].q7, u64::from_le_bytes(before[1656..1664].try_into().unwrap()));
        assert_eq!(cpu.hi16_zmm[1].q0, u64::from_le_bytes(before[1728..1736].try_into().unwrap()));
        assert_eq!(cpu.pkru, u32::from_le_bytes(before[2688..2692].try_into().unwrap()));
        // Without `rest`, as from a QEMU, only the section's components are set.
        let after = bytes(&cpu.kvm_xsave(&[], &shown).unwrap());
        assert_eq!(after[1088..2692], before[1088..2692]);
        let elsewhere = Shown { pkru: Some(2432..2436), ..Shown::default() };
        let mut keys_only = Cpu { pkru: 0x5555_5554, ..Cpu::default() };
        assert_eq!(bytes(&keys_only.kvm_xsave(&[], &elsewhere).unwrap())[2432..2436], [0x54, 0x55, 0x55, 0x55]);
        keys_only.opmask[7] = 1;
        let lacks = keys_only.kvm_xsave(&[], &elsewhere).err().unwrap().to_string();
        assert!(lacks.starts_with("the guest has used AVX-512, which its processor here lacks"), "{lacks}");
        assert!(cpu.kvm_xsave(&[], &Shown::default()).is_err());
    }

    /// Stream of an older minivmm: all components are in `rest`, and none in the section.
    #[test]
    fn components_of_the_rest_stay_where_the_section_has_none() {
        let before = area();
        let after = bytes(&Cpu::default().kvm_xsave(&before[xsave::REST..], &of_intel()).unwrap());
        assert_eq!(after[1088..2692], before[1088..2692]);
    }
}
