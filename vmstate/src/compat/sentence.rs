//! Verdicts as sentences.

use std::fmt;

use super::verdict::{
    Break, Case, Condition, Crossing, Difference, Direction, Reason, Reliance, Report, Subject, Verdict, Warning,
};

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
        self.warnings.iter().try_for_each(|warning| writeln!(f, "    warning: {warning}"))?;
        self.relies_on.iter().try_for_each(|reliance| writeln!(f, "    relies on: {reliance}"))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loads => f.write_str("loads"),
            Self::Breaks(breaks) => breaks.fmt(f),
            Self::NotCompared(Break { field, reason, remedy }) => {
                write!(f, "not compared at {field} because {reason} -> {remedy}")
            }
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
            Subject::Section(name) => write!(f, "section {name:?} is {not}sent"),
            Subject::Elements(path) if self.holds => write!(f, "{path} has elements"),
            Subject::Elements(path) => write!(f, "{path} is empty"),
            Subject::Count { field, most } => {
                let (than, s) = (if self.holds { "at most" } else { "more than" }, if *most == 1 { "" } else { "s" });
                write!(f, "{field} has {than} {most} element{s}")
            }
            Subject::Unnamed(path) => write!(f, "the predicate of {path} is {}", self.holds),
            Subject::Null(path) => write!(f, "{path} is {not}null"),
            // Whatever is shorter.
            Subject::Value { field, taken, refused } if taken.terms() <= refused.terms() => {
                write!(f, "{field} is {not}{taken}")
            }
            Subject::Value { field, refused, .. } => {
                write!(f, "{field} is {}{refused}", if self.holds { "not " } else { "" })
            }
            Subject::Configuration(field) if self.holds => write!(f, "both machines have the same {field}"),
            Subject::Configuration(field) => write!(f, "the machines differ in {field}"),
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
            Self::OtherLength => f.write_str("the two sides count its elements by different fields"),
            Self::LengthNotSent => {
                f.write_str("the stream does not have its length: the reader counts by what its machine has")
            }
            Self::TooMany { most } => {
                write!(f, "the reader takes at most {most} element{}", if *most == 1 { "" } else { "s" })
            }
            Self::OtherOrder => f.write_str("the reader has the keys in another order"),
            Self::OtherCodec => f.write_str("the two sides do not use the same hand-written codec"),
            Self::UnknownSubsection => f.write_str("the reader does not know this subsection"),
            Self::NotTaken { taken } | Self::NotConfigured { taken } => write!(f, "the reader takes only {taken}"),
            Self::NotNullable => f.write_str("it may be null on one side only"),
            Self::Contradiction { section, description } => write!(
                f,
                "the schema contradicts itself: the section is of version {section}, its description of version {description}"
            ),
            Self::TooLarge => f.write_str("the layout is too large"),
            Self::Ambiguous => f.write_str("a look for subsections may go too far there"),
            Self::Missing => f.write_str("the reader does not do without this section"),
            Self::NoSection => f.write_str("the reader does not have this section"),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { written, read, difference } = self;
        match difference {
            Difference::Sign => write!(f, "{written} is read as {read}: the same bytes, another range of values"),
            Difference::Meaning => write!(f, "{written} is read as {read}: the same bytes, another meaning"),
            Difference::Raw => write!(f, "{written} is read as {read}: integers on one side, raw bytes on the other"),
            Difference::ReadsZero => write!(f, "{read} becomes zero: the stream has padding there"),
            Difference::Dropped => write!(f, "{written} is skipped: the reader has padding there"),
        }
    }
}

impl fmt::Display for Reliance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Codec(name) => write!(f, "the hand-written codec {name:?}, to read what it wrote"),
            Self::Hooks(hooks) => write!(f, "the device's own code, to take what comes: {}", listed(hooks)),
            Self::Outcomes(predicates) => {
                write!(f, "the predicates {}, to have the same outcome on both sides", listed(predicates))
            }
            Self::Configuration(names) => {
                write!(f, "both machines, to be configured to have the same {}", listed(names))
            }
            Self::Orders(maps) => write!(f, "the keys of {}, to have the same order on both sides", listed(maps)),
            Self::Counts(fields) => {
                write!(
                    f,
                    "{}, to have at most as many elements as the reader takes, counted by the same field: a description does not say",
                    listed(fields)
                )
            }
            Self::Unsaid(structs) => {
                write!(f, "the hooks of {}, to take what comes: the description does not name them", listed(structs))
            }
            Self::Predicates(fields) => {
                write!(
                    f,
                    "the predicates of {}, which have no name, to have the same outcome on both sides",
                    counted(fields)
                )
            }
            Self::Sizes(fields) => write!(f, "the sizes of {}, of which nothing else is known", counted(fields)),
        }
    }
}

/// All names, as far as a sentence can hold them.
fn listed(names: &[String]) -> String {
    const MOST: usize = 12;
    let shown: Vec<_> = names.iter().take(MOST).map(String::as_str).collect();
    match names.len().saturating_sub(MOST) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn counted(fields: &[String]) -> String {
    match fields {
        [field] => field.clone(),
        fields => format!("{} fields", fields.len()),
    }
}
