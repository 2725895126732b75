//! `--cpu host`: all that the host offers, but for what would not be true after a migration.

use crate::cpu::{Feature, Register};
use crate::kvm::cpuid::leaves::Leaves;
use crate::kvm::cpuid::named;
use crate::kvm::cpuid::offer::Offer;

/// The TSC runs at one rate for ever: not true across hosts, so only a user who asks for it gets it.
const INVARIANT_TSC: ((u32, u32, Register), u32) = ((0x8000_0007, 0, Register::Edx), 8);

/// Leaves of the host's processor with `changes`; topology is still to be set.
pub(super) fn leaves(offer: &Offer, changes: &[(Feature, bool)]) -> Leaves {
    let mut leaves = offer.leaves().clone();
    // The host's topology.
    leaves.retain(|function, _| !matches!(function, 0xb | 0x1f | 0x8000_001e));
    let (place, bit) = INVARIANT_TSC;
    leaves.switch(place, bit, false);
    leaves.set(0x5, 0, [0, 0, named::MWAIT_EXTENSIONS, 0]);
    named::change(&mut leaves, changes);
    leaves
}
