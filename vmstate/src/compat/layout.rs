//! A description as a small program over wire items: what a writer may send at one version, or a reader may take.
//!
//! Names do not matter here, except where the wire or an assumption shows them: subsections, predicates, codecs.

use std::collections::{BTreeMap, BTreeSet};

use super::verdict::Subject;
use crate::schema::{Description, Field, Kind, Presence};

/// More steps than this are not compared.
const MAX_STEPS: usize = 1 << 16;
/// Nor those whose paths and names have more bytes, as when a long name is in each element of a long array.
const MAX_TEXT: usize = 64 << 20;

/// What the bytes of an item mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Bool,
    Unsigned(u8),
    Signed(u8),
    Raw,
    Unused,
}

impl Meaning {
    /// Bytes of one integer, `None` if the bytes stand for themselves.
    pub(super) fn width(self) -> Option<u64> {
        match self {
            Self::Bool => Some(1),
            Self::Unsigned(width) | Self::Signed(width) => Some(u64::from(width)),
            Self::Raw | Self::Unused => None,
        }
    }
}

#[derive(Debug)]
pub(super) enum Step {
    /// So many bytes of one meaning: one integer or an array of them.
    Item { meaning: Meaning, bytes: u64, path: String },
    /// Goes to `to` unless the subject holds.
    Unless { subject: Subject, to: usize },
    /// Elements up to `end`, as many as a length says.
    Loop { subject: Subject, path: String, end: usize },
    /// Behind an element of the `Loop` at `head`: another, or no more. `scope` is in the names of all subjects inside.
    LoopEnd { head: usize, scope: String, path: String },
    /// A hand-written codec's bytes.
    Custom { codec: String, path: String },
    /// A subsection's header, written.
    Header { name: String, version: u32 },
    /// The look for subsections behind the fields of `parent`.
    Probe { parent: String, known: Vec<Known>, end: usize },
    /// Goes on elsewhere.
    Goto(usize),
}

impl Step {
    /// Bytes of its paths and names.
    fn text(&self) -> usize {
        match self {
            Self::Item { path, .. } => path.len(),
            Self::Unless { subject, .. } => subject.text().len(),
            Self::Loop { subject, path, .. } => subject.text().len() + path.len(),
            Self::LoopEnd { scope, path, .. } => scope.len() + path.len(),
            Self::Custom { codec, path } => codec.len() + path.len(),
            Self::Header { name, .. } => name.len(),
            Self::Probe { parent, known, .. } => {
                parent.len() + known.iter().map(|known| known.name.len()).sum::<usize>()
            }
            Self::Goto(_) => 0,
        }
    }
}

/// A subsection that a reader knows.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) oldest: u32,
    pub(super) newest: u32,
    /// Where its fields begin, for each version that may come.
    pub(super) bodies: BTreeMap<u32, usize>,
}

#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) steps: Vec<Step>,
    /// Behind this step, nobody asks for the subject any more.
    pub(super) last_use: BTreeMap<Subject, usize>,
}

/// The description needs too many steps to be compared.
#[derive(Debug)]
pub(super) struct TooLarge;

/// Which subsections a writer may send, and at which version.
pub(super) type Sent = BTreeSet<(String, u32)>;

impl Layout {
    /// What `description` writes at `version`.
    pub(super) fn written(description: &Description, version: u32) -> Result<Self, TooLarge> {
        Self::of(description, version, None)
    }

    /// What `description` takes at `version` from a writer of these subsections.
    pub(super) fn read(description: &Description, version: u32, sent: &Sent) -> Result<Self, TooLarge> {
        Self::of(description, version, Some(sent))
    }

    fn of(description: &Description, version: u32, sent: Option<&Sent>) -> Result<Self, TooLarge> {
        let mut builder = Builder { layout: Self::default(), text: 0, sent };
        builder.description(description, version, &Place::default())?;
        Ok(builder.layout)
    }
}

/// All subsections in `description`, also those of nested structs.
pub(super) fn subsections(description: &Description, into: &mut Sent) {
    for subsection in description.subsections.iter() {
        into.insert((subsection.name.to_string(), subsection.version));
        subsections(subsection, into);
    }
    for field in description.fields.iter() {
        inside(&field.kind, into);
    }
}

fn inside(kind: &Kind, into: &mut Sent) {
    match kind {
        Kind::Struct(nested) | Kind::StructAt(nested, _) | Kind::Temporary(nested) => subsections(nested, into),
        Kind::Array(element, _) | Kind::CountedArray(element) | Kind::List(element) | Kind::Nullable(element) => {
            inside(element, into);
        }
        Kind::Map(key, value) => {
            inside(key, into);
            inside(value, into);
        }
        _ => {}
    }
}

/// Where in the description: the field's path, and the array elements on the way.
#[derive(Clone, Default)]
struct Place {
    path: String,
    scope: String,
}

impl Place {
    fn field(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { path, scope: self.scope.clone() }
    }

    fn element(&self, index: &str) -> Self {
        Self { path: format!("{}[{index}]", self.path), scope: format!("{}[{index}]", self.scope) }
    }
}

struct Builder<'a> {
    layout: Layout,
    /// Bytes of text in `layout`.
    text: usize,
    sent: Option<&'a Sent>,
}

impl Builder<'_> {
    fn push(&mut self, step: Step) -> Result<usize, TooLarge> {
        let at = self.layout.steps.len();
        self.text = self.text.saturating_add(step.text());
        if at >= MAX_STEPS || self.text > MAX_TEXT {
            return Err(TooLarge);
        }
        if let Step::Unless { subject, .. } | Step::Loop { subject, .. } = &step {
            self.layout.last_use.insert(subject.clone(), at);
        }
        self.layout.steps.push(step);
        Ok(at)
    }

    /// Lets the jump at `at` lead to here.
    fn land(&mut self, at: usize) {
        let here = self.layout.steps.len();
        if let Some(
            Step::Unless { to: target, .. } | Step::Loop { end: target, .. } | Step::Probe { end: target, .. },
        ) = self.layout.steps.get_mut(at)
        {
            *target = here;
        }
    }

    /// What is asked since `start` may be asked again until here: the steps between are not taken in order.
    fn keep_until_here(&mut self, start: usize) {
        let here = self.layout.steps.len();
        self.layout.last_use.values_mut().filter(|last| **last >= start).for_each(|last| *last = here);
    }

    fn description(&mut self, description: &Description, version: u32, place: &Place) -> Result<(), TooLarge> {
        for field in description.fields.iter() {
            self.field(field, version, place)?;
        }
        match self.sent {
            None => self.send_subsections(description, place),
            Some(sent) => self.take_subsections(description, sent, place),
        }
    }

    fn send_subsections(&mut self, description: &Description, place: &Place) -> Result<(), TooLarge> {
        for subsection in description.subsections.iter() {
            let subject = Subject::Subsection(format!("{}{}", &*subsection.name, place.scope));
            let jump = self.push(Step::Unless { subject, to: 0 })?;
            self.push(Step::Header { name: subsection.name.to_string(), version: subsection.version })?;
            let inside = Place { path: subsection.name.to_string(), scope: place.scope.clone() };
            self.description(subsection, subsection.version, &inside)?;
            self.land(jump);
        }
        Ok(())
    }

    fn take_subsections(&mut self, parent: &Description, sent: &Sent, place: &Place) -> Result<(), TooLarge> {
        let known = parent.subsections.iter().map(|subsection| Known {
            name: subsection.name.to_string(),
            oldest: subsection.minimum_version,
            newest: subsection.version,
            bodies: BTreeMap::new(),
        });
        let probe = self.push(Step::Probe { parent: parent.name.to_string(), known: known.collect(), end: 0 })?;
        for (index, subsection) in parent.subsections.iter().enumerate() {
            let (oldest, newest) = (subsection.minimum_version, subsection.version);
            let mut bodies = BTreeMap::new();
            let versions = sent.iter().filter(|(name, _)| **name == *subsection.name).map(|(_, version)| *version);
            for version in versions.filter(|version| (oldest..=newest).contains(version)) {
                bodies.insert(version, self.layout.steps.len());
                let inside = Place { path: subsection.name.to_string(), scope: place.scope.clone() };
                self.description(subsection, version, &inside)?;
                self.push(Step::Goto(probe))?;
            }
            if let Some(Step::Probe { known, .. }) = self.layout.steps.get_mut(probe)
                && let Some(known) = known.get_mut(index)
            {
                known.bodies = bodies;
            }
        }
        self.land(probe);
        // Without bodies there is nothing to keep, and a long array would look in vain once for each element.
        if self.layout.steps.len() > probe + 1 {
            self.keep_until_here(probe);
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, version: u32, place: &Place) -> Result<(), TooLarge> {
        let inside = place.field(&field.name);
        match &field.presence {
            Presence::Since(since) if *since > version => Ok(()),
            Presence::Since(_) => self.kind(&field.kind, &inside),
            Presence::If(_) if field.kind == Kind::Check => Ok(()),
            Presence::If(predicate) => {
                let subject = Subject::Predicate(format!("{}{}", &**predicate, place.scope));
                let jump = self.push(Step::Unless { subject, to: 0 })?;
                self.kind(&field.kind, &inside)?;
                self.land(jump);
                Ok(())
            }
        }
    }

    fn kind(&mut self, kind: &Kind, place: &Place) -> Result<(), TooLarge> {
        match kind {
            Kind::Check => Ok(()),
            Kind::Struct(nested) | Kind::Temporary(nested) => self.description(nested, nested.version, place),
            Kind::Array(element, count) => match item(element) {
                Some((meaning, bytes)) => self.item(meaning, bytes.saturating_mul(*count as u64), place),
                None => (0..*count).try_for_each(|index| {
                    let before = self.layout.steps.len();
                    self.kind(element, &place.element(&index.to_string()))?;
                    // Elements without bytes must not make a long array take long.
                    if self.layout.steps.len() == before && index > MAX_STEPS { Err(TooLarge) } else { Ok(()) }
                }),
            },
            Kind::CountedArray(element) => self.counted(place, |builder, inside| builder.kind(element, inside)),
            Kind::CountedBuffer => self.counted(place, |builder, inside| builder.item(Meaning::Raw, 1, inside)),
            Kind::Limited(inner, _) => self.kind(inner, place),
            Kind::StructAt(nested, version) => self.description(nested, *version, place),
            Kind::CountedBitmap => self.counted(place, |builder, inside| builder.item(Meaning::Unsigned(8), 8, inside)),
            Kind::List(_) | Kind::Map(..) | Kind::Nullable(_) => {
                self.push(Step::Custom { codec: format!("{kind:?}"), path: place.path.clone() }).map(drop)
            }
            Kind::Custom(codec) => {
                self.push(Step::Custom { codec: codec.to_string(), path: place.path.clone() }).map(drop)
            }
            Kind::Bool
            | Kind::Unsigned(_)
            | Kind::Signed(_)
            | Kind::Timer
            | Kind::Double
            | Kind::Bitmap(_)
            | Kind::Buffer(_)
            | Kind::Unused(_) => match item(kind) {
                Some((meaning, bytes)) => self.item(meaning, bytes, place),
                None => Ok(()),
            },
        }
    }

    fn item(&mut self, meaning: Meaning, bytes: u64, place: &Place) -> Result<(), TooLarge> {
        if bytes == 0 {
            return Ok(());
        }
        self.push(Step::Item { meaning, bytes, path: place.path.clone() }).map(drop)
    }

    fn counted(
        &mut self,
        place: &Place,
        body: impl FnOnce(&mut Self, &Place) -> Result<(), TooLarge>,
    ) -> Result<(), TooLarge> {
        let inside = Place { scope: format!("{} of {}", place.scope, place.path), path: format!("{}[]", place.path) };
        let subject = Subject::Elements(place.path.clone());
        let path = place.path.clone();
        let head = self.push(Step::Loop { subject, path, end: 0 })?;
        body(self, &inside)?;
        if self.layout.steps.len() == head + 1 {
            // Elements without bytes: however many, they are not on the wire.
            self.layout.steps.pop();
            return Ok(());
        }
        self.push(Step::LoopEnd { head, scope: inside.scope, path: place.path.clone() })?;
        self.land(head);
        self.keep_until_here(head);
        Ok(())
    }
}

/// Kinds whose bytes are of one meaning throughout.
fn item(kind: &Kind) -> Option<(Meaning, u64)> {
    Some(match kind {
        Kind::Bool => (Meaning::Bool, 1),
        Kind::Unsigned(width) => (Meaning::Unsigned(*width), u64::from(*width)),
        Kind::Signed(width) => (Meaning::Signed(*width), u64::from(*width)),
        Kind::Limited(inner, _) => item(inner)?,
        Kind::Timer => (Meaning::Signed(8), 8),
        Kind::Double => (Meaning::Unsigned(8), 8),
        Kind::Bitmap(bits) => (Meaning::Unsigned(8), (*bits as u64).div_ceil(64) * 8),
        Kind::Buffer(bytes) => (Meaning::Raw, *bytes as u64),
        Kind::Unused(bytes) => (Meaning::Unused, *bytes as u64),
        Kind::Array(element, count) => {
            let (meaning, bytes) = item(element)?;
            (meaning, bytes.saturating_mul(*count as u64))
        }
        _ => return None,
    })
}
