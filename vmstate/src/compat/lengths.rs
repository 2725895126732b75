//! Fields that count the elements of other fields, and the positions of their values in a layout.

use std::collections::BTreeMap;

use super::budget::{Budget, TooLarge};
use super::item::Item;
use super::place::Place;
use crate::schema::program::Program;
use crate::schema::{Count, Length};

/// A struct or subsection that is being built, and the positions of its lengths.
pub(super) struct Scope {
    pub(super) place: Place,
    pub(super) is_subsection: bool,
    /// Fields that are lengths, by name.
    pub(super) lengths: BTreeMap<String, LengthValue>,
    /// The step of the first field, if that is one integer and always present.
    pub(super) tag: Option<usize>,
}

/// The value of a length.
#[derive(Clone, Copy)]
pub(super) struct LengthValue {
    pub(super) at: LengthAt,
    /// The largest value of the field.
    pub(super) highest: u64,
}

/// The position of a length in a layout.
#[derive(Clone, Copy)]
pub(super) enum LengthAt {
    /// The length is not in streams of this version.
    Absent,
    Step(usize),
    /// Several fields have the length's name.
    Unclear,
}

impl Scope {
    /// Creates the scope of a program, before its first member is built.
    pub(super) fn new(
        program: &Program<'_>,
        place: &Place,
        is_subsection: bool,
        budget: &Budget,
    ) -> Result<Self, TooLarge> {
        let mut lengths = Vec::new();
        collect_lengths(program, &mut lengths, budget)?;
        lengths.retain(|name| program.members().any(|member| member.name == **name));
        let lengths = lengths.into_iter().map(|name| {
            let mut members = program.members().filter(|member| member.name == *name);
            let item = members.next().and_then(|member| Item::of(&member.encoding));
            let highest = item.map_or(u64::MAX, |item| item.highest());
            let at = if members.next().is_none() { LengthAt::Absent } else { LengthAt::Unclear };
            (name.to_owned(), LengthValue { at, highest })
        });
        let lengths = lengths.collect();
        Ok(Self { place: place.clone(), is_subsection, lengths, tag: None })
    }
}

/// Collects the names of the lengths that `program` and its subsections count by.
fn collect_lengths<'d>(program: &'d Program<'_>, into: &mut Vec<&'d str>, budget: &Budget) -> Result<(), TooLarge> {
    for member in program.members() {
        if let Some(Count { length: Some(Length::Field(name)), .. }) = member.count {
            budget.step(name.len())?;
            into.push(name);
        }
    }
    program.subsections().try_for_each(|subsection| collect_lengths(subsection, into, budget))
}

/// Finds the length called `name`: a field of the innermost struct or subsection that has one, with that struct's place.
pub(super) fn find<'p>(parts: &'p [Scope], name: &str) -> Option<(&'p Place, LengthValue)> {
    let mut parts = parts.iter().rev();
    let mut found = None;
    loop {
        let part = parts.next()?;
        if let Some(length) = part.lengths.get(name) {
            // Two fields of the name: which one is meant is unknown.
            found = Some(match found {
                None => (&part.place, *length),
                Some((place, _)) => (place, LengthValue { at: LengthAt::Unclear, highest: u64::MAX }),
            });
        }
        if !part.is_subsection {
            return found;
        }
    }
}
