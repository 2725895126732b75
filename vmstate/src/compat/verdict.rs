//! Verdicts as data, and as sentences.

use std::fmt;

use serde::Serialize;

/// What is known about one section in two releases.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The section.
    pub section: String,
    /// One verdict for each direction and each version that may cross.
    pub crossings: Vec<Crossing>,
}

impl Report {
    /// True if nothing can break; conditional verdicts count as broken only if `strict`.
    pub fn is_compatible(&self, strict: bool) -> bool {
        self.crossings.iter().all(|crossing| match crossing.verdict {
            Verdict::Loads => true,
            Verdict::LoadsIf(_) => !strict,
            Verdict::Breaks(_) => false,
        })
    }
}

/// Streams of one release, written at one version, in the code of the other.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Crossing {
    /// Which way.
    pub direction: Direction,
    /// Version that the stream says.
    pub version: u32,
    /// Whether it loads.
    pub verdict: Verdict,
    /// What loads with another meaning.
    pub warnings: Vec<Warning>,
}

impl Crossing {
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
    /// The outcome of a field's predicate.
    Predicate(String),
    /// A subsection is sent (its `needed` holds).
    Subsection(String),
    /// The counted field has elements.
    Elements(String),
    /// The bytes that the reader takes for bools are 0 or 1.
    ZeroOrOne(String),
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
        /// In the stream.
        version: u32,
        /// That the reader knows.
        newest: u32,
    },
    /// The version is below the reader's oldest.
    TooOld {
        /// In the stream.
        version: u32,
        /// That the reader takes.
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
    /// A hand-written codec on one side only, or two different ones.
    OtherCodec,
    /// The reader does not know the subsection.
    UnknownSubsection,
    /// A byte that is no bool is read as one.
    NotBool,
    /// The layouts are too large to be compared.
    TooLarge,
    /// The other release has no such section.
    NoSection,
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
    /// Integers here, raw bytes there.
    Raw,
    /// The writer sends padding: the reader gets zero.
    ReadsZero,
    /// The reader skips the value.
    Dropped,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.section)?;
        self.crossings.iter().try_for_each(|crossing| write!(f, "{crossing}"))
    }
}

impl fmt::Display for Crossing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::OldToNew => "old -> new",
            Direction::NewToOld => "new -> old",
        };
        writeln!(f, "  {direction}, version {}: {}", self.version, self.verdict)?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "    warning: {warning}"))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loads => f.write_str("loads"),
            Self::Breaks(breaks) => breaks.fmt(f),
            Self::LoadsIf(cases) => {
                for (index, case) in cases.iter().enumerate() {
                    f.write_str(if index == 0 { "loads " } else { "; and " })?;
                    case.fmt(f)?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.when.as_slice() {
            [condition] => write!(f, "if {}", condition.opposite())?,
            conditions => {
                for (index, condition) in conditions.iter().enumerate() {
                    f.write_str(if index == 0 { "unless " } else { " and " })?;
                    condition.fmt(f)?;
                }
            }
        }
        write!(f, ", else {}", self.breaks)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.holds { "" } else { "not " };
        match &self.subject {
            Subject::Predicate(name) => write!(f, "{name} is {}", self.holds),
            Subject::Subsection(name) => write!(f, "subsection {name:?} is {not}sent"),
            Subject::Elements(path) if self.holds => write!(f, "{path} has elements"),
            Subject::Elements(path) => write!(f, "{path} is empty"),
            Subject::ZeroOrOne(path) => write!(f, "{path} is {not}0 or 1"),
        }
    }
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "breaks at {} because {} -> {}", self.field, self.reason, self.remedy)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooNew { version, newest } => write!(f, "version {version} is newer than {newest}"),
            Self::TooOld { version, oldest } => {
                write!(f, "version {version} is older than {oldest}, the oldest that loads")
            }
            Self::NotSent => f.write_str("the stream does not have it"),
            Self::NotRead => f.write_str("the reader does not have it"),
            Self::OtherItem { written, read } => write!(f, "{written} is read as {read}"),
            Self::OtherCount => f.write_str("the two sides count its elements in different ways"),
            Self::OtherCodec => f.write_str("the two sides do not use the same hand-written codec"),
            Self::UnknownSubsection => f.write_str("the reader does not know this subsection"),
            Self::NotBool => f.write_str("a bool is 0 or 1"),
            Self::TooLarge => f.write_str("its layout is too large to be compared"),
            Self::NoSection => f.write_str("the reader does not have this section"),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { written, read, difference } = self;
        match difference {
            Difference::Sign => write!(f, "{written} is read as {read}: the same bytes, another range of values"),
            Difference::Raw => write!(f, "{written} is read as {read}: integers on one side, raw bytes on the other"),
            Difference::ReadsZero => write!(f, "{read} becomes zero: the stream has padding there"),
            Difference::Dropped => write!(f, "{written} is skipped: the reader has padding there"),
        }
    }
}
