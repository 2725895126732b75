//! All that can happen when one layout's bytes are read by another: the product of a writer and a reader.
//!
//! Both are walked together, item by item; whatever is decided at run time goes both ways, but the same way for the
//! same subject. A walk ends in a load or in a break. The states are positions and decisions that still matter, so
//! their number stays small where the two sides are alike.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::layout::{Layout, Meaning, Step};
use super::verdict::{Break, Case, Condition, Difference, Reason, Subject, Warning};
use super::{Direction, Verdict, remedy};

/// More states than this are not looked at, over all walks.
const MAX_STATES: usize = 1 << 18;
/// Nor those whose decisions take more bytes, all states of one walk together.
const MAX_DECIDED: usize = 128 << 20;
/// More cases than this are not told apart.
const MAX_CASES: usize = 256;

type Decisions = BTreeMap<Subject, bool>;

/// Where one side is: a step, and bytes into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct At {
    step: usize,
    offset: u64,
}

impl At {
    const fn step(step: usize) -> Self {
        Self { step, offset: 0 }
    }

    const fn next(self) -> Self {
        Self::step(self.step + 1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    written: At,
    read: At,
    decided: Decisions,
}

/// A writer's layout and a reader's.
pub(super) struct Product<'a> {
    written: &'a Layout,
    read: &'a Layout,
    direction: Direction,
    /// States that may still be looked at.
    budget: Cell<usize>,
}

/// What a walk through all states found.
#[derive(Default)]
struct Walked {
    loads: bool,
    broken: Option<(Decisions, Break)>,
    warnings: BTreeSet<Warning>,
}

/// What one step leads to.
enum Next {
    Loads,
    Breaks(String, Reason),
    To(Vec<State>),
}

impl<'a> Product<'a> {
    pub(super) const fn new(written: &'a Layout, read: &'a Layout, direction: Direction) -> Self {
        Self { written, read, direction, budget: Cell::new(MAX_STATES) }
    }

    /// The verdict, and what loads with another meaning.
    pub(super) fn verdict(&self) -> (Verdict, Vec<Warning>) {
        let mut cases: Vec<(Decisions, Break)> = Vec::new();
        loop {
            let excluded: Vec<&Decisions> = cases.iter().map(|(when, _)| when).collect();
            let Some(walked) = self.walk(&Decisions::new(), &excluded) else { return self.too_large() };
            let Some((path, breaks)) = walked.broken else {
                let warnings = walked.warnings.into_iter().collect();
                return match cases.is_empty() {
                    true => (Verdict::Loads, warnings),
                    false => (Verdict::LoadsIf(cases.into_iter().map(case).collect()), warnings),
                };
            };
            if !walked.loads {
                // Nothing is left that loads: the first break found is the shortest.
                let breaks = cases.into_iter().next().map_or(breaks, |(_, first)| first);
                return (Verdict::Breaks(breaks), Vec::new());
            }
            let Some(when) = self.needed(path) else { return self.too_large() };
            if when.is_empty() || cases.len() >= MAX_CASES {
                return self.too_large();
            }
            cases.push((when, breaks));
        }
    }

    fn too_large(&self) -> (Verdict, Vec<Warning>) {
        let reason = Reason::TooLarge;
        let remedy = remedy::of(&reason, self.direction);
        (Verdict::Breaks(Break { field: "the section".into(), reason, remedy }), Vec::new())
    }

    /// Of the decisions that led to a break, those without which something would load.
    fn needed(&self, mut path: Decisions) -> Option<Decisions> {
        for subject in path.keys().cloned().collect::<Vec<_>>() {
            let Some(value) = path.remove(&subject) else { continue };
            if self.walk(&path, &[])?.loads {
                path.insert(subject, value);
            }
        }
        Some(path)
    }

    /// Visits all states that agree with `fixed` and with none of `excluded`. `None` if they are too many.
    fn walk(&self, fixed: &Decisions, excluded: &[&Decisions]) -> Option<Walked> {
        let mut walked = Walked::default();
        let start = State { written: At::step(0), read: At::step(0), decided: Decisions::new() };
        let mut seen = HashSet::from([start.clone()]);
        // Breadth first, so that the first break is the nearest. Each way is the one before it and what was decided.
        let mut ways: Vec<(usize, Vec<(Subject, bool)>)> = vec![(0, Vec::new())];
        let mut queue = VecDeque::from([(start, 0)]);
        let mut bytes_left = MAX_DECIDED;
        let kept: HashSet<&Subject> = excluded.iter().flat_map(|when| when.keys()).collect();
        while let Some((state, way)) = queue.pop_front() {
            match self.next(&state, &mut walked.warnings) {
                Next::Loads => walked.loads = true,
                Next::Breaks(field, reason) => {
                    if walked.broken.is_none() {
                        let remedy = remedy::of(&reason, self.direction);
                        walked.broken = Some((decisions(&ways, way), Break { field, reason, remedy }));
                    }
                }
                Next::To(states) => {
                    for mut next in states {
                        let contradicts = |(subject, value): (&Subject, &bool)| {
                            fixed.get(subject).is_some_and(|wanted| wanted != value)
                        };
                        let is_excluded = |when: &&Decisions| {
                            when.iter().all(|(subject, value)| next.decided.get(subject) == Some(value))
                        };
                        if next.decided.iter().any(contradicts) || excluded.iter().any(is_excluded) {
                            continue;
                        }
                        let news = next.decided.iter().filter(|(subject, _)| !state.decided.contains_key(subject));
                        let news = news.map(|(subject, holds)| (subject.clone(), *holds)).collect::<Vec<_>>();
                        self.forget(&mut next, &kept);
                        if seen.insert(next.clone()) {
                            self.budget.set(self.budget.get().checked_sub(1)?);
                            let bytes = |subject: &Subject| size_of::<Subject>() + subject.text().len();
                            bytes_left = bytes_left.checked_sub(next.decided.keys().map(bytes).sum())?;
                            let next_way = if news.is_empty() { way } else { ways.len() };
                            if !news.is_empty() {
                                ways.push((way, news));
                            }
                            queue.push_back((next, next_way));
                        }
                    }
                }
            }
        }
        Some(walked)
    }

    /// Drops decisions that nobody asks for any more.
    fn forget(&self, state: &mut State, kept: &HashSet<&Subject>) {
        let State { written, read, decided } = state;
        decided.retain(|subject, holds| {
            let asks = |layout: &Layout, at: &At| layout.last_use.get(subject).is_some_and(|last| *last >= at.step);
            // A byte that is no bool ends the walk in its next step.
            let ends = matches!(subject, Subject::ZeroOrOne(_)) && !*holds;
            ends || kept.contains(subject) || asks(self.written, written) || asks(self.read, read)
        });
    }

    fn next(&self, state: &State, warnings: &mut BTreeSet<Warning>) -> Next {
        let written = self.written.steps.get(state.written.step);
        let read = self.read.steps.get(state.read.step);
        // First whatever one side does alone; before all, the reader catches up with what is decided, so that few
        // decisions are open at a time.
        match (written, read) {
            (_, Some(Step::Unless { subject, to })) if state.decided.contains_key(subject) => {
                return Next::To(state.decide(subject, |holds, state| {
                    state.read = if holds { state.read.next() } else { At::step(*to) };
                }));
            }
            (Some(Step::Unless { subject, to }), _) => {
                return Next::To(state.decide(subject, |holds, state| {
                    state.written = if holds { state.written.next() } else { At::step(*to) };
                }));
            }
            (Some(Step::Goto(to)), _) => return Next::To(vec![state.with(|state| state.written = At::step(*to))]),
            (_, Some(Step::Unless { subject, to })) => {
                return Next::To(state.decide(subject, |holds, state| {
                    state.read = if holds { state.read.next() } else { At::step(*to) };
                }));
            }
            (_, Some(Step::Goto(to))) => return Next::To(vec![state.with(|state| state.read = At::step(*to))]),
            _ => {}
        }
        match (written, read) {
            (None, None) => Next::Loads,
            (_, Some(Step::Probe { parent, known, end })) => self.probe(state, written, parent, known, *end),
            (Some(Step::Header { name, .. }), read) if !matches!(read, Some(Step::Loop { .. })) => {
                Next::Breaks(name.clone(), Reason::UnknownSubsection)
            }
            (Some(Step::Loop { subject, end, .. }), Some(Step::Loop { end: read_end, .. })) => {
                // The length is an earlier field: the same on both sides, whatever the field is called.
                Next::To(state.decide(subject, |holds, state| {
                    (state.written, state.read) = match holds {
                        true => (state.written.next(), state.read.next()),
                        false => (At::step(*end), At::step(*read_end)),
                    };
                }))
            }
            (
                Some(Step::LoopEnd { head, scope, .. }),
                Some(Step::LoopEnd { head: read_head, scope: read_scope, .. }),
            ) => {
                let inside = |subject: &Subject| subject.is_within(scope) || subject.is_within(read_scope);
                let again = state.with(|state| {
                    state.decided.retain(|subject, _| !inside(subject));
                    (state.written, state.read) = (At::step(*head).next(), At::step(*read_head).next());
                });
                let done = state.with(|state| {
                    state.decided.retain(|subject, _| !inside(subject));
                    (state.written, state.read) = (state.written.next(), state.read.next());
                });
                Next::To(vec![again, done])
            }
            (Some(Step::LoopEnd { path, .. }), _) | (_, Some(Step::LoopEnd { path, .. })) => {
                Next::Breaks(path.clone(), Reason::OtherCount)
            }
            (Some(Step::Loop { subject, path, end, .. }), _) => match state.decided.get(subject) {
                Some(true) => Next::Breaks(path.clone(), Reason::OtherCount),
                _ => Next::To(state.decide(subject, |holds, state| {
                    if !holds {
                        state.written = At::step(*end);
                    }
                })),
            },
            (_, Some(Step::Loop { subject, path, end, .. })) => match state.decided.get(subject) {
                Some(true) => Next::Breaks(path.clone(), Reason::OtherCount),
                _ => Next::To(state.decide(subject, |holds, state| {
                    if !holds {
                        state.read = At::step(*end);
                    }
                })),
            },
            (Some(Step::Custom { codec, .. }), Some(Step::Custom { codec: other, .. })) if codec == other => {
                Next::To(vec![state.with(|state| {
                    (state.written, state.read) = (state.written.next(), state.read.next());
                })])
            }
            (Some(Step::Custom { path, .. }), _) | (_, Some(Step::Custom { path, .. })) => {
                Next::Breaks(path.clone(), Reason::OtherCodec)
            }
            (
                Some(Step::Item { meaning, bytes, path }),
                Some(Step::Item { meaning: read_meaning, bytes: read_bytes, path: read_path }),
            ) => {
                let written = Item { meaning: *meaning, left: *bytes - state.written.offset, path };
                let read = Item { meaning: *read_meaning, left: *read_bytes - state.read.offset, path: read_path };
                items(state, &written, &read, warnings)
            }
            (Some(Step::Item { path, .. }), None) => Next::Breaks(path.clone(), Reason::NotRead),
            (None, Some(Step::Item { path, .. })) => Next::Breaks(path.clone(), Reason::NotSent),
            // Taken above.
            (Some(Step::Unless { .. } | Step::Goto(_) | Step::Probe { .. }), _)
            | (_, Some(Step::Unless { .. } | Step::Goto(_) | Step::Header { .. }))
            | (Some(Step::Header { .. }), _) => Next::Breaks(String::new(), Reason::TooLarge),
        }
    }

    /// The reader looks for a subsection.
    fn probe(
        &self,
        state: &State,
        written: Option<&Step>,
        parent: &str,
        known: &[super::layout::Known],
        end: usize,
    ) -> Next {
        let pass = |state: &State| state.with(|state| state.read = At::step(end));
        let (name, version) = match written {
            // A name no longer than the parent's or with another beginning is not looked at.
            Some(Step::Header { name, version }) if name.len() > parent.len() && name.starts_with(parent) => {
                (name, *version)
            }
            // If it is empty, the reader may come upon a header behind it.
            Some(Step::Loop { subject, end, .. })
                if state.decided.get(subject) != Some(&true) && self.may_come_upon(*end, parent) =>
            {
                return Next::To(state.decide(subject, |holds, state| {
                    if !holds {
                        state.written = At::step(*end);
                    }
                }));
            }
            _ => return Next::To(vec![pass(state)]),
        };
        let Some(found) = known.iter().find(|known| known.name == *name) else {
            return Next::Breaks(name.clone(), Reason::UnknownSubsection);
        };
        match found.bodies.get(&version) {
            Some(body) => Next::To(vec![state.with(|state| {
                (state.written, state.read) = (state.written.next(), At::step(*body));
            })]),
            None if version > found.newest => {
                Next::Breaks(name.clone(), Reason::TooNew { version, newest: found.newest })
            }
            None => Next::Breaks(name.clone(), Reason::TooOld { version, oldest: found.oldest }),
        }
    }
}

impl Product<'_> {
    /// True if no bytes need to come between `step` of the writer and a subsection that a look for those of `parent`
    /// sees.
    fn may_come_upon(&self, step: usize, parent: &str) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![step];
        while let Some(at) = open.pop() {
            if !seen.insert(at) {
                continue;
            }
            match self.written.steps.get(at) {
                Some(Step::Header { name, .. }) if name.starts_with(parent) => return true,
                Some(Step::Unless { to, .. }) => open.extend([at + 1, *to]),
                Some(Step::Loop { end, .. }) => open.push(*end),
                Some(Step::LoopEnd { .. }) => open.push(at + 1),
                Some(Step::Goto(to)) => open.push(*to),
                _ => {}
            }
        }
        false
    }
}

impl State {
    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut state = self.clone();
        change(&mut state);
        state
    }

    /// One state for each outcome that is still open.
    fn decide(&self, subject: &Subject, apply: impl Fn(bool, &mut Self)) -> Vec<Self> {
        let outcomes = [false, true].into_iter();
        let open = outcomes.filter(|holds| self.decided.get(subject).is_none_or(|decided| decided == holds));
        open.map(|holds| {
            self.with(|state| {
                state.decided.insert(subject.clone(), holds);
                apply(holds, state);
            })
        })
        .collect()
    }
}

impl Subject {
    /// Its name or path.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Predicate(text) | Self::Subsection(text) | Self::Elements(text) | Self::ZeroOrOne(text) => text,
        }
    }

    fn is_within(&self, scope: &str) -> bool {
        match self {
            Self::Predicate(name) | Self::Subsection(name) => name.contains(scope),
            Self::Elements(_) | Self::ZeroOrOne(_) => false,
        }
    }
}

/// What is left of an item.
struct Item<'a> {
    meaning: Meaning,
    left: u64,
    path: &'a str,
}

fn items(state: &State, written: &Item<'_>, read: &Item<'_>, warnings: &mut BTreeSet<Warning>) -> Next {
    use Meaning::{Bool, Unused};
    let bytes = written.left.min(read.left);
    if let (Some(width), Some(read_width)) = (written.meaning.width(), read.meaning.width()) {
        let cut = !written.left.is_multiple_of(width) || !read.left.is_multiple_of(read_width);
        if width != read_width || cut {
            let (written, read) = (written.to_string(), format!("{} {}", read.path, read.meaning));
            let path = written.split(' ').next().unwrap_or_default().to_owned();
            return Next::Breaks(path, Reason::OtherItem { written, read });
        }
    }
    let difference = match (written.meaning, read.meaning) {
        (Unused, Unused) => None,
        (Unused, _) => Some(Difference::ReadsZero),
        (_, Unused) => Some(Difference::Dropped),
        (a, b) if a.width().is_some() != b.width().is_some() => Some(Difference::Raw),
        (a, b) if a != b => Some(Difference::Sign),
        _ => None,
    };
    warnings.extend(difference.map(|difference| Warning {
        written: written.to_string(),
        read: read.to_string(),
        difference,
    }));
    let advanced = |state: &mut State| {
        let advance = |at: At, left: u64| match left == bytes {
            true => at.next(),
            false => At { step: at.step, offset: at.offset + bytes },
        };
        (state.written, state.read) = (advance(state.written, written.left), advance(state.read, read.left));
    };
    if read.meaning == Bool && !matches!(written.meaning, Bool | Unused) {
        let subject = Subject::ZeroOrOne(written.path.to_owned());
        if state.decided.get(&subject) == Some(&false) {
            return Next::Breaks(read.path.to_owned(), Reason::NotBool);
        }
        return Next::To(state.decide(&subject, |holds, state| {
            if holds {
                advanced(state);
            }
        }));
    }
    Next::To(vec![state.with(advanced)])
}

impl std::fmt::Display for Item<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.path, self.meaning)
    }
}

impl std::fmt::Display for Meaning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool => f.write_str("(bool)"),
            Self::Unsigned(bytes) => write!(f, "(u{})", u32::from(*bytes) * 8),
            Self::Signed(bytes) => write!(f, "(i{})", u32::from(*bytes) * 8),
            Self::Raw => f.write_str("(raw bytes)"),
            Self::Unused => f.write_str("(padding)"),
        }
    }
}

/// All that was decided on a way.
fn decisions(ways: &[(usize, Vec<(Subject, bool)>)], mut way: usize) -> Decisions {
    let mut all = Decisions::new();
    while let Some((before, news)) = ways.get(way)
        && way != 0
    {
        all.extend(news.iter().cloned());
        way = *before;
    }
    all
}

fn case((when, breaks): (Decisions, Break)) -> Case {
    let when = when.into_iter().map(|(subject, holds)| Condition { subject, holds }).collect();
    Case { when, breaks }
}
