//! Leaf 0xd: the features decide which parts the XSAVE area has, and the host decides their offsets.

use crate::cpu::Register;
use crate::kvm::cpuid::leaves::Leaves;
use crate::kvm::cpuid::offer::Offer;

/// Leaf 1 ECX.
const XSAVE: u32 = 26;
/// Legacy area and header (Intel SDM volume 1, 13.4).
const AREA_MIN: u32 = 0x240;

/// Leaf 0xd, sub-leaves from 2 on, ECX: the part is aligned to 64 bytes in the compacted format.
const ALIGNED: u32 = 1;

/// Number of a part, and the feature that needs it (Intel SDM volume 1, 13.1; QEMU, target/i386/cpu.c, `x86_ext_save_areas`).
const PARTS: &[(u32, (u32, Register, u32))] = &[
    (2, (0x1, Register::Ecx, 28)),
    (3, (0x7, Register::Ebx, 14)),
    (4, (0x7, Register::Ebx, 14)),
    (5, (0x7, Register::Ebx, 16)),
    (6, (0x7, Register::Ebx, 16)),
    (7, (0x7, Register::Ebx, 16)),
    (9, (0x7, Register::Ecx, 3)),
    (17, (0x7, Register::Edx, 24)),
    (18, (0x7, Register::Edx, 24)),
];

/// Sets leaf 0xd for the features in `leaves`.
pub(super) fn set(leaves: &mut Leaves, offer: &Offer) {
    if leaves.register(0x1, 0, Register::Ecx) >> XSAVE & 1 == 0 {
        leaves.retain(|function, _| function != 0xd);
        return;
    }
    let offered = offer.register(0xd, 0, Register::Eax);
    let mut shown = offered & 0b11;
    let (mut size, mut compacted) = (AREA_MIN, AREA_MIN);
    for &(part, (function, register, bit)) in PARTS {
        if offered >> part & 1 == 1 && leaves.register(function, 0, register) >> bit & 1 == 1 {
            shown |= 1 << part;
            let [bytes, offset, flags, _] = offer.leaves().get(0xd, part);
            leaves.set(0xd, part, [bytes, offset, flags, 0]);
            size = size.max(offset + bytes);
            compacted = if flags >> ALIGNED & 1 == 1 { compacted.next_multiple_of(64) } else { compacted } + bytes;
        }
    }
    // EBX of both sub-leaves is the size for the components that the guest has enabled: KVM updates it if it offers XSAVE.
    leaves.set(0xd, 0, [shown, AREA_MIN, size, 0]);
    *leaves.register_mut(0xd, 1, Register::Ebx) = compacted;
    leaves.retain(|function, index| function != 0xd || !(2..32).contains(&index) || shown >> index & 1 == 1);
}
