//! Predicates of a struct that is in different fields of the two releases: which of them are the same.

use std::collections::BTreeMap;

use super::layout::{Layout, Step};
use super::subjects::Id;

/// A named predicate of one struct type. Each field with such a struct has an outcome of its own.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Predicate {
    /// The name of the struct.
    pub(super) of: String,
    /// The path of the subsection that contains the field; empty if there is none.
    pub(super) within: String,
    /// The number of enclosing loops.
    pub(super) depth: usize,
    pub(super) name: String,
}

/// Makes `read` use the outcomes of `written` where only the names of fields differ. Outcomes with the same path on both sides
/// are the same already. The others of a predicate are paired in wire order if both sides have equally many, because values of
/// one type in the same order are the same; otherwise the pairing is unknown, and all stay separate.
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
