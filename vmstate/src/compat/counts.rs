//! Compares how two sides count the elements of a field, and whether the reader accepts as many elements as the writer may send.

use std::rc::Rc;

use super::assumption::shared_name;
use super::layout::{Bound, CountedBy, Step};
use super::position::{At, Next, Position, gate};
use super::sides::{Found, Sides};
use super::subjects::Id;
use super::verdict::{Reason, Subject};

/// One side's position in front of its elements.
pub(super) struct BeforeElements<'a> {
    pub(super) bound: &'a Option<Bound>,
    pub(super) path: &'a Rc<str>,
    /// The step after the last element.
    pub(super) end: usize,
}

impl Sides<'_> {
    /// The next states where the writer and the reader, in this order, are in front of elements with the same encoding.
    pub(super) fn counted(
        &self,
        state: &Position,
        elements: Id,
        (written, read): &(BeforeElements<'_>, BeforeElements<'_>),
        found: &mut Found,
    ) -> Next {
        let name = || shared_name(written.path);
        let (ours, theirs) = match (written.bound, read.bound) {
            (Some(ours), Some(theirs)) => (ours, theirs),
            (None, None) => return both_outcomes(state, elements, written, read),
            _ => {
                found.assumed.counts.insert(name());
                return both_outcomes(state, elements, written, read);
            }
        };
        if !state.agreed {
            return self.agree(state, elements, (ours, written), (theirs, read), found);
        }
        match state.decided.get(&elements) {
            None => Next::To(state.decide(elements, |_, _| {})),
            Some(true) if theirs.most.min(theirs.highest) < self.most_sent(state, ours, theirs) => {
                let most = theirs.most.min(theirs.highest);
                let subject = Subject::Count { field: written.path.to_string(), most };
                let subject = self.subjects.borrow_mut().id(subject);
                gate(state, subject, false, read.path, Reason::TooMany { most }, vec![state.with(enter)])
            }
            Some(_) => both_outcomes(state, elements, written, read),
        }
    }

    /// The most elements that the writer may send: limited by the values of its length, if the length is in the stream.
    fn most_sent(&self, state: &Position, ours: &Bound, theirs: &Bound) -> u64 {
        match (&ours.length, &theirs.length) {
            (CountedBy::Step(sent), CountedBy::Step(got)) if state.lengths.get(got) == Some(sent) => {
                ours.most.min(ours.highest)
            }
            _ => ours.most,
        }
    }

    /// Checks that both sides count by the same length.
    fn agree(
        &self,
        state: &Position,
        elements: Id,
        (ours, written): (&Bound, &BeforeElements<'_>),
        (theirs, read): (&Bound, &BeforeElements<'_>),
        found: &mut Found,
    ) -> Next {
        let then = state.with(|state| state.agreed = true);
        let only_if_alike = |path: &Rc<str>| {
            let subject = self.subjects.borrow_mut().id(Subject::Configuration(path.to_string()));
            gate(state, subject, false, read.path, Reason::LengthNotSent, vec![then.clone()])
        };
        match (&ours.length, &theirs.length) {
            (CountedBy::Itself, CountedBy::Itself) => Next::To(vec![then]),
            _ if ours.factor != theirs.factor => match state.decided.get(&elements) {
                None => Next::To(state.decide(elements, |_, _| {})),
                Some(true) => Next::Breaks(read.path.to_string(), Reason::OtherLength),
                Some(false) => both_outcomes(state, elements, written, read),
            },
            (CountedBy::Step(ours), CountedBy::Step(theirs)) => match state.lengths.get(theirs) {
                Some(from) if from == ours => Next::To(vec![then]),
                Some(_) => Next::Breaks(read.path.to_string(), Reason::OtherLength),
                None => only_if_alike(&self.place_of(*theirs)),
            },
            (CountedBy::Machine(_), CountedBy::Machine(path)) => {
                found.assumed.configuration.insert(shared_name(path));
                Next::To(vec![then])
            }
            (_, CountedBy::Absent(path) | CountedBy::Machine(path)) => only_if_alike(path),
            (_, CountedBy::Step(step)) => only_if_alike(&self.place_of(*step)),
            (_, CountedBy::Itself) => Next::To(vec![then]),
        }
    }

    /// True if the reader is known to count the writer's `elements` by another length: then one of the two can be empty where the
    /// other is not.
    pub(super) fn counts_otherwise(&self, state: &Position, elements: Id, theirs: &Option<Bound>) -> bool {
        let mut loops = self.written.steps.iter().filter_map(|step| match step {
            Step::Loop { elements: of, bound, .. } if *of == elements => Some(bound),
            _ => None,
        });
        let Some(ours) = loops.next() else { return false };
        match (ours, theirs) {
            (Some(ours), Some(theirs)) => match (&ours.length, &theirs.length) {
                (CountedBy::Step(ours), CountedBy::Step(theirs)) => state.lengths.get(theirs) != Some(ours),
                (ours, theirs) => std::mem::discriminant(ours) != std::mem::discriminant(theirs),
            },
            _ => false,
        }
    }

    /// The field of the reader at `step`.
    fn place_of(&self, step: usize) -> Rc<str> {
        self.read.steps.get(step).map_or("", |step| step.place()).into()
    }

    /// Records in `next` which value of the writer the reader's length holds; if the length was not read from one whole value,
    /// none is recorded.
    pub(super) fn note_length(&self, state: &Position, next: &mut Position, whole: bool) {
        let (from, to) = (state.written.step, state.read.step);
        if !self.read.lengths.contains_key(&to) {
            return;
        }
        match whole {
            true => next.lengths.insert(to, from),
            false => next.lengths.remove(&to),
        };
    }
}

/// The states with and without elements.
fn both_outcomes(state: &Position, elements: Id, written: &BeforeElements<'_>, read: &BeforeElements<'_>) -> Next {
    Next::To(state.decide(elements, |holds, state| match holds {
        true => enter(state),
        false => {
            (state.written, state.read) = (At::step(written.end), At::step(read.end));
            state.agreed = false;
        }
    }))
}

fn enter(state: &mut Position) {
    (state.written, state.read, state.agreed) = (state.written.next(), state.read.next(), false);
}
