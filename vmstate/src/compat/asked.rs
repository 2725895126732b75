//! Predicates of structs that another release has in another field: which of them are the same.

use std::collections::BTreeMap;

use super::layout::{Layout, Step};
use super::subjects::Id;

/// A named predicate of one struct type. Each field that holds such a struct has an outcome of its own.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Predicate {
    /// The name of the struct.
    pub(super) of: String,
    /// The path of the subsection that the field is in; empty outside of all.
    pub(super) within: String,
    /// How many loops are around.
    pub(super) depth: usize,
    pub(super) name: String,
}

/// Lets `read` ask what `written` asks, where only the names of fields differ: outcomes that have the same path on both
/// sides are the same already. The others of a predicate are the same in wire order if there are as many on both sides,
/// as bytes of one type in the same order are; if not, nobody can tell which is which, and all stay apart.
pub(super) fn pair(written: &Layout, read: &mut Layout) {
    let mut same = BTreeMap::new();
    for (predicate, theirs) in &read.asked {
        let Some(ours) = written.asked.get(predicate) else { continue };
        let ours: Vec<_> = ours.iter().filter(|id| !read.last_use.contains_key(id)).collect();
        let theirs: Vec<_> = theirs.iter().filter(|id| !written.last_use.contains_key(id)).collect();
        if ours.len() == theirs.len() {
            same.extend(theirs.into_iter().copied().zip(ours.into_iter().copied()));
        }
    }
    for step in &mut read.steps {
        if let Step::Unless { subject, .. } = step {
            *subject = same.get(subject).copied().unwrap_or(*subject);
        }
    }
    for (theirs, ours) in same {
        rename(&mut read.last_use, theirs, ours);
        rename(&mut read.depths, theirs, ours);
        read.paired.insert(ours, theirs);
    }
}

fn rename(of: &mut BTreeMap<Id, usize>, from: Id, to: Id) {
    if let Some(value) = of.remove(&from) {
        of.insert(to, value);
    }
}
