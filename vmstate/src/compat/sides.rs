//! A writer's and a reader's layout side by side, and what is found while both are walked.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use super::assumption::Assumed;
use super::budget::{Budget, TooLarge};
use super::layout::Layout;
use super::subjects::Subjects;
use super::verdict::Warning;

/// Why there is no verdict.
pub(super) enum Stop {
    TooLarge,
    /// Behind this.
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
    /// Whether a look for subsections of so called structs may go past a step of the writer.
    pub(super) ahead: RefCell<HashMap<(usize, String), bool>>,
}

/// What a walk comes by.
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
