//! Verdicts as data.

use serde::Serialize;

use super::values::Values;

/// What is known about one section in two releases.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SectionReport {
    /// The section.
    pub section: String,
    /// One verdict for each direction and each version that one side may send to the other.
    pub comparisons: Vec<Comparison>,
}

impl SectionReport {
    /// True if nothing can break; conditional verdicts count as broken only if `strict`, what could not be compared
    /// always does.
    pub fn is_compatible(&self, strict: bool) -> bool {
        self.comparisons.iter().all(|comparison| match comparison.verdict {
            Verdict::Loads => true,
            Verdict::LoadsIf(_) => !strict,
            Verdict::Breaks(_) | Verdict::NotCompared(_) => false,
        })
    }

    /// True if there is no more to say than that all streams load, both ways.
    pub fn is_plain(&self) -> bool {
        self.comparisons.iter().all(Comparison::is_plain)
    }
}

/// Streams of one release, written at one version, in the code of the other.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// Which release writes and which reads.
    pub direction: Direction,
    /// Version that the stream says.
    pub version: u32,
    /// Whether it loads.
    pub verdict: Verdict,
    /// What loads with another meaning.
    pub warnings: Vec<Warning>,
    /// What the verdict relies on, and the descriptions do not show.
    pub relies_on: Vec<Assumption>,
}

impl Comparison {
    /// One of which there is no more to say than its verdict.
    pub(super) fn of(direction: Direction, version: u32, verdict: Verdict) -> Self {
        Self { direction, version, verdict, warnings: Vec::new(), relies_on: Vec::new() }
    }

    /// True if there is no more to say than that it loads.
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
    /// In all cases but these.
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
    /// All of these together.
    pub when: Vec<Condition>,
    /// What happens then.
    pub breaks: Break,
}

/// Something that is decided at run time, and how it turned out.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Condition {
    /// What is decided.
    pub subject: Subject,
    /// How.
    pub holds: bool,
}

/// What is decided at run time. The same subject has the same outcome on both sides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The outcome of a predicate, by name; in a nested struct with the struct's path: `is_open of lanes[2]`, with `[]` in each
    /// element of a counted array.
    Predicate(String),
    /// The outcome of a predicate that has no name, by its field.
    Unnamed(String),
    /// A subsection is sent (its `needed` holds).
    Subsection(String),
    /// The section is sent.
    Section(String),
    /// The counted field has elements.
    Elements(String),
    /// The counted field has at most so many elements.
    Count {
        /// The field.
        field: String,
        /// The most elements that the reader takes.
        most: u64,
    },
    /// The pointer is null.
    Null(String),
    /// The value of the field is one that the reader takes.
    Value {
        /// The field.
        field: String,
        /// Values that the writer may send and the reader takes.
        taken: Values,
        /// Values that the writer may send and the reader refuses.
        refused: Values,
    },
    /// Both machines are configured to have the same value in this field.
    Configuration(String),
}

/// Where and why a load breaks, and what to do instead.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Break {
    /// Path of the field, or name of the subsection or section.
    pub field: String,
    /// Why.
    pub reason: Reason,
    /// What to do instead.
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
        /// Newest version that the reader knows.
        newest: u32,
    },
    /// The version is below the reader's oldest.
    TooOld {
        /// Version in the stream.
        version: u32,
        /// Oldest version that the reader takes.
        oldest: u32,
    },
    /// The reader wants a field where the stream has none.
    NotSent,
    /// The stream has a field where the reader wants none.
    NotRead,
    /// The writer's field and the reader's begin or end in different places.
    OtherItem {
        /// What the stream has there.
        written: String,
        /// What the reader takes it for.
        read: String,
    },
    /// One side has as many elements as a length says, the other a fixed number, or elements of another layout.
    OtherCount,
    /// The two sides count its elements by the values of different fields.
    OtherLength,
    /// The field that says how many elements there are is not in the stream: the reader counts by what its machine has.
    LengthNotSent,
    /// The reader takes fewer elements than the writer may send.
    TooMany {
        /// The most elements that the reader takes.
        most: u64,
    },
    /// The reader has the keys of the map in another order.
    OtherOrder,
    /// A hand-written codec on one side only, or two different ones.
    OtherCodec,
    /// The reader does not know the subsection.
    UnknownSubsection,
    /// The reader does not take all values that the writer may send.
    NotTaken {
        /// Values that the reader takes.
        taken: String,
    },
    /// The reader takes only what its machine is configured to have.
    NotConfigured {
        /// Values that the reader takes.
        taken: String,
    },
    /// A pointer that may be null on one side only.
    NotNullable,
    /// The schema says other versions for the section than for its description.
    Contradiction {
        /// Newest of the section.
        section: u32,
        /// Newest of the description.
        description: u32,
    },
    /// The layouts are too large to be compared.
    TooLarge,
    /// A look for subsections may run into what is no subsection of that struct.
    Ambiguous,
    /// The reader has no such section.
    NoSection,
    /// The reader does not do without the section.
    Missing,
}

/// Bytes that load, and may mean something else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Warning {
    /// The writer's field.
    pub written: String,
    /// The reader's field.
    pub read: String,
    /// What is different.
    pub difference: Difference,
}

/// How the same bytes differ in meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Difference {
    /// Signed here, unsigned there; or a bool here, a number there.
    Sign,
    /// A timer, double or bitmap here, something else there.
    Meaning,
    /// Integers here, raw bytes there.
    Raw,
    /// The writer sends padding: the reader gets zero.
    ReadsZero,
    /// The reader skips the value.
    Dropped,
}

/// What a verdict relies on without knowing it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Assumption {
    /// The hand-written codec of this name reads what it wrote.
    Codec(String),
    /// The reader's own functions, which these attributes name, take what comes.
    Hooks(Vec<String>),
    /// The predicates of these names have the same outcome on both sides, and mean the same. `is_open of a and is_open
    /// of b` is about a struct that is `a` in the writer and `b` in the reader.
    Outcomes(Vec<String>),
    /// Both machines are configured to have the same of these: values, lengths, null pointers, room for elements.
    Configuration(Vec<String>),
    /// The keys of these maps have the same order on both sides: a type can have an order of its own.
    Orders(Vec<String>),
    /// These fields may have as many elements on both sides, counted by the same field: an old schema, or a description made by
    /// hand, does not say.
    Counts(Vec<String>),
    /// The hooks and conversions of these structs take what comes: their description does not say which there are.
    Unsaid(Vec<String>),
    /// The predicates of these fields have the same outcome on both sides: they have no name, but the fields have the same.
    Predicates(Vec<String>),
    /// These fields of the writer are what the reader takes them for: a dump of QEMU tells only their size, and that in the
    /// memory of its host.
    Sizes(Vec<String>),
}
