//! A description's program unrolled at one version into steps with jumps: the byte sequences that a writer may send, or a reader
//! accepts.
//!
//! Names are ignored, except where the wire or an assumption shows them: subsections, predicates, codecs.

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
    /// A number of bytes of one meaning.
    Item { item: Item, path: Rc<str> },
    /// Jumps to `to` unless the subject holds.
    Unless { subject: Id, to: usize },
    /// Jumps to `to` unless the item at step `tag` has this number.
    Variant { tag: usize, number: i128, to: usize },
    /// A pointer: one byte `30` if it is null, then continues at `end`.
    Pointer { null: Id, path: Rc<str>, end: usize },
    /// Elements up to `end`; `bound` limits their number if it is known.
    Loop { elements: Id, counting: Counting, bound: Option<Bound>, path: Rc<str>, end: usize },
    /// The end of an element of the `Loop` at `head`: another element follows, or none. `depth` is the loop's number of enclosing
    /// loops.
    LoopEnd { head: usize, depth: usize, path: Rc<str> },
    /// The bytes of a hand-written codec, or of a field whose size is unknown.
    Custom { codec: String, by_size: bool, path: Rc<str> },
    /// The header of a subsection that is written.
    Header { name: Rc<str>, version: u32 },
    /// The reader's probe for subsections after the fields of `parent`.
    Probe { parent: Rc<str>, known: BTreeMap<Rc<str>, Known>, end: usize },
    /// Jumps.
    Goto(usize),
    /// The reader stops with an error.
    Refuse { path: Rc<str>, reason: Reason },
}

impl Step {
    /// The subject that decides where the step continues.
    pub(super) const fn subject(&self) -> Option<Id> {
        match self {
            Self::Unless { subject, .. }
            | Self::Loop { elements: subject, .. }
            | Self::Pointer { null: subject, .. } => Some(*subject),
            _ => None,
        }
    }

    /// The step's field, or a subsection's name.
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

/// The number of elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) length: CountedBy,
    /// Number of elements for each unit of the length.
    pub(super) factor: u64,
    /// The most elements that a save sends and a load accepts.
    pub(super) most: u64,
    /// The most elements that the possible values of the length allow.
    pub(super) highest: u64,
}

/// The source of the number of elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CountedBy {
    /// The bytes of the elements themselves.
    Itself,
    /// The value at this step.
    Step(usize),
    /// A field that only streams of other versions have.
    Absent(Rc<str>),
    /// The machine's configuration.
    Machine(Rc<str>),
}

/// How the number of elements is encoded: only equal encodings match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// The elements alone.
    Elements,
    /// Words, whose number follows from a number of bits.
    Bits,
    /// A byte before each element and one after the last.
    List,
    /// As a list, after the number of entries.
    Map,
}

impl Counting {
    /// True if the encoding has bytes even without elements.
    pub(super) const fn has_marks(self) -> bool {
        matches!(self, Self::List | Self::Map)
    }
}

/// A subsection that a reader supports.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) oldest: u32,
    pub(super) newest: u32,
    /// The first step of its fields, for each version that may arrive.
    pub(super) bodies: BTreeMap<u32, usize>,
}

#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) steps: Vec<Step>,
    /// The last step that uses each subject.
    pub(super) last_use: BTreeMap<Id, usize>,
    /// For each subject that is decided inside of loops, the number of enclosing loops.
    pub(super) depths: BTreeMap<Id, usize>,
    /// The outcomes of each named predicate, one for each field with its struct, in wire order.
    pub(super) asked: BTreeMap<Predicate, Vec<Id>>,
    /// Outcomes that the writer's layout has at another path, with the reader's outcomes.
    pub(super) paired: BTreeMap<Id, Id>,
    /// Steps whose values are lengths, each with the last step that uses it.
    pub(super) lengths: BTreeMap<usize, usize>,
    /// Steps whose numbers decide which fields follow.
    pub(super) tags: BTreeMap<usize, Tag>,
    /// The container of each step.
    pub(super) around: Vec<Around>,
    /// What loads assume, besides the bytes.
    pub(super) assumed: Assumed,
}

impl Layout {
    /// The container of a field.
    pub(super) fn around(&self, field: &str) -> Around {
        let at = self.steps.iter().position(|step| step.place() == field);
        at.and_then(|at| self.around.get(at)).copied().unwrap_or(Around::Versioned)
    }
}

/// What contains a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Around {
    /// The section or a subsection, whose version is in the stream.
    Versioned,
    /// A nested struct.
    Nested,
    /// A variant of an enum.
    Variant,
}

/// The subsections that a writer may send, with their versions.
pub(super) type Sent = BTreeMap<String, BTreeSet<u32>>;
