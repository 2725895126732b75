//! The state of a comparison: the positions of the writer and the reader, and the next states.

use std::collections::BTreeMap;

use super::subjects::Id;
use super::tags::Numbers;
use super::verdict::Reason;

pub(super) type Decisions = BTreeMap<Id, bool>;

/// The position of one side: a step, and an offset in its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) step: usize,
    pub(super) offset: u64,
}

impl At {
    pub(super) const fn step(step: usize) -> Self {
        Self { step, offset: 0 }
    }

    pub(super) const fn next(self) -> Self {
        Self::step(self.step + 1)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) written: At,
    pub(super) read: At,
    pub(super) decided: Decisions,
    /// Steps of the reader that are lengths, with the step of the writer whose value each has read.
    pub(super) lengths: BTreeMap<usize, usize>,
    /// Numbers of the writer's tags.
    pub(super) sent: Numbers,
    /// Numbers of the reader's tags.
    pub(super) got: Numbers,
    /// True if both sides are in front of elements that they count by the same length.
    pub(super) agreed: bool,
}

/// The result of one step.
pub(super) enum Next {
    Loads,
    Breaks(String, Reason),
    To(Vec<Position>),
    /// Breaks if the subject is `bad`, continues otherwise.
    Gate {
        subject: Id,
        bad: bool,
        field: String,
        reason: Reason,
        then: Vec<Position>,
    },
}

impl Position {
    pub(super) fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut state = self.clone();
        change(&mut state);
        state
    }

    /// Returns one state for each outcome that is still possible.
    pub(super) fn decide(&self, subject: Id, apply: impl Fn(bool, &mut Self)) -> Vec<Self> {
        let outcomes = [false, true].into_iter();
        let open = outcomes.filter(|holds| self.decided.get(&subject).is_none_or(|decided| decided == holds));
        open.map(|holds| {
            self.with(|state| {
                state.decided.insert(subject, holds);
                apply(holds, state);
            })
        })
        .collect()
    }
}

/// Continues with `then` if `subject` is not `bad`.
pub(super) fn gate(state: &Position, subject: Id, bad: bool, field: &str, reason: Reason, then: Vec<Position>) -> Next {
    match state.decided.get(&subject) {
        Some(decided) if *decided == bad => Next::Breaks(field.to_owned(), reason),
        Some(_) => Next::To(then),
        None => Next::Gate { subject, bad, field: field.to_owned(), reason, then },
    }
}
