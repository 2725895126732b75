//! Limits on the cost of a comparison: descriptions may come from untrusted files, and a few bytes can describe large layouts.

use std::cell::Cell;

/// The limit for all comparisons of one call, in steps.
const TOTAL: usize = 1 << 23;
/// The limit for one direction and version, in steps.
const COMPARISON: usize = 1 << 20;
/// Number of bytes of text that cost as much as one step.
const TEXT: usize = 128;

/// The error of a comparison that exceeds its budget.
#[derive(Debug)]
pub(super) struct TooLarge;

/// The steps that are left.
pub(super) struct Budget {
    left: Cell<usize>,
}

impl Budget {
    pub(super) const fn total() -> Self {
        Self { left: Cell::new(TOTAL) }
    }

    /// Runs one comparison with its share of the budget.
    pub(super) fn comparison<T>(&self, work: impl FnOnce(&Self) -> T) -> T {
        let granted = COMPARISON.min(self.left.get());
        let part = Self { left: Cell::new(granted) };
        let done = work(&part);
        self.left.set(self.left.get() - granted + part.left.get());
        done
    }

    pub(super) fn spend(&self, steps: usize) -> Result<(), TooLarge> {
        let left = self.left.get().checked_sub(steps);
        self.left.set(left.unwrap_or(0));
        left.map(drop).ok_or(TooLarge)
    }

    /// Charges one step and the text that the step creates.
    pub(super) fn step(&self, text: usize) -> Result<(), TooLarge> {
        self.spend(1 + text / TEXT)
    }
}
