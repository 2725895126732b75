//! Tags: integers that select which fields follow, those of one variant of an enum.
//!
//! A walk continues once for each number that either side distinguishes, and once for all others. The reader gets the number that
//! the writer sent, so both always select the same variant.

use std::collections::{BTreeMap, BTreeSet};

use super::item::{Overlap, Rest};
use super::layout::{Layout, Step};
use super::position::Position;
use super::sides::{Sides, Stop};
use super::values::Values;
use super::verdict::Subject;

/// A tag in a layout.
#[derive(Debug, Default)]
pub(super) struct Tag {
    /// The numbers that this side distinguishes.
    numbers: BTreeSet<i128>,
    /// The last step that uses the number.
    last_use: usize,
}

/// The numbers of the tags that are still used, by their steps; `None` stands for any number that no variant has.
pub(super) type Numbers = BTreeMap<usize, Option<i128>>;

impl Layout {
    /// Records that the step at `at` compares the number at `tag` with this number.
    pub(super) fn note_variant(&mut self, at: usize, tag: usize, number: i128) {
        let tag = self.tags.entry(tag).or_default();
        tag.numbers.insert(number);
        tag.last_use = at;
    }

    /// Follows the comparisons with tags from `at` on; returns the first other step, and the number of comparisons.
    pub(super) fn behind_variants(&self, mut at: usize, tags: &Numbers) -> (usize, usize) {
        let mut asked = 0;
        while let Some(Step::Variant { tag, number, to }) = self.steps.get(at) {
            at = if tags.get(tag) == Some(&Some(*number)) { at + 1 } else { *to };
            asked += 1;
        }
        (at, asked)
    }

    /// Drops the numbers that are not used at `step`.
    pub(super) fn forget_tags(&self, step: usize, numbers: &mut Numbers) {
        let is_asked = |at: &usize| self.tags.get(at).is_some_and(|tag| (*at..=tag.last_use).contains(&step));
        numbers.retain(|at, _| is_asked(at));
    }
}

impl Sides<'_> {
    /// The states after items were written and read at `state`, once for each number that selects the following fields.
    pub(super) fn by_number(
        &self,
        state: &Position,
        written: &Rest<'_>,
        read: &Rest<'_>,
        shared: &Overlap,
        next: Position,
    ) -> Result<Vec<Position>, Stop> {
        let ours = self.written.tags.get(&state.written.step).filter(|_| state.written.offset == 0);
        let theirs = self.read.tags.get(&state.read.step).filter(|_| state.read.offset == 0);
        // If the writer's bytes are not one integer, the number is the reader's.
        let is_ours = ours.is_some() || written.is_one_integer();
        let Some((width, signed)) = (if is_ours { written } else { read }).integer() else { return Ok(vec![next]) };
        if ours.is_none() && theirs.is_none() {
            return Ok(vec![next]);
        }
        let field = if is_ours { written.path.to_owned() } else { format!("{} (from {})", read.path, written.path) };
        let sent = shared.sent(width, signed);
        let possible = match &shared.unless {
            Some((Subject::Value { taken, .. }, _)) => taken.taken_for(width, signed),
            _ => sent.clone(),
        };
        // For each number of the field, its value on each side.
        let mut numbers: BTreeMap<i128, [Option<i128>; 2]> = BTreeMap::new();
        let sides = [(ours, written.integer()), (theirs, read.integer())];
        for (side, (tag, integer)) in sides.into_iter().enumerate() {
            let (Some(tag), Some((_, its_sign))) = (tag, integer) else { continue };
            let all = Values::all(width, its_sign);
            for number in tag.numbers.iter().filter(|number| all.contains(**number)) {
                if let [(same, _)] = Values::single(*number).taken_for(width, signed).ranges()
                    && let Some(entry) = numbers.entry(*same).or_default().get_mut(side)
                {
                    *entry = Some(*number);
                }
            }
        }
        numbers.retain(|number, _| possible.contains(*number));
        let rest = possible.without(&Values::these(numbers.keys().copied()));
        let mut ways: Vec<_> = numbers.into_iter().map(|(number, sides)| (Values::single(number), sides)).collect();
        if !rest.is_empty() {
            ways.push((rest, [None, None]));
        }
        let is_decided = ways.len() > 1;
        let mut states = Vec::new();
        for (these, [our_number, their_number]) in ways {
            let mut next = next.clone();
            next.sent.extend(ours.map(|_| (state.written.step, our_number)));
            next.got.extend(theirs.map(|_| (state.read.step, their_number)));
            if is_decided {
                let others = sent.without(&these);
                self.budget.spend(1 + others.ranges().len())?;
                let subject = Subject::Value { field: field.clone(), taken: others, refused: these };
                next.decided.insert(self.subjects.borrow_mut().id(subject), false);
            }
            states.push(next);
        }
        Ok(states)
    }
}
