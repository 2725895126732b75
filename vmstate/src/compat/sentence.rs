//! Verdicts as sentences. Names from files are escaped by [`Printable`].

use std::fmt;

use super::verdict::{
    Assumption, Break, Case, Comparison, Condition, Difference, Direction, Reason, SectionReport, Subject, Verdict,
    Warning,
};
use crate::error::Printable;

/// Displays a value as a sentence, or as a part of one, without escaping its names.
struct Raw<'a, T>(&'a T);

impl fmt::Display for SectionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", Printable(&self.section))?;
        self.comparisons.iter().try_for_each(|comparison| write!(f, "{comparison}"))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::OldToNew => "old -> new",
            Direction::NewToOld => "new -> old",
        };
        writeln!(f, "  {direction}, version {}: {}", self.version, self.verdict)?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "    warning: {warning}"))?;
        self.relies_on.iter().try_for_each(|assumption| writeln!(f, "    relies on: {assumption}"))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(Raw(self)).fmt(f)
    }
}

impl fmt::Display for Raw<'_, Verdict> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Verdict::Loads => f.write_str("loads"),
            Verdict::Breaks(breaks) => breaks.fmt(f),
            Verdict::NotCompared(Break { field, reason, remedy }) => {
                write!(f, "not compared at {field} because {reason} -> {remedy}")
            }
            Verdict::LoadsIf(cases) => {
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
        Printable(Raw(self)).fmt(f)
    }
}

impl fmt::Display for Raw<'_, Case> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.when.as_slice() {
            [condition] => write!(f, "if {}", condition.opposite())?,
            conditions => {
                for (index, condition) in conditions.iter().enumerate() {
                    f.write_str(if index == 0 { "unless " } else { " and " })?;
                    condition.fmt(f)?;
                }
            }
        }
        write!(f, ", else {}", self.0.breaks)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(Raw(self)).fmt(f)
    }
}

impl fmt::Display for Raw<'_, Condition> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.0.holds { "" } else { "not " };
        match &self.0.subject {
            Subject::Predicate(name) => write!(f, "{name} is {}", self.0.holds),
            Subject::Subsection(name) => write!(f, "subsection {name:?} is {not}sent"),
            Subject::Section(name) => write!(f, "section {name:?} is {not}sent"),
            Subject::Elements(path) if self.0.holds => write!(f, "{path} has elements"),
            Subject::Elements(path) => write!(f, "{path} is empty"),
            Subject::Count { field, most } => {
                let (than, s) = (if self.0.holds { "at most" } else { "more than" }, if *most == 1 { "" } else { "s" });
                write!(f, "{field} has {than} {most} element{s}")
            }
            Subject::Unnamed(path) => write!(f, "the predicate of {path} is {}", self.0.holds),
            Subject::Null(path) => write!(f, "{path} is {not}null"),
            // The shorter list.
            Subject::Value { field, taken, refused } if taken.terms() <= refused.terms() => {
                write!(f, "{field} is {not}{taken}")
            }
            Subject::Value { field, refused, .. } => {
                write!(f, "{field} is {}{refused}", if self.0.holds { "not " } else { "" })
            }
            Subject::Configuration(field) if self.0.holds => write!(f, "both machines have the same {field}"),
            Subject::Configuration(field) => write!(f, "the machines differ in {field}"),
        }
    }
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(Raw(self)).fmt(f)
    }
}

impl fmt::Display for Raw<'_, Break> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "breaks at {} because {} -> {}", self.0.field, self.0.reason, self.0.remedy)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(Raw(self)).fmt(f)
    }
}

impl fmt::Display for Raw<'_, Reason> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Reason::TooNew { version, newest } => write!(f, "version {version} is newer than {newest}"),
            Reason::TooOld { version, oldest } => {
                write!(f, "version {version} is older than {oldest}, the oldest that loads")
            }
            Reason::NotSent => f.write_str("the stream does not have it"),
            Reason::NotRead => f.write_str("the reader does not have it"),
            Reason::OtherItem { written, read } => write!(f, "{written} is read as {read}"),
            Reason::OtherCount => f.write_str("the two sides count its elements in different ways"),
            Reason::OtherLength => f.write_str("the two sides count its elements by different fields"),
            Reason::LengthNotSent => {
                f.write_str("the stream does not have its length: the reader counts by what its machine has")
            }
            Reason::TooMany { most } => {
                write!(f, "the reader takes at most {most} element{}", if *most == 1 { "" } else { "s" })
            }
            Reason::OtherOrder => f.write_str("the reader has the keys in another order"),
            Reason::OtherCodec => f.write_str("the two sides do not use the same hand-written codec"),
            Reason::UnknownSubsection => f.write_str("the reader does not know this subsection"),
            Reason::NotTaken { taken } | Reason::NotConfigured { taken } => write!(f, "the reader takes only {taken}"),
            Reason::NotNullable => f.write_str("it may be null on one side only"),
            Reason::Contradiction { section, description } => write!(
                f,
                "the schema contradicts itself: the section is of version {section}, its description of version {description}"
            ),
            Reason::TooLarge => f.write_str("the layout is too large"),
            Reason::Ambiguous => f.write_str("a probe for subsections may take other bytes for one there"),
            Reason::Missing => f.write_str("the reader requires this section"),
            Reason::NoSection => f.write_str("the reader does not have this section"),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(Raw(self)).fmt(f)
    }
}

impl fmt::Display for Raw<'_, Warning> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Warning { written, read, difference } = self.0;
        match difference {
            Difference::Sign => write!(f, "{written} is read as {read}: the same bytes, another range of values"),
            Difference::Meaning => write!(f, "{written} is read as {read}: the same bytes, another meaning"),
            Difference::Raw => write!(f, "{written} is read as {read}: integers on one side, raw bytes on the other"),
            Difference::ReadsZero => write!(f, "{read} becomes zero: the stream has padding there"),
            Difference::Dropped => write!(f, "{written} is skipped: the reader has padding there"),
        }
    }
}

impl fmt::Display for Assumption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(Raw(self)).fmt(f)
    }
}

impl fmt::Display for Raw<'_, Assumption> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Assumption::Codec(name) => write!(f, "the hand-written codec {name:?}, to read what it wrote"),
            Assumption::Hooks(hooks) => {
                write!(f, "the device's own code, to accept the loaded values: {}", listed(hooks))
            }
            Assumption::Outcomes(predicates) => {
                write!(f, "the predicates {}, to have the same outcome on both sides", listed(predicates))
            }
            Assumption::Configuration(names) => {
                write!(f, "both machines, to be configured to have the same {}", listed(names))
            }
            Assumption::Orders(maps) => write!(f, "the keys of {}, to have the same order on both sides", listed(maps)),
            Assumption::Counts(fields) => {
                write!(
                    f,
                    "{}, to have at most as many elements as the reader takes, counted by the same field: a description does not say",
                    listed(fields)
                )
            }
            Assumption::Unsaid(structs) => {
                write!(
                    f,
                    "the hooks of {}, to accept the loaded values: the description does not name them",
                    listed(structs)
                )
            }
            Assumption::Predicates(fields) => {
                write!(
                    f,
                    "the predicates of {}, which have no name, to have the same outcome on both sides",
                    counted(fields)
                )
            }
            Assumption::Sizes(fields) => write!(f, "the sizes of {}, of which nothing else is known", counted(fields)),
        }
    }
}

/// The names, up to the number that fits a sentence.
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
