//! The transition function: the states that one step of a writer and a reader leads to.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::assumption::shared_name;
use super::counts::BeforeElements;
use super::item::{Item, Rest};
use super::layout::{Known, Layout, Step};
use super::position::{At, Next, Position, gate};
use super::sides::{Found, Sides, Stop};
use super::subjects::Id;
use super::verdict::{Reason, Subject, Warning};
use crate::codec::is_subsection_of;

/// Number of comparisons with a tag that cost as much as one step.
const VARIANTS: usize = 64;

/// The result of a reader's probe for a subsection.
enum Seen {
    /// A subsection's header, at this step of the writer.
    Header(usize),
    /// No subsection of the struct.
    Nothing,
    /// The subject decides.
    Ask(Id),
}

impl Sides<'_> {
    /// The next states, with warnings and assumptions in `found`.
    pub(super) fn next(&self, state: &Position, found: &mut Found) -> Result<Next, Stop> {
        let written = self.written.steps.get(state.written.step);
        let read = self.read.steps.get(state.read.step);
        // Steps of one side alone come first. Before them, the reader follows decisions that are already made, so that few are
        // open at a time.
        Ok(match (written, read) {
            (_, Some(Step::Unless { subject, to })) if state.decided.contains_key(subject) => {
                self.ask(state, *subject, found, |holds, state| {
                    state.read = if holds { state.read.next() } else { At::step(*to) };
                })
            }
            (Some(Step::Unless { subject, to }), _) => self.ask(state, *subject, found, |holds, state| {
                state.written = if holds { state.written.next() } else { At::step(*to) };
            }),
            (Some(Step::Variant { .. }), _) => {
                let (to, asked) = self.written.behind_variants(state.written.step, &state.sent);
                self.budget.spend(asked / VARIANTS)?;
                Next::To(vec![state.with(|state| state.written = At::step(to))])
            }
            (_, Some(Step::Variant { .. })) => {
                let (to, asked) = self.read.behind_variants(state.read.step, &state.got);
                self.budget.spend(asked / VARIANTS)?;
                Next::To(vec![state.with(|state| state.read = At::step(to))])
            }
            (Some(Step::Goto(to)), _) => Next::To(vec![state.with(|state| state.written = At::step(*to))]),
            (_, Some(Step::Unless { subject, to })) => self.ask(state, *subject, found, |holds, state| {
                state.read = if holds { state.read.next() } else { At::step(*to) };
            }),
            (_, Some(Step::Goto(to))) => Next::To(vec![state.with(|state| state.read = At::step(*to))]),
            (_, Some(Step::Refuse { path, reason })) => Next::Breaks(path.to_string(), reason.clone()),
            (_, Some(Step::Probe { parent, known, end })) => self.probe(state, (parent, known, *end), found)?,
            _ => self.both(state, written, read, found)?,
        })
    }

    /// The states for both outcomes of a predicate or subsection.
    fn ask(&self, state: &Position, subject: Id, found: &mut Found, apply: impl Fn(bool, &mut Position)) -> Next {
        let is_shared = |layout: &Layout| layout.last_use.contains_key(&subject);
        if is_shared(&self.written) && is_shared(&self.read) {
            let subjects = self.subjects.borrow();
            match subjects.get(subject) {
                Some(Subject::Unnamed(field)) => drop(found.assumed.unnamed.insert(field.clone())),
                Some(Subject::Predicate(name)) => {
                    let read = self.read.paired.get(&subject).and_then(|read| subjects.get(*read));
                    found.assumed.predicates.insert(match read {
                        Some(Subject::Predicate(read)) => format!("{name} and {read}"),
                        _ => shared_name(name),
                    });
                }
                _ => {}
            }
        }
        Next::To(state.decide(subject, apply))
    }

    /// The states where the writer sends bytes that the reader reads.
    fn both(
        &self,
        state: &Position,
        written: Option<&Step>,
        read: Option<&Step>,
        found: &mut Found,
    ) -> Result<Next, Stop> {
        let both_next = || state.with(|state| (state.written, state.read) = (state.written.next(), state.read.next()));
        let breaks = |at: &str, reason| Ok(Next::Breaks(at.to_owned(), reason));
        match (written, read) {
            (None, None) => Ok(Next::Loads),
            (
                Some(Step::Loop { elements, counting, bound, path, end }),
                Some(Step::Loop { counting: read_counting, bound: read_bound, path: read_path, end: read_end, .. }),
            ) if counting == read_counting => {
                let sides = (
                    BeforeElements { bound, path, end: *end },
                    BeforeElements { bound: read_bound, path: read_path, end: *read_end },
                );
                Ok(self.counted(state, *elements, &sides, found))
            }
            (
                Some(Step::Loop { elements, counting, path, end, .. }),
                Some(Step::Loop {
                    elements: read_elements,
                    counting: read_counting,
                    bound: read_bound,
                    end: read_end,
                    ..
                }),
            ) if !counting.has_marks() && !read_counting.has_marks() => {
                if self.counts_otherwise(state, *read_elements, read_bound) {
                    return breaks(path, Reason::OtherLength);
                }
                // Either side can be empty, so that the other meets the bytes that follow.
                if state.decided.get(read_elements) == Some(&true) {
                    let then = vec![state.with(|state| state.written = At::step(*end))];
                    return Ok(gate(state, *elements, true, path, Reason::OtherCount, then));
                }
                Ok(Next::To(state.decide(*read_elements, |holds, state| {
                    if !holds {
                        state.read = At::step(*read_end);
                    }
                })))
            }
            (Some(Step::Loop { elements, counting, path, end, .. }), _) if !counting.has_marks() => {
                let then = vec![state.with(|state| state.written = At::step(*end))];
                Ok(gate(state, *elements, true, path, Reason::OtherCount, then))
            }
            (_, Some(Step::Loop { elements, counting, bound, path, end })) if !counting.has_marks() => {
                if self.counts_otherwise(state, *elements, bound) {
                    return breaks(path, Reason::OtherLength);
                }
                let then = vec![state.with(|state| state.read = At::step(*end))];
                Ok(gate(state, *elements, true, path, Reason::OtherCount, then))
            }
            (
                Some(Step::LoopEnd { head, depth, .. }),
                Some(Step::LoopEnd { head: read_head, depth: read_depth, .. }),
            ) => {
                let forget = |state: &mut Position| {
                    state.lengths.retain(|length, _| length < read_head);
                    state.sent.retain(|tag, _| tag < head);
                    state.got.retain(|tag, _| tag < read_head);
                    state.decided.retain(|subject, _| {
                        let is_outside =
                            |layout: &Layout, depth: &usize| layout.depths.get(subject).is_none_or(|of| of < depth);
                        is_outside(&self.written, depth) && is_outside(&self.read, read_depth)
                    });
                };
                let again = state.with(|state| {
                    forget(state);
                    (state.written, state.read) = (At::step(*head).next(), At::step(*read_head).next());
                });
                let done = state.with(|state| {
                    forget(state);
                    (state.written, state.read) = (state.written.next(), state.read.next());
                });
                Ok(Next::To(vec![again, done]))
            }
            (Some(Step::Pointer { null, path, end }), Some(Step::Pointer { end: read_end, .. })) => {
                found.assumed.configuration.insert(format!("nulls of {}", shared_name(path)));
                Ok(Next::To(state.decide(*null, |holds, state| {
                    (state.written, state.read) = match holds {
                        true => (At::step(*end), At::step(*read_end)),
                        false => (state.written.next(), state.read.next()),
                    };
                })))
            }
            (Some(Step::Pointer { null, path, .. }), Some(_)) => {
                let then = vec![state.with(|state| state.written = state.written.next())];
                Ok(gate(state, *null, true, path, Reason::NotNullable, then))
            }
            (Some(_), Some(Step::Pointer { null, path, .. })) => {
                let then = vec![state.with(|state| state.read = state.read.next())];
                Ok(gate(state, *null, true, path, Reason::NotNullable, then))
            }
            (Some(step @ Step::LoopEnd { .. }), _) | (_, Some(step @ Step::LoopEnd { .. })) => {
                breaks(step.place(), Reason::OtherCount)
            }
            (Some(step @ Step::Header { .. }), None) => breaks(step.place(), Reason::UnknownSubsection),
            // The reader is still at the fields, where it mistakes the subsection's marker for a value.
            (Some(Step::Header { .. }), Some(step)) => breaks(step.place(), Reason::NotSent),
            (Some(step), None) => breaks(step.place(), Reason::NotRead),
            (None, Some(step)) => breaks(step.place(), Reason::NotSent),
            (Some(step @ Step::Loop { .. }), _) | (_, Some(step @ Step::Loop { .. })) => {
                breaks(step.place(), Reason::OtherCount)
            }
            (Some(Step::Custom { codec, by_size, path }), Some(Step::Custom { codec: other, .. }))
                if codec == other =>
            {
                self.budget.step(codec.len() + path.len())?;
                match by_size {
                    true => found.assumed.sizes.insert(path.to_string()),
                    false => found.assumed.codecs.insert(codec.clone()),
                };
                let mut next = both_next();
                self.note_length(state, &mut next, true);
                Ok(Next::To(vec![next]))
            }
            (Some(Step::Item { item, path }), Some(Step::Item { item: read_item, path: read_path })) => {
                self.items(state, (item, path), (read_item, read_path), found)
            }
            // All other pairs of steps were handled above.
            (Some(step), _) => breaks(step.place(), Reason::OtherCodec),
        }
    }

    fn items(
        &self,
        state: &Position,
        (item, path): (&Item, &str),
        (read_item, read_path): (&Item, &str),
        found: &mut Found,
    ) -> Result<Next, Stop> {
        self.budget.step(path.len() + read_path.len())?;
        self.budget.spend(item.cost() + read_item.cost())?;
        let written = Rest { item, left: item.bytes - state.written.offset, path };
        let read = Rest { item: read_item, left: read_item.bytes - state.read.offset, path: read_path };
        let shared = match written.read_as(&read) {
            Ok(shared) => shared,
            Err(reason) => {
                let at = if matches!(reason, Reason::NotTaken { .. } | Reason::OtherOrder) { read_path } else { path };
                return Ok(Next::Breaks(at.to_owned(), reason));
            }
        };
        found.warnings.extend(shared.difference.map(|difference| Warning {
            written: written.to_string(),
            read: read.to_string(),
            difference,
        }));
        if shared.by_size {
            found.assumed.sizes.insert(path.to_owned());
        }
        if shared.alike {
            found.assumed.configuration.insert(shared_name(path));
        }
        let mut next = state.with(|state| {
            let advance = |at: At, left: u64| match left == shared.bytes {
                true => at.next(),
                false => At { step: at.step, offset: at.offset + shared.bytes },
            };
            (state.written, state.read) = (advance(state.written, written.left), advance(state.read, read.left));
        });
        let whole = (shared.bytes, shared.bytes) == (item.bytes, read_item.bytes);
        self.note_length(state, &mut next, whole);
        let next = self.by_number(state, &written, &read, &shared, next)?;
        Ok(match shared.unless {
            None => Next::To(next),
            Some((subject, reason)) => {
                let subject = self.subjects.borrow_mut().id(subject);
                gate(state, subject, false, read_path, reason, next)
            }
        })
    }

    /// The states where the reader probes for a subsection.
    fn probe(
        &self,
        state: &Position,
        (parent, known, end): (&str, &BTreeMap<Rc<str>, Known>, usize),
        found: &mut Found,
    ) -> Result<Next, Stop> {
        let at = match self.look_ahead(state, parent)? {
            Seen::Nothing => return Ok(Next::To(vec![state.with(|state| state.read = At::step(end))])),
            // Both outcomes lead to another probe.
            Seen::Ask(subject) => return Ok(self.ask(state, subject, found, |_, _| {})),
            Seen::Header(at) => at,
        };
        let Some(Step::Header { name, version }) = self.written.steps.get(at) else { return Err(Stop::TooLarge) };
        let Some(known) = known.get(name) else {
            return Ok(Next::Breaks(name.to_string(), Reason::UnknownSubsection));
        };
        let version = *version;
        Ok(match known.bodies.get(&version) {
            Some(body) => Next::To(vec![state.with(|state| {
                (state.written, state.read) = (At::step(at).next(), At::step(*body));
            })]),
            None if version > known.newest => {
                Next::Breaks(name.to_string(), Reason::TooNew { version, newest: known.newest })
            }
            None => Next::Breaks(name.to_string(), Reason::TooOld { version, oldest: known.oldest }),
        })
    }

    /// The result of a probe for subsections of `parent` at the writer's position.
    fn look_ahead(&self, state: &Position, parent: &str) -> Result<Seen, Stop> {
        let mut at = state.written.step;
        loop {
            self.budget.step(0)?;
            let Some(step) = self.written.steps.get(at) else { return Ok(Seen::Nothing) };
            match step {
                Step::Header { name, .. } if is_subsection_of(parent, name.as_bytes()) => return Ok(Seen::Header(at)),
                Step::Goto(to) => at = *to,
                Step::Variant { .. } => at = self.written.behind_variants(at, &state.sent).0,
                Step::Unless { .. } | Step::Loop { .. } | Step::Pointer { .. } | Step::LoopEnd { .. }
                    if !self.may_reach_subsection(at, parent)? =>
                {
                    return Ok(Seen::Nothing);
                }
                Step::LoopEnd { path, .. } => return Err(Stop::Ambiguous(path.to_string())),
                Step::Unless { subject, to } => match state.decided.get(subject) {
                    None => return Ok(Seen::Ask(*subject)),
                    Some(true) => at += 1,
                    Some(false) => at = *to,
                },
                Step::Loop { elements, path, end, .. } => match state.decided.get(elements) {
                    None => return Ok(Seen::Ask(*elements)),
                    Some(true) if self.may_reach_subsection(at + 1, parent)? => {
                        return Err(Stop::Ambiguous(path.to_string()));
                    }
                    Some(true) => return Ok(Seen::Nothing),
                    Some(false) => at = *end,
                },
                Step::Pointer { null, .. } => match state.decided.get(null) {
                    None => return Ok(Seen::Ask(*null)),
                    Some(true) => return Ok(Seen::Nothing),
                    Some(false) => at += 1,
                },
                _ => return Ok(Seen::Nothing),
            }
        }
    }

    /// True if `step` of the writer can reach, without bytes in between, a subsection that a probe for those of `parent` finds.
    fn may_reach_subsection(&self, step: usize, parent: &str) -> Result<bool, Stop> {
        let key = (step, parent.to_owned());
        if let Some(known) = self.ahead.borrow().get(&key) {
            return Ok(*known);
        }
        let mut seen = BTreeSet::new();
        let mut open = vec![step];
        let mut found = false;
        while let Some(at) = open.pop()
            && !found
        {
            self.budget.step(parent.len())?;
            if !seen.insert(at) {
                continue;
            }
            match self.written.steps.get(at) {
                Some(Step::Header { name, .. }) => found = is_subsection_of(parent, name.as_bytes()),
                Some(Step::Unless { to, .. } | Step::Variant { to, .. }) => open.extend([at + 1, *to]),
                Some(Step::Loop { counting, end, .. }) if !counting.has_marks() => open.extend([at + 1, *end]),
                Some(Step::LoopEnd { head, .. }) => match self.written.steps.get(*head) {
                    Some(Step::Loop { counting, .. }) if counting.has_marks() => {}
                    _ => open.extend([at + 1, head + 1]),
                },
                Some(Step::Pointer { .. }) => open.push(at + 1),
                Some(Step::Goto(to)) => open.push(*to),
                _ => {}
            }
        }
        self.ahead.borrow_mut().insert(key, found);
        Ok(found)
    }
}
