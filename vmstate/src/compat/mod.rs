//! Checks whether streams of one release load in another, from two descriptions alone, without running a device.
//!
//! A description stands for the byte layouts that it can write and those that it can read. [`check`] compares layouts, not names:
//! a rename, or a move into a nested struct, changes nothing. Every refusal of a load that a description shows is compared; what
//! a description cannot show is assumed, and each verdict lists its assumptions by name ([`Assumption`]). docs/compatibility.md
//! lists all of them.

mod asked;
mod assumption;
mod budget;
mod build;
mod counts;
mod given;
mod item;
mod layout;
mod lengths;
mod place;
mod position;
mod registry;
mod remedy;
mod sentence;
mod sides;
mod step;
mod subjects;
mod tags;
mod values;
mod verdict;
mod walk;

use std::collections::BTreeSet;

pub use registry::{RegistryReport, SectionDescription, check_registry, check_schemas};
pub use values::Values;
pub use verdict::{
    Assumption, Break, Case, Comparison, Condition, Difference, Direction, Reason, SectionReport, Subject, Verdict,
    Warning,
};

use crate::schema::program::Program;
use crate::schema::{Description, Presence};
use budget::Budget;
use layout::{Around, Sent};
use sides::{Sides, Stop};
use subjects::Subjects;

/// The most versions of a section whose streams are compared.
const MAX_VERSIONS: usize = 64;

/// Compares two releases of one section: streams of the old release in the new one, at the version it writes and at each earlier
/// version with another layout, and streams of the new release in the old one.
///
/// ```
/// use vmstate::VmState;
/// use vmstate::compat::check;
///
/// #[derive(VmState)]
/// #[vmstate(name = "pic", version = 1)]
/// struct Old { irr: u8 }
///
/// #[derive(VmState)]
/// #[vmstate(name = "pic", version = 1)]
/// struct New { irr: u8, imr: u8 }
///
/// let report = check(Old::DESCRIPTION, New::DESCRIPTION);
/// assert!(!report.is_compatible(false));
/// assert!(report.to_string().contains("old -> new, version 1: breaks at imr because the stream does not have it"));
/// ```
pub fn check(old: &Description, new: &Description) -> SectionReport {
    check_within(old, new, &Budget::total())
}

fn check_within(old: &Description, new: &Description, budget: &Budget) -> SectionReport {
    let (old, new) = (&*Program::of(old), &*Program::of(new));
    let versions: Vec<_> = versions(old).into_iter().rev().collect();
    let (looked_at, left_out) = versions.split_at(versions.len().min(MAX_VERSIONS));
    let mut comparisons: Vec<_> =
        looked_at.iter().map(|version| compare(old, new, *version, Direction::OldToNew, budget)).collect();
    if let Some(version) = left_out.first() {
        comparisons.push(not_compared(old, *version, Direction::OldToNew, Stop::TooLarge));
    }
    comparisons.push(compare(new, old, new.newest, Direction::NewToOld, budget));
    SectionReport { section: old.name.to_owned(), comparisons }
}

/// The versions that streams of `program` and of earlier releases may have, one for each layout.
fn versions(program: &Program<'_>) -> BTreeSet<u32> {
    let (oldest, newest) = (program.oldest.min(program.newest), program.newest);
    let since = program.members().filter_map(|member| match member.presence {
        Presence::Since(version) => Some(*version),
        Presence::If(_) | Presence::Tag(_) => None,
    });
    let changes = since.filter(|version| *version > oldest && *version <= newest);
    changes.map(|version| version - 1).chain([oldest, newest]).collect()
}

/// Compares the streams of `writer` at `version` with `reader`.
fn compare(
    writer: &Program<'_>,
    reader: &Program<'_>,
    version: u32,
    direction: Direction,
    budget: &Budget,
) -> Comparison {
    let (newest, oldest) = (reader.newest, reader.oldest);
    let reason = match version {
        _ if version > newest => Reason::TooNew { version, newest },
        _ if version < oldest => Reason::TooOld { version, oldest },
        _ => {
            let compared = budget.comparison(|budget| compare_read(writer, reader, version, direction, budget));
            return compared.unwrap_or_else(|stop| not_compared(writer, version, direction, stop));
        }
    };
    let remedy = remedy::of(&reason, direction, Around::Versioned);
    let verdict = Verdict::Breaks(Break { field: writer.name.to_owned(), reason, remedy });
    Comparison::of(direction, version, verdict)
}

/// Compares the streams of `writer` at a version that the reader accepts.
fn compare_read(
    writer: &Program<'_>,
    reader: &Program<'_>,
    version: u32,
    direction: Direction,
    budget: &Budget,
) -> Result<Comparison, Stop> {
    let (mut sent, mut subjects) = (Sent::new(), Subjects::default());
    build::subsections(writer, &mut sent, budget)?;
    let written = build::written(writer, version, &mut subjects, budget)?;
    let mut read = build::read(reader, version, &sent, &mut subjects, budget)?;
    asked::pair(&written, &mut read);
    Sides::new(written, read, subjects, budget).comparison(direction, version)
}

fn not_compared(writer: &Program<'_>, version: u32, direction: Direction, stop: Stop) -> Comparison {
    let (field, reason) = match stop {
        Stop::TooLarge => (writer.name.to_owned(), Reason::TooLarge),
        Stop::Ambiguous(field) => (field, Reason::Ambiguous),
    };
    let remedy = remedy::of(&reason, direction, Around::Versioned);
    let verdict = Verdict::NotCompared(Break { field, reason, remedy });
    Comparison::of(direction, version, verdict)
}
