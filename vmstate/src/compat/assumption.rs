//! The assumptions of a verdict, collected by name while layouts are built and walked.

use std::collections::BTreeSet;

use super::verdict::Assumption;

/// Names for each kind of assumption. The elements of an array share a name.
#[derive(Debug, Default)]
pub(super) struct Assumed {
    /// Hand-written codecs.
    pub(super) codecs: BTreeSet<String>,
    /// Fields of which only the size is known.
    pub(super) sizes: BTreeSet<String>,
    /// Fields whose predicates have no name.
    pub(super) unnamed: BTreeSet<String>,
    /// Predicates that both sides evaluate.
    pub(super) predicates: BTreeSet<String>,
    /// The device's own functions that a load calls.
    pub(super) hooks: BTreeSet<String>,
    /// Values that must be configured alike on both machines.
    pub(super) configuration: BTreeSet<String>,
    /// Maps whose keys must have the same order on both sides.
    pub(super) orders: BTreeSet<String>,
    /// Fields whose largest number of elements is unknown.
    pub(super) counts: BTreeSet<String>,
    /// Structs whose descriptions do not list their hooks.
    pub(super) unsaid: BTreeSet<String>,
}

impl Assumed {
    pub(super) fn append(&mut self, other: &Self) {
        let Self { codecs, sizes, unnamed, predicates, hooks, configuration, orders, counts, unsaid } = self;
        codecs.extend(other.codecs.iter().cloned());
        sizes.extend(other.sizes.iter().cloned());
        unnamed.extend(other.unnamed.iter().cloned());
        predicates.extend(other.predicates.iter().cloned());
        hooks.extend(other.hooks.iter().cloned());
        configuration.extend(other.configuration.iter().cloned());
        orders.extend(other.orders.iter().cloned());
        counts.extend(other.counts.iter().cloned());
        unsaid.extend(other.unsaid.iter().cloned());
    }

    pub(super) fn into_assumptions(self) -> Vec<Assumption> {
        let mut assumptions: Vec<_> = self.codecs.into_iter().map(Assumption::Codec).collect();
        let lists: [(_, fn(_) -> _); 8] = [
            (self.hooks, Assumption::Hooks),
            (self.predicates, Assumption::Outcomes),
            (self.unnamed, Assumption::Predicates),
            (self.configuration, Assumption::Configuration),
            (self.orders, Assumption::Orders),
            (self.counts, Assumption::Counts),
            (self.sizes, Assumption::Sizes),
            (self.unsaid, Assumption::Unsaid),
        ];
        for (names, assumption) in lists.into_iter().filter(|(names, _)| !names.is_empty()) {
            assumptions.push(assumption(names.into_iter().collect()));
        }
        assumptions
    }
}

/// A path without element indices: the name that all elements share.
pub(super) fn shared_name(path: &str) -> String {
    let mut name = String::with_capacity(path.len());
    for (index, part) in path.split('[').enumerate() {
        match part.split_once(']') {
            Some((number, rest)) if index > 0 && number.bytes().all(|byte| byte.is_ascii_digit()) => {
                name.push_str("[]");
                name.push_str(rest);
            }
            _ if index > 0 => {
                name.push('[');
                name.push_str(part);
            }
            _ => name.push_str(part),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::shared_name;

    #[test]
    fn elements_share_a_name() {
        for (path, name) in [("a", "a"), ("a[1].b[23]", "a[].b[]"), ("a[].b", "a[].b"), ("a[x]", "a[x]"), ("[", "[")] {
            assert_eq!(shared_name(path), name);
        }
    }
}
