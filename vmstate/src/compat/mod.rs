//! Whether streams of one release load in another: verdicts on two descriptions, without running a device.
//!
//! A description stands for the byte layouts that it can write and those that it can read. [`check`] compares
//! these, not names: a rename, or a move into a nested struct, changes nothing. It relies on three assumptions. A predicate of
//! the same name has the same outcome on both sides; lengths of arrays, which are fields themselves, agree; a
//! hand-written codec of the same name reads what it wrote. And data that happens to look like a subsection's header
//! is not foreseen: the derive refuses layouts where that could happen.

mod assumption;
mod layout;
mod product;
mod registry;
mod remedy;
mod verdict;

use std::collections::BTreeSet;

pub use registry::{RegistryReport, SectionDescription, check_registry, check_schemas};
pub use verdict::{Break, Case, Condition, Crossing, Difference, Direction, Reason, Report, Subject, Verdict, Warning};

use crate::schema::{Description, Kind, Presence};
use layout::{Layout, Sent, TooLarge};
use product::Product;

/// Compares two releases of one section: what the old one wrote in the new one, at its version and at each earlier
/// one at which its layout was another, and what the new one writes in the old one.
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
pub fn check(old: &Description, new: &Description) -> Report {
    let mut crossings: Vec<_> =
        versions(old).into_iter().rev().map(|version| cross(old, new, version, Direction::OldToNew)).collect();
    crossings.push(cross(new, old, new.version, Direction::NewToOld));
    Report { section: old.name.to_string(), crossings }
}

/// The versions that streams of `description` and its forerunners may have, one for each layout.
fn versions(description: &Description) -> BTreeSet<u32> {
    let (oldest, newest) = (description.minimum_version.min(description.version), description.version);
    let since = description.fields.iter().filter_map(|field| match (&field.presence, &field.kind) {
        (Presence::Since(version), kind) if *kind != Kind::Check => Some(*version),
        _ => None,
    });
    let changes = since.filter(|version| *version > oldest && *version <= newest);
    changes.map(|version| version - 1).chain([oldest, newest]).collect()
}

/// What `writer` sends at `version`, read by `reader`.
fn cross(writer: &Description, reader: &Description, version: u32, direction: Direction) -> Crossing {
    let breaks = |reason: Reason| {
        let remedy = remedy::of(&reason, direction);
        Verdict::Breaks(Break { field: writer.name.to_string(), reason, remedy })
    };
    let (newest, oldest) = (reader.version, reader.minimum_version);
    let (verdict, warnings) = if version > newest {
        (breaks(Reason::TooNew { version, newest }), Vec::new())
    } else if version < oldest {
        (breaks(Reason::TooOld { version, oldest }), Vec::new())
    } else {
        compare(writer, reader, version, direction).unwrap_or_else(|TooLarge| (breaks(Reason::TooLarge), Vec::new()))
    };
    Crossing { direction, version, verdict, warnings }
}

fn compare(
    writer: &Description,
    reader: &Description,
    version: u32,
    direction: Direction,
) -> Result<(Verdict, Vec<Warning>), TooLarge> {
    let mut sent = Sent::new();
    layout::subsections(writer, &mut sent);
    let written = Layout::written(writer, version)?;
    let read = Layout::read(reader, version, &sent)?;
    Ok(Product::new(&written, &read, direction).verdict())
}
