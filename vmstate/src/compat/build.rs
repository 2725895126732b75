//! Builds the layout of a description's program at one version.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::asked::Predicate;
use super::assumption::shared_name;
use super::budget::{Budget, TooLarge};
use super::item::Item;
use super::layout::{Around, Bound, CountedBy, Counting, Known, Layout, Sent, Step};
use super::lengths::{self, LengthAt, LengthValue, Scope};
use super::place::Place;
use super::subjects::{Id, Subjects};
use super::verdict::{Reason, Subject};
use crate::schema::program::{self, Encoding, Framing, Meaning, Member, Nested, Program};
use crate::schema::{self, Count, Presence};

/// The most steps of a layout that is compared.
const MAX_STEPS: usize = 1 << 16;

/// The layout that `program` writes at `version`.
pub(super) fn written(
    program: &Program<'_>,
    version: u32,
    subjects: &mut Subjects,
    budget: &Budget,
) -> Result<Layout, TooLarge> {
    build(program, version, None, subjects, budget)
}

/// The layout that `program` reads at `version` from a writer with these subsections.
pub(super) fn read(
    program: &Program<'_>,
    version: u32,
    sent: &Sent,
    subjects: &mut Subjects,
    budget: &Budget,
) -> Result<Layout, TooLarge> {
    build(program, version, Some(sent), subjects, budget)
}

fn build(
    program: &Program<'_>,
    version: u32,
    sent: Option<&Sent>,
    subjects: &mut Subjects,
    budget: &Budget,
) -> Result<Layout, TooLarge> {
    let mut builder = Builder { layout: Layout::default(), sent, parts: Vec::new(), subjects, budget };
    builder.structure(program, version, &Place::default())?;
    Ok(builder.layout)
}

/// Collects all subsections in `program`, including those of nested structs.
pub(super) fn subsections(program: &Program<'_>, into: &mut Sent, budget: &Budget) -> Result<(), TooLarge> {
    for subsection in program.subsections() {
        budget.step(subsection.name.len())?;
        into.entry(subsection.name.to_owned()).or_default().insert(subsection.newest);
        subsections(subsection, into, budget)?;
    }
    program.members().try_for_each(|member| inside(&member.encoding, into, budget))
}

fn inside(encoding: &Encoding<'_>, into: &mut Sent, budget: &Budget) -> Result<(), TooLarge> {
    budget.step(0)?;
    match encoding {
        Encoding::Struct(nested) => subsections(&nested.program, into, budget),
        Encoding::Repeat(_, element) => inside(element, into, budget),
        Encoding::Nullable(inner) => inside(inner, into, budget),
        Encoding::Item(_) | Encoding::Refuse(_) => Ok(()),
    }
}

/// Separates a predicate from the struct in which it is evaluated.
const OF: &str = " of ";

struct Builder<'a> {
    layout: Layout,
    sent: Option<&'a Sent>,
    /// The enclosing structs, from the outermost to the innermost.
    parts: Vec<Scope>,
    subjects: &'a mut Subjects,
    budget: &'a Budget,
}

impl Builder<'_> {
    fn push(&mut self, step: Step) -> Result<usize, TooLarge> {
        let at = self.layout.steps.len();
        if at >= MAX_STEPS {
            return Err(TooLarge);
        }
        if let Some(subject) = step.subject() {
            self.layout.last_use.insert(subject, at);
        }
        self.layout.steps.push(step);
        let around = match self.parts.as_slice() {
            [_, .., part] if part.place.is_variant => Around::Variant,
            [_, .., part] if !part.is_subsection => Around::Nested,
            _ => Around::Versioned,
        };
        self.layout.around.push(around);
        Ok(at)
    }

    fn subject(&mut self, subject: Subject, place: &Place) -> Id {
        let id = self.subjects.id(subject);
        self.layout.depths.insert(id, place.depth);
        id
    }

    /// Sets the target of the jump at `at` to the next step.
    fn land(&mut self, at: usize) {
        let here = self.layout.steps.len();
        if let Some(
            Step::Unless { to: target, .. }
            | Step::Variant { to: target, .. }
            | Step::Pointer { end: target, .. }
            | Step::Loop { end: target, .. }
            | Step::Probe { end: target, .. },
        ) = self.layout.steps.get_mut(at)
        {
            *target = here;
        }
    }

    /// Extends the last use of all subjects since `start` to this step: a walk may take the steps between in another order.
    fn keep_until_here(&mut self, start: usize) {
        let here = self.layout.steps.len();
        for step in self.layout.steps.iter().skip(start) {
            if let Some(subject) = step.subject() {
                self.layout.last_use.insert(subject, here);
            }
            if let Step::Loop { bound: Some(Bound { length: CountedBy::Step(length), .. }), .. } = step {
                self.layout.lengths.insert(*length, here);
            }
        }
    }

    /// Builds a struct. Its lengths are looked up in its own fields, not in those of enclosing structs.
    fn structure(&mut self, program: &Program<'_>, version: u32, place: &Place) -> Result<(), TooLarge> {
        self.part(program, version, place, false)
    }

    fn part(
        &mut self,
        program: &Program<'_>,
        version: u32,
        place: &Place,
        is_subsection: bool,
    ) -> Result<(), TooLarge> {
        self.parts.push(Scope::new(program, place, is_subsection, self.budget)?);
        let built = self.program(program, version, place);
        self.parts.pop();
        built
    }

    fn program(&mut self, program: &Program<'_>, version: u32, place: &Place) -> Result<(), TooLarge> {
        self.rely_on_hooks(program)?;
        let mut names = HashMap::new();
        for (index, step) in program.steps.iter().enumerate() {
            match step {
                program::Step::Member(member) => {
                    let before = self.layout.steps.len();
                    let name: &str = &member.name;
                    self.budget.step(place.path.len() + name.len())?;
                    let named = names.entry(name).and_modify(|count| *count += 1).or_insert(1);
                    self.member(program, member, version, &place.numbered_field(name, *named))?;
                    // A struct of one integer is not treated as that integer: a reader looks for subsections after a struct, so
                    // the two sides would differ.
                    if index == 0
                        && Item::of(&member.encoding).is_some_and(|item| item.is_one_integer())
                        && matches!(self.layout.steps.get(before..), Some([Step::Item { .. }]))
                    {
                        self.parts.last_mut().into_iter().for_each(|part| part.tag = Some(before));
                    }
                }
                program::Step::Check { name, is_predicate } => {
                    self.budget.step(name.len() + program.name.len())?;
                    *names.entry(name).or_insert(0) += 1;
                    if *is_predicate && self.sent.is_some() {
                        self.layout.assumed.hooks.insert(format!("the check {name} of {}", program.name));
                    }
                }
                program::Step::Subsections(all) => match self.sent {
                    None => self.send_subsections(all, place)?,
                    Some(sent) => self.take_subsections(program.name, all, sent, place)?,
                },
                // Only self-descriptions of streams have these steps, and they are never compared.
                program::Step::Sent(..) | program::Step::Refuse(_) => return Err(TooLarge),
            }
        }
        Ok(())
    }

    fn send_subsections(&mut self, all: &[Rc<Program<'_>>], place: &Place) -> Result<(), TooLarge> {
        for subsection in all {
            self.budget.step(subsection.name.len() + place.path.len())?;
            let inside = place.subsection(subsection.name);
            let subject = self.subject(Subject::Subsection(inside.path.to_string()), place);
            let jump = self.push(Step::Unless { subject, to: 0 })?;
            self.push(Step::Header { name: subsection.name.into(), version: subsection.newest })?;
            self.part(subsection, subsection.newest, &inside, true)?;
            self.land(jump);
        }
        Ok(())
    }

    fn take_subsections(
        &mut self,
        parent: &str,
        all: &[Rc<Program<'_>>],
        sent: &Sent,
        place: &Place,
    ) -> Result<(), TooLarge> {
        self.budget.step(parent.len())?;
        let probe = self.push(Step::Probe { parent: parent.into(), known: BTreeMap::new(), end: 0 })?;
        let mut by_name = BTreeMap::new();
        for subsection in all {
            self.budget.step(subsection.name.len())?;
            let (oldest, newest) = (subsection.oldest, subsection.newest);
            let inside = place.subsection(subsection.name);
            let mut bodies = BTreeMap::new();
            let versions = sent.get(subsection.name).into_iter().flatten();
            for version in versions.filter(|version| (oldest..=newest).contains(version)) {
                bodies.insert(*version, self.layout.steps.len());
                self.part(subsection, *version, &inside, true)?;
                self.push(Step::Goto(probe))?;
            }
            // If two share a name, a reader finds the first.
            by_name.entry(subsection.name.into()).or_insert(Known { oldest, newest, bodies });
        }
        if let Some(Step::Probe { known, .. }) = self.layout.steps.get_mut(probe) {
            *known = by_name;
        }
        self.land(probe);
        self.keep_until_here(probe);
        Ok(())
    }

    /// Records the functions that the reader's device runs in a load of `program`.
    fn rely_on_hooks(&mut self, program: &Program<'_>) -> Result<(), TooLarge> {
        if self.sent.is_none() {
            return Ok(());
        }
        let name = program.name;
        let assumed = &mut self.layout.assumed;
        let Some(hooks) = program.hooks else {
            if !assumed.unsaid.contains(name) {
                assumed.unsaid.insert(name.to_owned());
            }
            return Ok(());
        };
        for hook in hooks {
            self.budget.step(hook.len() + name.len())?;
            assumed.hooks.insert(format!("{} of {name}", &**hook));
        }
        Ok(())
    }

    fn member(&mut self, of: &Program<'_>, member: &Member<'_>, version: u32, place: &Place) -> Result<(), TooLarge> {
        let before = self.layout.steps.len();
        self.presence(of, member, version, place)?;
        let is_value = |step: &Step| matches!(step, Step::Item { .. } | Step::Custom { .. });
        if let Some(length) = self.parts.last_mut().and_then(|part| part.lengths.get_mut(&*member.name)) {
            let value = self.layout.steps.iter().skip(before).position(is_value);
            if let (LengthAt::Absent, Some(index)) = (length.at, value) {
                length.at = LengthAt::Step(before + index);
            }
        }
        Ok(())
    }

    fn presence(&mut self, of: &Program<'_>, member: &Member<'_>, version: u32, place: &Place) -> Result<(), TooLarge> {
        let tag = self.parts.last().and_then(|part| part.tag);
        match (member.presence, tag) {
            (Presence::Since(since), _) if *since > version => Ok(()),
            (Presence::Since(_), _) => self.content(of, member, place),
            (Presence::If(predicate), _) if !predicate.is_empty() => {
                let subject = self.predicate(of, predicate, place)?;
                self.content_after(Step::Unless { subject, to: 0 }, of, member, place)
            }
            (Presence::Tag(number), Some(tag)) => {
                self.layout.note_variant(self.layout.steps.len(), tag, *number);
                let place = &Place { is_variant: true, ..place.clone() };
                self.content_after(Step::Variant { tag, number: *number, to: 0 }, of, member, place)
            }
            (Presence::If(_) | Presence::Tag(_), _) => {
                let subject = self.subject(Subject::Unnamed(place.path.to_string()), place);
                self.content_after(Step::Unless { subject, to: 0 }, of, member, place)
            }
        }
    }

    /// Builds the member's bytes after the conditional jump that may skip them.
    fn content_after(
        &mut self,
        jump: Step,
        of: &Program<'_>,
        member: &Member<'_>,
        place: &Place,
    ) -> Result<(), TooLarge> {
        let jump = self.push(jump)?;
        self.content(of, member, place)?;
        self.land(jump);
        Ok(())
    }

    /// The outcome of a predicate in the struct that is being built; in a subsection, the predicate belongs to the enclosing
    /// struct.
    fn predicate(&mut self, of: &Program<'_>, predicate: &str, place: &Place) -> Result<Id, TooLarge> {
        let innermost = |is_subsection| {
            let part = self.parts.iter().rfind(|part| part.is_subsection == is_subsection);
            part.map(|part| Rc::clone(&part.place.path)).unwrap_or_default()
        };
        let (within, holder) = (innermost(true), innermost(false));
        self.budget.step(of.name.len() + predicate.len() + within.len() + holder.len())?;
        let name = if predicate.contains(OF) { format!("{predicate:?}") } else { predicate.to_owned() };
        let text = if holder.is_empty() { name } else { name + OF + &holder };
        let id = self.subject(Subject::Predicate(text), place);
        if !self.layout.last_use.contains_key(&id) {
            let (of, within, name) = (of.name.to_owned(), within.to_string(), predicate.to_owned());
            self.layout.asked.entry(Predicate { of, within, depth: place.depth, name }).or_default().push(id);
        }
        Ok(id)
    }

    /// Builds the member's bytes, with the conditions that its conversion and count add.
    fn content(&mut self, of: &Program<'_>, member: &Member<'_>, place: &Place) -> Result<(), TooLarge> {
        if let (Some(conversion), Some(_), false) = (member.conversion, self.sent, member.encoding.is_codec()) {
            self.layout.assumed.hooks.insert(format!("{conversion} of {}", shared_name(&place.path)));
        }
        let bound = match member.count {
            Some(count) => self.bound(count, place),
            None => {
                if of.hooks.is_none() && member.encoding.is_counted() {
                    self.layout.assumed.counts.insert(shared_name(&place.path));
                }
                None
            }
        };
        self.counted_encoding(&member.encoding, bound, place)
    }

    /// The bound of `count`, if the place of the length is known.
    fn bound(&mut self, count: &Count, place: &Place) -> Option<Bound> {
        let (factor, most) = (count.factor as u64, count.most as u64);
        if count.by_room {
            self.layout.assumed.configuration.insert(format!("room of {}", shared_name(&place.path)));
        }
        let (length, highest) = match &count.length {
            None => (CountedBy::Itself, u64::MAX),
            Some(schema::Length::Machine(name)) => {
                (CountedBy::Machine(self.parts.last()?.place.field(name).path), u64::MAX)
            }
            Some(schema::Length::Field(name)) => match lengths::find(&self.parts, name) {
                Some((_, LengthValue { highest, at: LengthAt::Step(step) })) => (CountedBy::Step(step), highest),
                Some((of, LengthValue { highest, at: LengthAt::Absent })) => {
                    (CountedBy::Absent(of.field(name).path), highest)
                }
                Some((_, LengthValue { at: LengthAt::Unclear, .. })) | None => {
                    self.layout.assumed.counts.insert(shared_name(&place.path));
                    return None;
                }
            },
        };
        if let CountedBy::Step(step) = length {
            self.layout.lengths.insert(step, self.layout.steps.len());
        }
        Some(Bound { length, factor, most, highest: highest.saturating_mul(factor) })
    }

    fn encoding(&mut self, encoding: &Encoding<'_>, place: &Place) -> Result<(), TooLarge> {
        self.counted_encoding(encoding, None, place)
    }

    /// Builds elements whose number is limited by `bound`.
    fn counted_encoding(
        &mut self,
        encoding: &Encoding<'_>,
        bound: Option<Bound>,
        place: &Place,
    ) -> Result<(), TooLarge> {
        if let Some(item) = Item::of(encoding) {
            return self.item(item, place);
        }
        match encoding {
            Encoding::Struct(nested) => self.nested(nested, place),
            Encoding::Repeat(Framing::Fixed(count), element) => self.array(element, *count, place),
            Encoding::Repeat(Framing::Counted, element) => {
                self.counted(Counting::Elements, bound, place, |builder, inside| builder.encoding(element, inside))
            }
            Encoding::Repeat(Framing::List, element) => {
                self.counted(Counting::List, bound, place, |builder, inside| builder.encoding(element, inside))
            }
            Encoding::Repeat(Framing::Map, entry) => {
                self.layout.assumed.orders.insert(shared_name(&place.path));
                self.counted(Counting::Map, bound, place, |builder, inside| builder.entry(entry, inside))
            }
            Encoding::Nullable(inner) => {
                let null = self.subject(Subject::Null(place.path.to_string()), place);
                let jump = self.push(Step::Pointer { null, path: place.path.clone(), end: 0 })?;
                self.encoding(inner, place)?;
                self.land(jump);
                Ok(())
            }
            Encoding::Item(item) => match item.meaning {
                Meaning::Codec(name) => self.custom(name, false, place),
                Meaning::Opaque(name) => self.custom(name, true, place),
                Meaning::Bitmap(None) => {
                    self.counted(Counting::Bits, bound, place, |builder, inside| builder.item(Item::words(1), inside))
                }
                Meaning::Bitmap(Some(bits)) => {
                    let words = bits / 64;
                    self.item(Item::words(words), place)?;
                    let last = if words == 0 { place.clone() } else { place.element(words) };
                    self.item(Item::last_word(bits % 64), &last)
                }
                // The remaining encodings are bytes whose number is a length.
                _ => self.counted(Counting::Elements, bound, place, |builder, inside| {
                    builder.item(Item::raw_byte(), inside)
                }),
            },
            // Only self-descriptions of streams have these, and they are never compared.
            Encoding::Refuse(_) => Err(TooLarge),
        }
    }

    fn custom(&mut self, codec: &str, by_size: bool, place: &Place) -> Result<(), TooLarge> {
        self.budget.step(codec.len())?;
        self.push(Step::Custom { codec: codec.to_owned(), by_size, path: place.path.clone() }).map(drop)
    }

    /// Builds the key and value of a map.
    fn entry(&mut self, entry: &Encoding<'_>, place: &Place) -> Result<(), TooLarge> {
        let Encoding::Struct(entry) = entry else { return Ok(()) };
        let mut members = entry.program.members();
        if let (Some(key), Some(value)) = (members.next(), members.next()) {
            self.encoding(&key.encoding, &Place { in_key: true, ..place.field(&key.name) })?;
            self.encoding(&value.encoding, &place.field(&value.name))?;
        }
        Ok(())
    }

    fn nested(&mut self, nested: &Nested<'_>, place: &Place) -> Result<(), TooLarge> {
        let version = nested.version;
        let (newest, oldest) = (nested.program.newest, nested.program.oldest);
        let reason = match version {
            _ if version > newest => Some(Reason::TooNew { version, newest }),
            _ if version < oldest && version < newest => Some(Reason::TooOld { version, oldest }),
            _ => None,
        };
        if let (Some(reason), true) = (reason, self.sent.is_some()) {
            self.push(Step::Refuse { path: place.path.clone(), reason })?;
        }
        self.structure(&nested.program, version, place)
    }

    fn array(&mut self, element: &Encoding<'_>, count: u64, place: &Place) -> Result<(), TooLarge> {
        for index in 0..count {
            self.budget.step(place.path.len())?;
            let before = self.layout.steps.len();
            self.encoding(element, &place.element(index))?;
            if self.layout.steps.len() == before {
                // The elements have no bytes.
                break;
            }
        }
        Ok(())
    }

    fn item(&mut self, mut item: Item, place: &Place) -> Result<(), TooLarge> {
        if item.bytes == 0 {
            return Ok(());
        }
        self.budget.spend(item.cost())?;
        item.in_key = place.in_key;
        self.push(Step::Item { item, path: place.path.clone() }).map(drop)
    }

    fn counted(
        &mut self,
        counting: Counting,
        bound: Option<Bound>,
        place: &Place,
        body: impl FnOnce(&mut Self, &Place) -> Result<(), TooLarge>,
    ) -> Result<(), TooLarge> {
        self.budget.step(place.path.len())?;
        let inside = place.counted();
        let elements = self.subject(Subject::Elements(place.path.to_string()), place);
        let head = self.push(Step::Loop { elements, counting, bound, path: place.path.clone(), end: 0 })?;
        body(self, &inside)?;
        self.push(Step::LoopEnd { head, depth: inside.depth, path: place.path.clone() })?;
        self.land(head);
        self.keep_until_here(head);
        Ok(())
    }
}
