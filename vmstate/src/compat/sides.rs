//! The pair of a writer's and a reader's layout, and the findings of a walk through both.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use super::assumption::Assumed;
use super::budget::{Budget, TooLarge};
use super::layout::Layout;
use super::subjects::Subjects;
use super::verdict::Warning;

/// Why a walk ends without a verdict.
pub(super) enum Stop {
    TooLarge,
    /// A probe for subsections is ambiguous after this field.
    Ambiguous(String),
}

impl From<TooLarge> for Stop {
    fn from(TooLarge: TooLarge) -> Self {
        Self::TooLarge
    }
}

/// A writer's layout and a reader's.
pub(super) struct Sides<'a> {
    pub(super) written: Layout,
    pub(super) read: Layout,
    pub(super) subjects: RefCell<Subjects>,
    pub(super) budget: &'a Budget,
    /// Cache: whether a probe for subsections of a struct of this name may skip a step of the writer.
    pub(super) ahead: RefCell<HashMap<(usize, String), bool>>,
}

/// Diagnostics collected during the walk.
#[derive(Default)]
pub(super) struct Found {
    pub(super) warnings: BTreeSet<Warning>,
    pub(super) assumed: Assumed,
}

impl<'a> Sides<'a> {
    pub(super) fn new(written: Layout, read: Layout, subjects: Subjects, budget: &'a Budget) -> Self {
        let (subjects, ahead) = (RefCell::new(subjects), RefCell::new(HashMap::new()));
        Self { written, read, subjects, budget, ahead }
    }
}
