//! Values of a vCPU's CPUID that decide the format of its state: the length of addresses, and the offsets of XSAVE components.
//!
//! Offsets depend on the processor (Intel SDM volume 1, 13.4.3): AMD's have no gap for MPX, so AVX-512 has other offsets.
//! QEMU's sections carry the components themselves.

use std::ops::Range;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_xsave};
use kvm_ioctls::VcpuFd;

use super::{StateError, call};

/// Leaf whose EAX has the bits of a physical address in its low byte.
const ADDRESS_SIZES: u32 = 0x8000_0008;
/// Bits of a physical address without that leaf (Intel SDM volume 3, 13.11.3).
const PHYSICAL_BITS: u32 = 36;
/// Leaf that describes the XSAVE area: for a component EAX is its size and EBX its offset in the standard format.
const XSAVE: u32 = 0xd;

/// CPUID values of one vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// Bits of a physical address.
    pub(super) physical_bits: u32,
    /// Mask registers of AVX-512, 64 bytes.
    pub(super) opmask: Option<Range<usize>>,
    /// Upper halves of ZMM0…15, 512 bytes.
    pub(super) zmm_hi256: Option<Range<usize>>,
    /// ZMM16…31, 1024 bytes.
    pub(super) hi16_zmm: Option<Range<usize>>,
    /// Rights of protection keys, 4 bytes.
    pub(super) pkru: Option<Range<usize>>,
}

impl Shown {
    /// Queries KVM.
    ///
    /// # Errors
    /// KVM_GET_CPUID2 failed.
    pub(super) fn read(vcpu: &VcpuFd) -> Result<Self, StateError> {
        let cpuid = call("KVM_GET_CPUID2", vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES))?;
        Ok(Self::of(cpuid.as_slice()))
    }

    fn of(leaves: &[kvm_cpuid_entry2]) -> Self {
        let sizes = leaves.iter().find(|leaf| leaf.function == ADDRESS_SIZES);
        let component = |number: u32, size: usize| {
            let leaf = leaves.iter().find(|leaf| (leaf.function, leaf.index) == (XSAVE, number))?;
            let start = leaf.ebx as usize;
            let end = start.checked_add(size)?;
            (leaf.eax as usize >= size && end <= size_of::<kvm_xsave>()).then_some(start..end)
        };
        Self {
            physical_bits: sizes.map_or(PHYSICAL_BITS, |leaf| leaf.eax & 0xff),
            opmask: component(5, 64),
            zmm_hi256: component(6, 512),
            hi16_zmm: component(7, 1024),
            pkru: component(9, 4),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::kvm::state) fn leaf(function: u32, index: u32, eax: u32, ebx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ..Default::default() }
    }

    /// Leaf 0xd of a Skylake server, which has MPX at 960 and 1024.
    pub(in crate::kvm::state) fn of_intel() -> Shown {
        Shown::of(&[
            leaf(0x8000_0008, 0, 0x302e, 0),
            leaf(0xd, 0, 0x2ff, 2696),
            leaf(0xd, 5, 64, 1088),
            leaf(0xd, 6, 512, 1152),
            leaf(0xd, 7, 1024, 1664),
            leaf(0xd, 9, 8, 2688),
        ])
    }

    #[test]
    fn parts_lie_where_each_vendor_has_them() {
        let intel = of_intel();
        assert_eq!((intel.physical_bits, intel.opmask, intel.pkru), (46, Some(1088..1152), Some(2688..2692)));
        assert_eq!((intel.zmm_hi256, intel.hi16_zmm), (Some(1152..1664), Some(1664..2688)));
        // An EPYC Milan has protection keys and no AVX-512.
        let amd = Shown::of(&[leaf(0xd, 2, 256, 576), leaf(0xd, 9, 8, 2432), leaf(0xd, 0, 0x207, 2440)]);
        assert_eq!(amd, Shown { physical_bits: 36, pkru: Some(2432..2436), ..Shown::default() });
        let impossible = [leaf(0xd, 5, 63, 1088), leaf(0xd, 6, 512, 3585), leaf(0xd, 7, u32::MAX, u32::MAX)];
        assert_eq!(Shown::of(&impossible), Shown { physical_bits: 36, ..Shown::default() });
    }
}
