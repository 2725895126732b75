//! Verdicts as data.

use serde::Serialize;

use super::values::Values;

/// The verdicts on one section in two releases.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SectionReport {
    /// Name of the section.
    pub section: String,
    /// One verdict for each direction and each version that one side may send to the other.
    pub comparisons: Vec<Comparison>,
}

impl SectionReport {
    /// True if nothing can break. Conditional verdicts count as broken only if `strict`; sections that could not be compared
    /// always do.
    pub fn is_compatible(&self, strict: bool) -> bool {
        self.comparisons.iter().all(|comparison| match comparison.verdict {
            Verdict::Loads => true,
            Verdict::LoadsIf(_) => !strict,
            Verdict::Breaks(_) | Verdict::NotCompared(_) => false,
        })
    }

    /// True if all streams load in both directions, without warnings or assumptions.
    pub fn is_plain(&self) -> bool {
        self.comparisons.iter().all(Comparison::is_plain)
    }
}

/// The verdict on streams of one release, written at one version, in the other release.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// Which release writes and which reads.
    pub direction: Direction,
    /// Version in the stream.
    pub version: u32,
    /// Whether the stream loads.
    pub verdict: Verdict,
    /// Values that load with another meaning.
    pub warnings: Vec<Warning>,
    /// Assumptions of the verdict, which the descriptions do not show.
    pub relies_on: Vec<Assumption>,
}

impl Comparison {
    /// A comparison with a verdict only.
    pub(super) fn of(direction: Direction, version: u32, verdict: Verdict) -> Self {
        Self { direction, version, verdict, warnings: Vec::new(), relies_on: Vec::new() }
    }

    /// True if the stream loads, without warnings or assumptions.
    pub fn is_plain(&self) -> bool {
        self.verdict == Verdict::Loads && self.warnings.is_empty()
    }
}

/// Which release wrote and which reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// An old stream in new code.
    OldToNew,
    /// A new stream in old code.
    NewToOld,
}

/// Whether a stream loads.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Always.
    Loads,
    /// Except in these cases.
    LoadsIf(Vec<Case>),
    /// Never.
    Breaks(Break),
    /// Unknown: the descriptions cannot be compared.
    NotCompared(Break),
}

/// A case in which a load breaks.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Case {
    /// The conditions, which hold together.
    pub when: Vec<Condition>,
    /// The break in this case.
    pub breaks: Break,
}

/// A subject that is decided at run time, with its outcome.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Condition {
    /// The subject.
    pub subject: Subject,
    /// The outcome.
    pub holds: bool,
}

/// A property that is decided at run time. The same subject has the same outcome on both sides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The outcome of a predicate, by name; in a nested struct with the struct's path: `is_open of lanes[2]`, with `[]` for the
    /// elements of a counted array.
    Predicate(String),
    /// The outcome of a predicate without a name, by its field.
    Unnamed(String),
    /// A subsection is sent (its `needed` holds).
    Subsection(String),
    /// The section is sent.
    Section(String),
    /// The counted field has elements.
    Elements(String),
    /// The counted field has at most this many elements.
    Count {
        /// The field.
        field: String,
        /// The most elements that the reader accepts.
        most: u64,
    },
    /// The pointer is null.
    Null(String),
    /// The value of the field is one that the reader accepts.
    Value {
        /// The field.
        field: String,
        /// Values that the writer may send and the reader accepts.
        taken: Values,
        /// Values that the writer may send and the reader refuses.
        refused: Values,
    },
    /// Both machines are configured to have the same value in this field.
    Configuration(String),
}

/// The place and the reason of a break, and how to avoid it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Break {
    /// Path of the field, or name of the subsection or section.
    pub field: String,
    /// The reason.
    pub reason: Reason,
    /// The advice.
    pub remedy: &'static str,
}

/// Why a load breaks.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The version is above the reader's newest.
    TooNew {
        /// Version in the stream.
        version: u32,
        /// Newest version that the reader supports.
        newest: u32,
    },
    /// The version is below the reader's oldest.
    TooOld {
        /// Version in the stream.
        version: u32,
        /// Oldest version that the reader accepts.
        oldest: u32,
    },
    /// The reader expects a field that the stream does not have.
    NotSent,
    /// The stream has a field that the reader does not expect.
    NotRead,
    /// The writer's field and the reader's begin or end in different places.
    OtherItem {
        /// The field in the stream.
        written: String,
        /// The field that the reader expects.
        read: String,
    },
    /// One side has a variable number of elements, the other a fixed number, or elements of another layout.
    OtherCount,
    /// The two sides count the elements by the values of different fields.
    OtherLength,
    /// The field with the number of elements is not in the stream: the reader uses the value of its machine.
    LengthNotSent,
    /// The reader accepts fewer elements than the writer may send.
    TooMany {
        /// The most elements that the reader accepts.
        most: u64,
    },
    /// The reader has the keys of the map in another order.
    OtherOrder,
    /// Only one side has a hand-written codec, or the two codecs differ.
    OtherCodec,
    /// The reader does not support the subsection.
    UnknownSubsection,
    /// The reader does not accept all values that the writer may send.
    NotTaken {
        /// Values that the reader accepts.
        taken: String,
    },
    /// The reader accepts only the value that its machine is configured to have.
    NotConfigured {
        /// Values that the reader accepts.
        taken: String,
    },
    /// The pointer may be null on one side only.
    NotNullable,
    /// The schema states different versions for the section and for its description.
    Contradiction {
        /// Newest version of the section.
        section: u32,
        /// Newest version of the description.
        description: u32,
    },
    /// The layouts are too large to be compared.
    TooLarge,
    /// A probe for subsections may mistake other bytes for a subsection of that struct.
    Ambiguous,
    /// The reader has no such section.
    NoSection,
    /// The reader requires the section.
    Missing,
}

/// Bytes that load, but may have another meaning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Warning {
    /// The writer's field.
    pub written: String,
    /// The reader's field.
    pub read: String,
    /// The difference.
    pub difference: Difference,
}

/// How the same bytes differ in meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Difference {
    /// Signed on one side, unsigned on the other; or a bool on one side, a number on the other.
    Sign,
    /// A timer, double or bitmap on one side, something else on the other.
    Meaning,
    /// Integers on one side, raw bytes on the other.
    Raw,
    /// The writer sends padding: the reader gets zero.
    ReadsZero,
    /// The reader skips the value.
    Dropped,
}

/// A property that a verdict assumes without proof.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Assumption {
    /// The hand-written codec of this name reads the bytes that it wrote.
    Codec(String),
    /// The reader's own functions, which these attributes name, accept the values.
    Hooks(Vec<String>),
    /// The predicates of these names have the same outcome and meaning on both sides. `is_open of a and is_open of b` concerns a
    /// struct that is `a` in the writer and `b` in the reader.
    Outcomes(Vec<String>),
    /// Both machines have the same configuration of these: values, lengths, null pointers, room for elements.
    Configuration(Vec<String>),
    /// The keys of these maps have the same order on both sides: a type can have an order of its own.
    Orders(Vec<String>),
    /// These fields may have equally many elements on both sides, counted by the same field: an old or hand-made description does
    /// not say.
    Counts(Vec<String>),
    /// The hooks and conversions of these structs accept the values: their description does not list them.
    Unsaid(Vec<String>),
    /// The predicates of these fields, which have no name, have the same outcome on both sides.
    Predicates(Vec<String>),
    /// These fields of the writer have the meaning that the reader expects: a dump of QEMU only shows their size, and that in the
    /// memory of its host.
    Sizes(Vec<String>),
}
