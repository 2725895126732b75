//! All sections of two releases: which are there on both sides, and whether these load.

use std::fmt;

use serde::Serialize;

use super::verdict::{Break, Crossing, Direction, Reason, Report, Verdict};
use super::{check, remedy};
use crate::schema::Description;
use crate::schema::json::Schema;

/// One section of a release.
#[derive(Clone, Debug)]
pub struct SectionDescription<'a> {
    /// Its name in the stream.
    pub name: &'a str,
    /// Names of earlier releases under which it loads, too.
    pub aliases: &'a [&'a str],
    /// What its bytes are.
    pub description: &'a Description,
}

/// What is known about all sections of two releases.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RegistryReport {
    /// One report for each section of either release, by the name in the old one if it has it.
    pub sections: Vec<Report>,
}

impl RegistryReport {
    /// As [`Report::is_compatible`], of all sections.
    pub fn is_compatible(&self, strict: bool) -> bool {
        self.sections.iter().all(|section| section.is_compatible(strict))
    }
}

impl fmt::Display for RegistryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sections.iter().try_for_each(|section| write!(f, "{section}"))
    }
}

/// Compares all sections of two releases. A section that only one release has breaks in the other; one that the new
/// release calls otherwise loads only if its old name is an alias, and the old release does not know the new name.
pub fn check_registry(old: &[SectionDescription<'_>], new: &[SectionDescription<'_>]) -> RegistryReport {
    let mut sections = Vec::new();
    for section in old {
        let same = new.iter().find(|other| other.name == section.name);
        let found = same.or_else(|| new.iter().find(|other| other.aliases.contains(&section.name)));
        sections.push(match found {
            None => absent(section, Direction::OldToNew),
            Some(other) => {
                let mut report = check(section.description, other.description);
                report.section = section.name.to_owned();
                if !other.name.eq(section.name) && !section.aliases.contains(&other.name) {
                    report.crossings.retain(|crossing| crossing.direction == Direction::OldToNew);
                    report.crossings.extend(absent(other, Direction::NewToOld).crossings);
                }
                report
            }
        });
    }
    for section in new {
        let known =
            |other: &SectionDescription<'_>| other.name == section.name || section.aliases.contains(&other.name);
        if !old.iter().any(known) {
            sections.push(absent(section, Direction::NewToOld));
        }
    }
    RegistryReport { sections }
}

/// As [`check_registry`], of what two files say. A schema knows no aliases: a section of another name is another section.
pub fn check_schemas(old: &Schema, new: &Schema) -> RegistryReport {
    fn sections(schema: &Schema) -> Vec<SectionDescription<'_>> {
        let sections = schema.sections().iter();
        sections.map(|(name, description)| SectionDescription { name, aliases: &[], description }).collect()
    }
    check_registry(&sections(old), &sections(new))
}

/// The reader does not have it at all.
fn absent(section: &SectionDescription<'_>, direction: Direction) -> Report {
    let reason = Reason::NoSection;
    let remedy = remedy::of(&reason, direction);
    let verdict = Verdict::Breaks(Break { field: section.name.to_owned(), reason, remedy });
    let version = section.description.version;
    Report {
        section: section.name.to_owned(),
        crossings: vec![Crossing { direction, version, verdict, warnings: Vec::new() }],
    }
}
