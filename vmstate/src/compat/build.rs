//! From a description to its layout.

use std::collections::{BTreeMap, HashMap};

use super::budget::{Budget, TooLarge};
use super::item::Item;
use super::layout::{Bound, Framing, Known, Layout, Length, Sent, Step};
use super::lengths::{self, At, Part, Value};
use super::place::Place;
use super::reliance::shared_name;
use super::subjects::{Id, Subjects};
use super::verdict::{Reason, Subject};
use crate::schema::{self, Count, Description, Field, Kind, Presence, json};

/// More steps than this are not compared.
const MAX_STEPS: usize = 1 << 16;

/// What `description` writes at `version`.
pub(super) fn written(
    description: &Description,
    version: u32,
    subjects: &mut Subjects,
    budget: &Budget,
) -> Result<Layout, TooLarge> {
    build(description, version, None, subjects, budget)
}

/// What `description` takes at `version` from a writer of these subsections.
pub(super) fn read(
    description: &Description,
    version: u32,
    sent: &Sent,
    subjects: &mut Subjects,
    budget: &Budget,
) -> Result<Layout, TooLarge> {
    build(description, version, Some(sent), subjects, budget)
}

fn build(
    description: &Description,
    version: u32,
    sent: Option<&Sent>,
    subjects: &mut Subjects,
    budget: &Budget,
) -> Result<Layout, TooLarge> {
    let mut builder = Builder { layout: Layout::default(), sent, parts: Vec::new(), subjects, budget };
    builder.structure(description, version, &Place::default())?;
    Ok(builder.layout)
}

/// All subsections in `description`, also those of nested structs.
pub(super) fn subsections(description: &Description, into: &mut Sent, budget: &Budget) -> Result<(), TooLarge> {
    for subsection in description.subsections.iter() {
        budget.step(subsection.name.len())?;
        into.entry(subsection.name.to_string()).or_default().insert(subsection.version);
        subsections(subsection, into, budget)?;
    }
    description.fields.iter().try_for_each(|field| inside(&field.kind, into, budget))
}

fn inside(kind: &Kind, into: &mut Sent, budget: &Budget) -> Result<(), TooLarge> {
    budget.step(0)?;
    match kind {
        Kind::Struct(nested) | Kind::StructAt(nested, _) | Kind::Temporary(nested) => subsections(nested, into, budget),
        Kind::Array(element, _) | Kind::CountedArray(element) | Kind::List(element) | Kind::Nullable(element) => {
            inside(element, into, budget)
        }
        Kind::Map(key, value) => {
            inside(key, into, budget)?;
            inside(value, into, budget)
        }
        _ => Ok(()),
    }
}

struct Builder<'a> {
    layout: Layout,
    sent: Option<&'a Sent>,
    /// From the outermost to the innermost.
    parts: Vec<Part>,
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
        // The section itself is the first part.
        let is_nested = self.parts.len() > 1 && self.parts.last().is_some_and(|part| !part.is_subsection);
        self.layout.nested.push(is_nested);
        Ok(at)
    }

    fn subject(&mut self, subject: Subject, place: &Place) -> Id {
        let id = self.subjects.id(subject);
        self.layout.depths.insert(id, place.depth);
        id
    }

    /// Lets the jump at `at` lead to here.
    fn land(&mut self, at: usize) {
        let here = self.layout.steps.len();
        if let Some(
            Step::Unless { to: target, .. }
            | Step::Pointer { end: target, .. }
            | Step::Loop { end: target, .. }
            | Step::Probe { end: target, .. },
        ) = self.layout.steps.get_mut(at)
        {
            *target = here;
        }
    }

    /// What is asked since `start` may be asked again until here: the steps between are not taken in order.
    fn keep_until_here(&mut self, start: usize) {
        let here = self.layout.steps.len();
        for step in self.layout.steps.iter().skip(start) {
            if let Some(subject) = step.subject() {
                self.layout.last_use.insert(subject, here);
            }
            if let Step::Loop { bound: Some(Bound { length: Length::Step(length), .. }), .. } = step {
                self.layout.lengths.insert(*length, here);
            }
        }
    }

    /// A struct of its own: no field of those around it is a length here.
    fn structure(&mut self, description: &Description, version: u32, place: &Place) -> Result<(), TooLarge> {
        self.part(description, version, place, false)
    }

    fn part(
        &mut self,
        description: &Description,
        version: u32,
        place: &Place,
        is_subsection: bool,
    ) -> Result<(), TooLarge> {
        self.parts.push(Part::new(description, place, is_subsection, self.budget)?);
        let built = self.description(description, version, place);
        self.parts.pop();
        built
    }

    fn description(&mut self, description: &Description, version: u32, place: &Place) -> Result<(), TooLarge> {
        self.rely_on_hooks(description)?;
        let mut names = HashMap::new();
        for field in description.fields.iter() {
            self.budget.step(place.path.len() + place.scope.len() + field.name.len())?;
            let named = names.entry(&*field.name).and_modify(|count| *count += 1).or_insert(1);
            match named {
                1 => self.field(description, field, version, &place.field(&field.name))?,
                _ => self.field(description, field, version, &place.field(&format!("{}#{named}", &*field.name)))?,
            }
        }
        match self.sent {
            None => self.send_subsections(description, place),
            Some(sent) => self.take_subsections(description, sent, place),
        }
    }

    fn send_subsections(&mut self, description: &Description, place: &Place) -> Result<(), TooLarge> {
        for subsection in description.subsections.iter() {
            self.budget.step(subsection.name.len() + place.path.len())?;
            let inside = place.field(&subsection.name);
            let subject = self.subject(Subject::Subsection(inside.path.to_string()), place);
            let jump = self.push(Step::Unless { subject, to: 0 })?;
            self.push(Step::Header { name: (&*subsection.name).into(), version: subsection.version })?;
            self.part(subsection, subsection.version, &inside, true)?;
            self.land(jump);
        }
        Ok(())
    }

    fn take_subsections(&mut self, parent: &Description, sent: &Sent, place: &Place) -> Result<(), TooLarge> {
        self.budget.step(parent.name.len())?;
        let probe = self.push(Step::Probe { parent: (&*parent.name).into(), known: BTreeMap::new(), end: 0 })?;
        let mut all = BTreeMap::new();
        for subsection in parent.subsections.iter() {
            self.budget.step(subsection.name.len())?;
            let (oldest, newest) = (subsection.minimum_version, subsection.version);
            let inside = place.field(&subsection.name);
            let mut bodies = BTreeMap::new();
            let versions = sent.get(&*subsection.name).into_iter().flatten();
            for version in versions.filter(|version| (oldest..=newest).contains(version)) {
                bodies.insert(*version, self.layout.steps.len());
                self.part(subsection, *version, &inside, true)?;
                self.push(Step::Goto(probe))?;
            }
            // Of two that share a name, the first is found.
            all.entry((&*subsection.name).into()).or_insert(Known { oldest, newest, bodies });
        }
        if let Some(Step::Probe { known, .. }) = self.layout.steps.get_mut(probe) {
            *known = all;
        }
        self.land(probe);
        self.keep_until_here(probe);
        Ok(())
    }

    /// What a reader's device is asked in a load of `description`.
    fn rely_on_hooks(&mut self, description: &Description) -> Result<(), TooLarge> {
        if self.sent.is_none() {
            return Ok(());
        }
        let Description { name, hooks, .. } = description;
        let relied = &mut self.layout.relied;
        let Some(hooks) = hooks else {
            if !relied.unsaid.contains(&**name) {
                relied.unsaid.insert(name.to_string());
            }
            return Ok(());
        };
        for hook in hooks.iter() {
            self.budget.step(hook.len() + name.len())?;
            relied.hooks.insert(format!("{} of {}", &**hook, &**name));
        }
        Ok(())
    }

    fn field(&mut self, of: &Description, field: &Field, version: u32, place: &Place) -> Result<(), TooLarge> {
        let before = self.layout.steps.len();
        self.presence(of, field, version, place)?;
        let is_value = |step: &Step| matches!(step, Step::Item { .. } | Step::Custom { .. });
        let length = self.parts.last_mut().and_then(|part| part.lengths.get_mut(&*field.name));
        if let Some(length) = length {
            let value = self.layout.steps.iter().skip(before).position(is_value);
            if let (At::Absent, Some(index)) = (length.at, value) {
                length.at = At::Step(before + index);
            }
        }
        Ok(())
    }

    fn presence(&mut self, of: &Description, field: &Field, version: u32, place: &Place) -> Result<(), TooLarge> {
        match &field.presence {
            Presence::Since(since) if *since > version => Ok(()),
            Presence::Since(_) => self.content(of, field, place),
            Presence::If(_) if field.kind == Kind::Check => {
                if self.sent.is_some() {
                    self.layout.relied.hooks.insert(format!("the check {} of {}", &*field.name, &*of.name));
                }
                Ok(())
            }
            Presence::If(predicate) => {
                self.budget.step(predicate.len())?;
                let subject = match predicate.is_empty() {
                    true => Subject::Unnamed(place.path.to_string()),
                    false => Subject::Predicate(format!("{}{}", &**predicate, place.scope)),
                };
                let subject = self.subject(subject, place);
                let jump = self.push(Step::Unless { subject, to: 0 })?;
                self.content(of, field, place)?;
                self.land(jump);
                Ok(())
            }
        }
    }

    /// The field's bytes, and what decides about them beside its kind.
    fn content(&mut self, of: &Description, field: &Field, place: &Place) -> Result<(), TooLarge> {
        if let (Some(conversion), Some(_), false) =
            (&field.conversion, self.sent, matches!(field.kind, Kind::Custom(_)))
        {
            self.layout.relied.hooks.insert(format!("{} of {}", &**conversion, shared_name(&place.path)));
        }
        let bound = match &field.count {
            Some(count) => self.bound(count, place),
            None => {
                if of.hooks.is_none() && field.kind.is_counted() {
                    self.layout.relied.counts.insert(shared_name(&place.path));
                }
                None
            }
        };
        self.counted_kind(&field.kind, bound, place)
    }

    /// What `count` says, if it is known where the length is.
    fn bound(&mut self, count: &Count, place: &Place) -> Option<Bound> {
        let (factor, most) = (count.factor as u64, count.most as u64);
        if count.by_room {
            self.layout.relied.configuration.insert(format!("room of {}", shared_name(&place.path)));
        }
        let (length, highest) = match &count.length {
            None => (Length::Itself, u64::MAX),
            Some(schema::Length::Machine(name)) => {
                (Length::Machine(self.parts.last()?.place.field(name).path), u64::MAX)
            }
            Some(schema::Length::Field(name)) => match lengths::find(&self.parts, name) {
                Some((_, Value { highest, at: At::Step(step) })) => (Length::Step(step), highest),
                Some((of, Value { highest, at: At::Absent })) => (Length::Absent(of.field(name).path), highest),
                Some((_, Value { at: At::Unclear, .. })) | None => {
                    self.layout.relied.counts.insert(shared_name(&place.path));
                    return None;
                }
            },
        };
        if let Length::Step(step) = length {
            self.layout.lengths.insert(step, self.layout.steps.len());
        }
        Some(Bound { length, factor, most, highest: highest.saturating_mul(factor) })
    }

    fn kind(&mut self, kind: &Kind, place: &Place) -> Result<(), TooLarge> {
        self.counted_kind(kind, None, place)
    }

    /// What the bytes are, of as many elements as `bound` says.
    fn counted_kind(&mut self, kind: &Kind, bound: Option<Bound>, place: &Place) -> Result<(), TooLarge> {
        if let Some(item) = Item::of(kind) {
            return self.item(item, place);
        }
        match kind {
            Kind::Struct(nested) | Kind::Temporary(nested) => self.structure(nested, nested.version, place),
            Kind::StructAt(nested, version) => self.struct_at(nested, *version, place),
            Kind::Array(element, count) => self.array(element, *count, place),
            Kind::CountedArray(element) => {
                self.counted(Framing::Count, bound, place, |builder, inside| builder.kind(element, inside))
            }
            Kind::CountedBuffer => {
                self.counted(Framing::Count, bound, place, |builder, inside| builder.item(Item::raw_byte(), inside))
            }
            Kind::CountedBitmap => {
                self.counted(Framing::Bits, bound, place, |builder, inside| builder.item(Item::words(1), inside))
            }
            Kind::List(element) => {
                self.counted(Framing::List, bound, place, |builder, inside| builder.kind(element, inside))
            }
            Kind::Map(key, value) => {
                self.layout.relied.orders.insert(shared_name(&place.path));
                self.counted(Framing::Map, bound, place, |builder, inside| {
                    builder.kind(key, &Place { in_key: true, ..inside.field("key") })?;
                    builder.kind(value, inside)
                })
            }
            Kind::Nullable(inner) => {
                let null = self.subject(Subject::Null(place.path.to_string()), place);
                let jump = self.push(Step::Pointer { null, path: place.path.clone(), end: 0 })?;
                self.kind(inner, place)?;
                self.land(jump);
                Ok(())
            }
            Kind::Custom(codec) => {
                self.budget.step(codec.len())?;
                let by_size = json::opaque_size(kind).is_some();
                self.push(Step::Custom { codec: codec.to_string(), by_size, path: place.path.clone() }).map(drop)
            }
            Kind::Bitmap(bits) => {
                let words = bits / 64;
                self.item(Item::words(words as u64), place)?;
                let last = if words == 0 { place.clone() } else { place.element(words) };
                self.item(Item::last_word(bits % 64), &last)
            }
            Kind::Limited(inner, _) => self.kind(inner, place),
            // The others are items.
            _ => Ok(()),
        }
    }

    fn struct_at(&mut self, nested: &Description, version: u32, place: &Place) -> Result<(), TooLarge> {
        let (newest, oldest) = (nested.version, nested.minimum_version);
        let reason = match version {
            _ if version > newest => Some(Reason::TooNew { version, newest }),
            _ if version < oldest => Some(Reason::TooOld { version, oldest }),
            _ => None,
        };
        if let (Some(reason), true) = (reason, self.sent.is_some()) {
            self.push(Step::Refuse { path: place.path.clone(), reason })?;
        }
        self.structure(nested, version, place)
    }

    fn array(&mut self, element: &Kind, count: usize, place: &Place) -> Result<(), TooLarge> {
        for index in 0..count {
            self.budget.step(place.path.len() + place.scope.len())?;
            let before = self.layout.steps.len();
            self.kind(element, &place.element(index))?;
            if self.layout.steps.len() == before {
                // No element has bytes.
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
        framing: Framing,
        bound: Option<Bound>,
        place: &Place,
        body: impl FnOnce(&mut Self, &Place) -> Result<(), TooLarge>,
    ) -> Result<(), TooLarge> {
        self.budget.step(place.path.len() + place.scope.len())?;
        let inside = place.counted();
        let elements = self.subject(Subject::Elements(place.path.to_string()), place);
        let head = self.push(Step::Loop { elements, framing, bound, path: place.path.clone(), end: 0 })?;
        body(self, &inside)?;
        self.push(Step::LoopEnd { head, depth: inside.depth, path: place.path.clone() })?;
        self.land(head);
        self.keep_until_here(head);
        Ok(())
    }
}
