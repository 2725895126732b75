//! A description's program unrolled at one version, as steps with jumps: what a writer may send, or a reader may take.
//!
//! Names do not matter here, except where the wire or an assumption shows them: subsections, predicates, codecs.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::asked::Predicate;
use super::assumption::Assumed;
use super::item::Item;
use super::subjects::Id;
use super::tags::Tag;
use super::verdict::Reason;

#[derive(Debug)]
pub(super) enum Step {
    /// This many bytes of one meaning.
    Item { item: Item, path: Rc<str> },
    /// Goes to `to` unless the subject holds.
    Unless { subject: Id, to: usize },
    /// Goes to `to` unless the number of the item at step `tag` is this one.
    Variant { tag: usize, number: i128, to: usize },
    /// A pointer: one byte `30` if it is null, then on at `end`.
    Pointer { null: Id, path: Rc<str>, end: usize },
    /// Elements up to `end`; `bound` if it is known how many.
    Loop { elements: Id, counting: Counting, bound: Option<Bound>, path: Rc<str>, end: usize },
    /// Behind an element of the `Loop` at `head`: another, or no more. `depth` is that of the loop, of how many around it.
    LoopEnd { head: usize, depth: usize, path: Rc<str> },
    /// A hand-written codec's bytes, or those of a field of which not even the size is known.
    Custom { codec: String, by_size: bool, path: Rc<str> },
    /// A subsection's header, written.
    Header { name: Rc<str>, version: u32 },
    /// The look for subsections behind the fields of `parent`.
    Probe { parent: Rc<str>, known: BTreeMap<Rc<str>, Known>, end: usize },
    /// Goes on elsewhere.
    Goto(usize),
    /// No reader gets beyond.
    Refuse { path: Rc<str>, reason: Reason },
}

impl Step {
    /// What decides where it goes on.
    pub(super) const fn subject(&self) -> Option<Id> {
        match self {
            Self::Unless { subject, .. }
            | Self::Loop { elements: subject, .. }
            | Self::Pointer { null: subject, .. } => Some(*subject),
            _ => None,
        }
    }

    /// Its field; a subsection's name.
    pub(super) fn place(&self) -> &str {
        match self {
            Self::Item { path, .. }
            | Self::Pointer { path, .. }
            | Self::Loop { path, .. }
            | Self::LoopEnd { path, .. }
            | Self::Custom { path, .. }
            | Self::Refuse { path, .. }
            | Self::Header { name: path, .. }
            | Self::Probe { parent: path, .. } => path,
            Self::Unless { .. } | Self::Variant { .. } | Self::Goto(_) => "",
        }
    }
}

/// How many elements there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) length: CountedBy,
    /// Elements for each that the length counts.
    pub(super) factor: u64,
    /// A save sends no more, and a load takes no more.
    pub(super) most: u64,
    /// The values that the length can have lead to no more.
    pub(super) highest: u64,
}

/// What says how many elements there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CountedBy {
    /// The elements' own bytes.
    Itself,
    /// The value at this step.
    Step(usize),
    /// A field that streams of other versions have.
    Absent(Rc<str>),
    /// The machine's configuration.
    Machine(Rc<str>),
}

/// How a number of elements is on the wire: only the same ways go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// Only elements.
    Elements,
    /// Words, of which a number of bits says how many.
    Bits,
    /// A byte before each element and behind the last.
    List,
    /// As a list, behind a number of entries.
    Map,
}

impl Counting {
    /// True if there are bytes even without elements.
    pub(super) const fn has_marks(self) -> bool {
        matches!(self, Self::List | Self::Map)
    }
}

/// A subsection that a reader knows.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) oldest: u32,
    pub(super) newest: u32,
    /// Where its fields begin, for each version that may come.
    pub(super) bodies: BTreeMap<u32, usize>,
}

#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) steps: Vec<Step>,
    /// Behind this step, nobody asks for the subject any more.
    pub(super) last_use: BTreeMap<Id, usize>,
    /// Which subjects were decided inside of loops, and of how many.
    pub(super) depths: BTreeMap<Id, usize>,
    /// The outcomes of each named predicate, one for each field that holds its struct, in wire order.
    pub(super) asked: BTreeMap<Predicate, Vec<Id>>,
    /// Outcomes that the writer's layout has at another path, and what they were at the reader's.
    pub(super) paired: BTreeMap<Id, Id>,
    /// Steps whose values are lengths; behind the second step nobody asks for them any more.
    pub(super) lengths: BTreeMap<usize, usize>,
    /// Steps whose numbers decide which fields follow.
    pub(super) tags: BTreeMap<usize, Tag>,
    /// What each step is inside of.
    pub(super) around: Vec<Around>,
    /// What its loads ask, beside the bytes.
    pub(super) assumed: Assumed,
}

impl Layout {
    /// What the field is in.
    pub(super) fn around(&self, field: &str) -> Around {
        let at = self.steps.iter().position(|step| step.place() == field);
        at.and_then(|at| self.around.get(at)).copied().unwrap_or(Around::Versioned)
    }
}

/// What the fields are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Around {
    /// The section or a subsection, whose version is in the stream.
    Versioned,
    /// A nested struct.
    Nested,
    /// A variant of an enum.
    Variant,
}

/// Which subsections a writer may send, and at which versions.
pub(super) type Sent = BTreeMap<String, BTreeSet<u32>>;
