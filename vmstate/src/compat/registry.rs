//! Compares all sections of two releases: which exist on both sides, and whether their streams load.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use super::budget::Budget;
use super::layout::Around;
use super::verdict::{Break, Case, Comparison, Condition, Direction, Reason, SectionReport, Subject, Verdict};
use super::{check_within, remedy};
use crate::schema::Description;
use crate::schema::json::Schema;

/// One section of a release.
#[derive(Clone, Debug)]
pub struct SectionDescription<'a> {
    /// The name in the stream.
    pub name: &'a str,
    /// Names in earlier releases under which the section still loads.
    pub aliases: &'a [&'a str],
    /// The description of the section's bytes.
    pub description: &'a Description,
    /// True if a load is refused when the section is missing. If false, the release may also leave the section out.
    pub required: bool,
}

/// The verdicts on all sections of two releases.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RegistryReport {
    /// One report for each section of either release, under its name in the old release if it has one.
    pub sections: Vec<SectionReport>,
}

impl RegistryReport {
    /// As for [`SectionReport::is_compatible`], for all sections.
    pub fn is_compatible(&self, strict: bool) -> bool {
        self.sections.iter().all(|section| section.is_compatible(strict))
    }
}

impl fmt::Display for RegistryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sections.iter().try_for_each(|section| write!(f, "{section}"))
    }
}

/// Compares all sections of two releases. A section that only one release has breaks in the other, and its absence breaks where
/// it is required. A section that the new release has renamed loads only if its old name is an alias, and the old release does
/// not know the new name.
pub fn check_registry(old: &[SectionDescription<'_>], new: &[SectionDescription<'_>]) -> RegistryReport {
    let budget = Budget::total();
    let (old_names, new_names) = (by_name(old), by_name(new));
    let aliases = new.iter().rev().flat_map(|section| section.aliases.iter().map(move |alias| (*alias, section)));
    let new_aliases: HashMap<_, _> = aliases.collect();
    let mut sections = Vec::new();
    for section in old {
        let Some(other) = new_names.get(section.name).or_else(|| new_aliases.get(section.name)) else {
            let missing = section.required.then(|| breaks(section, Direction::NewToOld, Reason::Missing));
            sections.push(report(section, [breaks(section, Direction::OldToNew, Reason::NoSection)], missing));
            continue;
        };
        let mut report = check_within(section.description, other.description, &budget);
        let needs =
            |reader: &SectionDescription<'_>, writer: &SectionDescription<'_>| reader.required && !writer.required;
        for comparison in &mut report.comparisons {
            match comparison.direction {
                Direction::OldToNew if needs(other, section) => only_if_sent(comparison, section),
                Direction::NewToOld if needs(section, other) => only_if_sent(comparison, other),
                _ => {}
            }
        }
        report.section = section.name.to_owned();
        if other.name != section.name && !section.aliases.contains(&other.name) {
            report.comparisons.retain(|comparison| comparison.direction == Direction::OldToNew);
            report.comparisons.push(breaks(other, Direction::NewToOld, Reason::NoSection));
        }
        sections.push(report);
    }
    for section in new {
        let mut names = section.aliases.iter().chain([&section.name]);
        if !names.any(|name| old_names.contains_key(name)) {
            let missing = section.required.then(|| breaks(section, Direction::OldToNew, Reason::Missing));
            sections.push(report(section, missing, [breaks(section, Direction::NewToOld, Reason::NoSection)]));
        }
    }
    RegistryReport { sections }
}

/// As for [`check_registry`], with the schemas of two files. A section whose versions contradict its description gets no verdict.
pub fn check_schemas(old: &Schema, new: &Schema) -> RegistryReport {
    let (old_aliases, new_aliases) = (aliases(old), aliases(new));
    let (old_sections, new_sections) = (described(old, &old_aliases), described(new, &new_aliases));
    let mut report = check_registry(&old_sections, &new_sections);
    for section in &mut report.sections {
        let name = section.section.as_str();
        let renamed = new_sections.iter().find(|other| other.aliases.contains(&name)).map(|other| other.name);
        let names = std::iter::once(name).chain(renamed);
        let Some(reason) =
            names.filter_map(|name| contradiction(old, name).or_else(|| contradiction(new, name))).next()
        else {
            continue;
        };
        for comparison in &mut section.comparisons {
            let remedy = remedy::of(&reason, comparison.direction, Around::Versioned);
            let why = Break { field: section.section.clone(), reason: reason.clone(), remedy };
            *comparison = Comparison::of(comparison.direction, comparison.version, Verdict::NotCompared(why));
        }
    }
    report
}

/// Why a section gets no verdict, if its schema is contradictory.
fn contradiction(schema: &Schema, name: &str) -> Option<Reason> {
    let (section, _) = schema.contradiction(name)?;
    Some(Reason::Contradiction { section, description: schema.section(name)?.version })
}

/// The older names of each section.
fn aliases(schema: &Schema) -> Vec<Vec<&str>> {
    schema.sections().iter().map(|(name, _)| schema.aliases(name).collect()).collect()
}

fn described<'s>(schema: &'s Schema, aliases: &'s [Vec<&'s str>]) -> Vec<SectionDescription<'s>> {
    let sections = schema.sections().iter().zip(aliases);
    let described = sections.map(|((name, description), aliases)| SectionDescription {
        name,
        aliases,
        description,
        required: schema.requires(name),
    });
    described.collect()
}

/// The first section of each name.
fn by_name<'s, 'a>(sections: &'s [SectionDescription<'a>]) -> HashMap<&'a str, &'s SectionDescription<'a>> {
    sections.iter().rev().map(|section| (section.name, section)).collect()
}

fn report(
    section: &SectionDescription<'_>,
    comparisons: impl IntoIterator<Item = Comparison>,
    more: impl IntoIterator<Item = Comparison>,
) -> SectionReport {
    SectionReport { section: section.name.to_owned(), comparisons: comparisons.into_iter().chain(more).collect() }
}

/// The break for a section that one side lacks.
fn breaks(section: &SectionDescription<'_>, direction: Direction, reason: Reason) -> Comparison {
    let verdict = Verdict::Breaks(broken(section, direction, reason));
    let version = section.description.version;
    Comparison::of(direction, version, verdict)
}

/// Adds the case that the writer does not send a section which the reader requires.
fn only_if_sent(comparison: &mut Comparison, writer: &SectionDescription<'_>) {
    let when = vec![Condition { subject: Subject::Section(writer.name.to_owned()), holds: false }];
    let case = Case { when, breaks: broken(writer, comparison.direction, Reason::Missing) };
    match &mut comparison.verdict {
        Verdict::Loads => comparison.verdict = Verdict::LoadsIf(vec![case]),
        Verdict::LoadsIf(cases) => cases.push(case),
        Verdict::Breaks(_) | Verdict::NotCompared(_) => {}
    }
}

fn broken(section: &SectionDescription<'_>, direction: Direction, reason: Reason) -> Break {
    let remedy = remedy::of(&reason, direction, Around::Versioned);
    Break { field: section.name.to_owned(), reason, remedy }
}
