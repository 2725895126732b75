//! Explores all executions in which one layout's bytes are read by another: a walk through the product of a writer and a reader.
//!
//! Writer and reader advance together, item by item. Each run-time decision is explored with both outcomes, with the same outcome
//! for the same subject on both sides. A path ends in a load or in a break. A state consists of positions and the decisions that
//! are still used, so the number of states stays small where the two sides are alike.

use std::collections::{BTreeSet, HashSet, VecDeque};

use super::layout::Layout;
use super::position::{At, Decisions, Next, Position};
use super::sides::{Found, Sides, Stop};
use super::subjects::Id;
use super::verdict::{Break, Case, Comparison, Condition, Reason, Subject, Verdict};
use super::{Direction, remedy};

/// The most cases that a verdict distinguishes.
const MAX_CASES: usize = 256;

/// The result of a walk.
#[derive(Default)]
struct Walked {
    loads: bool,
    broken: Option<Broken>,
    found: Found,
}

/// A break, and the decisions on its path.
struct Broken {
    path: Decisions,
    /// The last decision, which alone caused the break.
    gate: Option<(Id, bool)>,
    field: String,
    reason: Reason,
}

impl Sides<'_> {
    /// The verdict, with its warnings and assumptions.
    pub(super) fn comparison(&self, direction: Direction, version: u32) -> Result<Comparison, Stop> {
        let named = |broken: Broken| {
            let side = if broken.reason == Reason::NotSent { &self.read } else { &self.written };
            let remedy = remedy::of(&broken.reason, direction, side.around(&broken.field));
            Break { field: broken.field, reason: broken.reason, remedy }
        };
        let mut cases: Vec<(Decisions, Break)> = Vec::new();
        loop {
            let excluded: Vec<&Decisions> = cases.iter().map(|(when, _)| when).collect();
            let Walked { loads, broken, mut found } = self.walk(&Decisions::new(), &excluded)?;
            let Some(broken) = broken else {
                let verdict = match cases.is_empty() {
                    true => Verdict::Loads,
                    false => Verdict::LoadsIf(cases.into_iter().map(|case| self.case(case)).collect()),
                };
                found.assumed.append(&self.read.assumed);
                let warnings = found.warnings.into_iter().collect();
                let relies_on = found.assumed.into_assumptions();
                return Ok(Comparison { direction, version, verdict, warnings, relies_on });
            };
            if !loads {
                // No remaining state loads; the first break found has the shortest path.
                let breaks = cases.into_iter().next().map_or_else(|| named(broken), |(_, first)| first);
                let verdict = Verdict::Breaks(breaks);
                return Ok(Comparison::of(direction, version, verdict));
            }
            let when = self.needed(&broken)?;
            if when.is_empty() || cases.len() >= MAX_CASES {
                return Err(Stop::TooLarge);
            }
            cases.push((when, named(broken)));
        }
    }

    /// The decisions that caused a break and without which a stream would load.
    fn needed(&self, broken: &Broken) -> Result<Decisions, Stop> {
        let gate = Decisions::from_iter(broken.gate);
        if !gate.is_empty() && !self.loads(&gate)? {
            return Ok(gate);
        }
        let mut path = broken.path.clone();
        path.extend(gate);
        for subject in path.keys().copied().collect::<Vec<_>>() {
            let Some(value) = path.remove(&subject) else { continue };
            if self.loads(&path)? {
                path.insert(subject, value);
            }
        }
        // A condition on a value implies that the value is present.
        let subjects = self.subjects.borrow();
        let values = path.iter().filter(|(_, holds)| !**holds).filter_map(|(id, _)| subjects.get(*id));
        let fields: Vec<_> = values.filter_map(Subject::value).collect();
        path.retain(|id, _| !subjects.get(*id).is_some_and(|of| fields.iter().any(|field| of.is_around(field))));
        Ok(path)
    }

    /// Visits all states that agree with `fixed` and with none of `excluded`.
    fn walk(&self, fixed: &Decisions, excluded: &[&Decisions]) -> Result<Walked, Stop> {
        let mut walk = Walk::new(self, fixed, excluded);
        while walk.step()? {}
        Ok(walk.walked)
    }

    /// True if a state that agrees with `fixed` loads. The walk ends at the first such state.
    fn loads(&self, fixed: &Decisions) -> Result<bool, Stop> {
        let mut walk = Walk::new(self, fixed, &[]);
        while !walk.walked.loads && walk.step()? {}
        Ok(walk.walked.loads)
    }

    fn case(&self, (when, breaks): (Decisions, Break)) -> Case {
        let subjects = self.subjects.borrow();
        let condition = |(id, holds)| Some(Condition { subject: subjects.get(id)?.clone(), holds });
        Case { when: when.into_iter().filter_map(condition).collect(), breaks }
    }
}

impl Subject {
    /// The field, if the subject is about its value.
    fn value(&self) -> Option<&str> {
        match self {
            Self::Value { field, .. } | Self::Count { field, .. } => Some(field),
            _ => None,
        }
    }

    /// True if the field is present only for one outcome of this subject.
    fn is_around(&self, field: &str) -> bool {
        let inside = |of: &str, by: &str| field.strip_prefix(of).is_some_and(|rest| rest.starts_with(by));
        match self {
            Self::Subsection(path) => inside(path, "."),
            Self::Elements(path) => field == path || inside(path, "[]"),
            Self::Null(path) => field == path || inside(path, "."),
            _ => false,
        }
    }
}

/// A walk in progress: breadth first, so that the first break has the shortest path.
struct Walk<'a> {
    product: &'a Sides<'a>,
    fixed: &'a Decisions,
    excluded: &'a [&'a Decisions],
    /// Subjects that an excluded case depends on.
    kept: HashSet<Id>,
    seen: BTreeSet<Position>,
    queue: VecDeque<(Position, usize)>,
    /// Each path is the index of its predecessor, and the decisions added to it.
    ways: Vec<(usize, Vec<(Id, bool)>)>,
    walked: Walked,
}

impl<'a> Walk<'a> {
    fn new(product: &'a Sides<'a>, fixed: &'a Decisions, excluded: &'a [&'a Decisions]) -> Self {
        let start = Position::default();
        Self {
            product,
            fixed,
            excluded,
            kept: excluded.iter().flat_map(|when| when.keys().copied()).collect(),
            seen: BTreeSet::from([start.clone()]),
            queue: VecDeque::from([(start, 0)]),
            ways: vec![(0, Vec::new())],
            walked: Walked::default(),
        }
    }

    /// Continues from the state that was queued first; false if there is none.
    fn step(&mut self) -> Result<bool, Stop> {
        let Some((state, way)) = self.queue.pop_front() else { return Ok(false) };
        self.product.budget.step(0)?;
        match self.product.next(&state, &mut self.walked.found)? {
            Next::Loads => self.walked.loads = true,
            Next::Breaks(field, reason) => self.breaks(way, None, field, reason)?,
            Next::To(states) => states.into_iter().try_for_each(|next| self.visit(&state, next, way))?,
            Next::Gate { subject, bad, field, reason, then } => {
                let mut refused = state.decided.clone();
                refused.insert(subject, bad);
                if self.fixed.get(&subject) != Some(&!bad) && !self.is_excluded(&refused) {
                    self.breaks(way, Some((subject, bad)), field, reason)?;
                }
                for mut next in then {
                    if self.fixed.get(&subject) == Some(&bad) {
                        break;
                    }
                    if self.kept.contains(&subject) {
                        next.decided.insert(subject, !bad);
                    }
                    self.visit(&state, next, way)?;
                }
            }
        }
        Ok(true)
    }

    fn visit(&mut self, before: &Position, mut next: Position, way: usize) -> Result<(), Stop> {
        let contradicts =
            |(subject, value): (&Id, &bool)| self.fixed.get(subject).is_some_and(|wanted| wanted != value);
        if next.decided.iter().any(contradicts) || self.is_excluded(&next.decided) {
            return Ok(());
        }
        let news = next.decided.iter().filter(|(subject, _)| !before.decided.contains_key(subject));
        let news: Vec<_> = news.map(|(subject, holds)| (*subject, *holds)).collect();
        if news.iter().any(|decision| self.excludes(*decision)) {
            return Ok(());
        }
        self.forget(&mut next);
        self.product.budget.spend(next.decided.len())?;
        if self.seen.insert(next.clone()) {
            let mut next_way = way;
            if !news.is_empty() {
                next_way = self.ways.len();
                self.ways.push((way, news));
            }
            self.queue.push_back((next, next_way));
        }
        Ok(())
    }

    /// True if this decision contradicts the fixed ones.
    fn excludes(&self, decision: (Id, bool)) -> bool {
        let subjects = self.product.subjects.borrow();
        self.fixed.iter().any(|(id, holds)| subjects.exclude_each_other((*id, *holds), decision))
    }

    fn is_excluded(&self, decided: &Decisions) -> bool {
        self.excluded.iter().any(|when| when.iter().all(|(subject, value)| decided.get(subject) == Some(value)))
    }

    /// Drops decisions that are no longer used.
    fn forget(&self, state: &mut Position) {
        let Position { written, read, decided, lengths, sent, got, .. } = state;
        self.product.written.forget_tags(written.step, sent);
        self.product.read.forget_tags(read.step, got);
        lengths.retain(|length, _| self.product.read.lengths.get(length).is_some_and(|last| *last >= read.step));
        decided.retain(|subject, _| {
            let asks = |layout: &Layout, at: &At| layout.last_use.get(subject).is_some_and(|last| *last >= at.step);
            self.kept.contains(subject) || asks(&self.product.written, written) || asks(&self.product.read, read)
        });
    }

    fn breaks(&mut self, way: usize, gate: Option<(Id, bool)>, field: String, reason: Reason) -> Result<(), Stop> {
        self.product.budget.step(field.len())?;
        if self.walked.broken.is_none() {
            self.walked.broken = Some(Broken { path: self.decisions(way), gate, field, reason });
        }
        Ok(())
    }

    /// All decisions on a path.
    fn decisions(&self, mut way: usize) -> Decisions {
        let mut all = Decisions::new();
        while let Some((before, news)) = self.ways.get(way)
            && way != 0
        {
            all.extend(news.iter().copied());
            way = *before;
        }
        all
    }
}
