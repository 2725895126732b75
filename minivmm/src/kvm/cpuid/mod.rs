//! CPUID of the guest: the host's leaves or a model's, with the user's changes of features, and the machine's own topology.
//!
//! The machine is one package of `cpus` cores with one thread each, as QEMU's `-smp N`. CPUID depends only on the host's offer,
//! the choice and the number, so two hosts with the same offer give the same CPU; a model gives the same CPU on any two hosts
//! of a vendor that support it.

mod host;
mod leaves;
mod named;
mod offer;
#[cfg(test)]
mod tests;
mod topology;
mod xsave;

use kvm_bindings::CpuId;

use crate::cpu::{Choice, FLAGS, Place, Register};
use crate::error::{Error, Result};

use leaves::Leaves;
pub use offer::Offer;
pub use topology::with_apic_id;

/// Returns CPUID of the first of `cpus` vCPUs for `choice`.
///
/// # Errors
/// [`Error::Flag`] with the names of the features that this host lacks.
pub fn show(offer: &Offer, choice: &Choice, cpus: u8) -> Result<CpuId> {
    let mut leaves = match choice.model() {
        Some(model) => named::leaves(offer, model, choice.changes()),
        None => host::leaves(offer, choice.changes()),
    };
    let missing = missing(offer, &leaves);
    if !missing.is_empty() {
        return Err(Error::Flag { flag: "--cpu", what: cannot_give(choice, &missing) });
    }
    xsave::set(&mut leaves, offer);
    topology::set(&mut leaves, offer, cpus);
    leaves.into_cpuid().ok_or_else(|| Error::Device { what: "the host's CPUID has more leaves than KVM takes".into() })
}

/// Whether `cpuid` has this bit of a leaf set.
pub fn shows(cpuid: &CpuId, function: u32, register: Register, bit: u32) -> bool {
    Leaves::new(cpuid).register(function, 0, register) >> bit & 1 == 1
}

/// Features of the leaves that the host does not offer: name, and name with place.
fn missing(offer: &Offer, leaves: &Leaves) -> Vec<(Option<&'static str>, String)> {
    let mut missing = Vec::new();
    for flags in FLAGS {
        let Place::Cpuid { function, index, register } = flags.place else { continue };
        let shown = leaves.register(function, index, register);
        let lacking = u64::from(shown & !offer.register(function, index, register)) & flags.named() & !flags.ignored;
        let bits = (0..u32::BITS).filter(|bit| lacking >> bit & 1 == 1);
        missing.extend(bits.map(|bit| (flags.name(bit), flags.describe(bit))));
    }
    missing
}

/// Formats the error for missing features. QEMU starts such a machine without them and warns, unless it is given `enforce`;
/// minivmm never does, since a model is to be the same on every host.
fn cannot_give(choice: &Choice, missing: &[(Option<&str>, String)]) -> String {
    let places: Vec<_> = missing.iter().map(|(_, place)| place.as_str()).collect();
    let mut off: Vec<_> = missing.iter().filter_map(|(name, _)| Some(format!("-{}", (*name)?))).collect();
    off.dedup();
    format!(
        "this host's CPU and KVM cannot give {} its {}; use a host that has them, another model, or leave them out (,{})",
        choice.name(),
        places.join(", "),
        off.join(",")
    )
}
