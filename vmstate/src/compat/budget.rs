//! How much a comparison may cost: descriptions may come from anywhere, and few bytes can describe a lot.

use std::cell::Cell;

/// For all comparisons of one call.
const TOTAL: usize = 1 << 23;
/// For one direction and version.
const COMPARISON: usize = 1 << 20;
/// Bytes of text that cost as much as one step.
const TEXT: usize = 128;

/// The comparison costs more than it may.
#[derive(Debug)]
pub(super) struct TooLarge;

/// Steps that may still be made.
pub(super) struct Budget {
    left: Cell<usize>,
}

impl Budget {
    pub(super) const fn total() -> Self {
        Self { left: Cell::new(TOTAL) }
    }

    /// Lets one comparison spend its part.
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

    /// One step, and the text that it makes.
    pub(super) fn step(&self, text: usize) -> Result<(), TooLarge> {
        self.spend(1 + text / TEXT)
    }
}
