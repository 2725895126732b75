//! `--cpu host`: all CPUID leaves of the host, without what would become false in a migration.

use crate::cpu::{Feature, Register};
use crate::kvm::cpuid::leaves::Leaves;
use crate::kvm::cpuid::named;
use crate::kvm::cpuid::offer::Offer;

/// Invariant TSC: the TSC's rate never changes. That is false across hosts, so only a user who asks for the bit gets it.
const INVARIANT_TSC: ((u32, u32, Register), u32) = ((0x8000_0007, 0, Register::Edx), 8);

/// Returns the host's leaves with `changes`; the topology is set later.
pub(super) fn leaves(offer: &Offer, changes: &[(Feature, bool)]) -> Leaves {
    let mut leaves = offer.leaves().clone();
    // These leaves hold the host's topology.
    leaves.retain(|function, _| !matches!(function, 0xb | 0x1f | 0x8000_001e));
    let (place, bit) = INVARIANT_TSC;
    leaves.switch(place, bit, false);
    leaves.set(0x5, 0, [0, 0, named::MWAIT_EXTENSIONS, 0]);
    named::change(&mut leaves, changes);
    leaves
}
