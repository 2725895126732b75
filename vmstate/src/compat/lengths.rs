//! Where the lengths are that a struct counts its elements by, while its layout is being built.

use std::collections::BTreeMap;

use super::budget::{Budget, TooLarge};
use super::item::Item;
use super::place::Place;
use crate::schema::{Count, Description, Field, Kind, Length};

/// A struct or subsection that is being built, and where its lengths are.
pub(super) struct Part {
    pub(super) place: Place,
    pub(super) is_subsection: bool,
    /// Fields that are lengths, by name.
    pub(super) lengths: BTreeMap<String, Value>,
}

/// The value of a length.
#[derive(Clone, Copy)]
pub(super) struct Value {
    pub(super) at: At,
    /// No value of the field is above.
    pub(super) highest: u64,
}

#[derive(Clone, Copy)]
pub(super) enum At {
    /// In no stream of this version.
    Absent,
    Step(usize),
    /// Several fields bear its name.
    Unclear,
}

impl Part {
    /// Before its first field is built.
    pub(super) fn new(
        description: &Description,
        place: &Place,
        is_subsection: bool,
        budget: &Budget,
    ) -> Result<Self, TooLarge> {
        let mut lengths = Vec::new();
        collect_lengths(description, &mut lengths, budget)?;
        lengths.retain(|name| description.fields.iter().any(|field| *field.name == **name));
        let lengths = lengths.into_iter().map(|name| {
            let is_called_so = |field: &&Field| *field.name == *name && field.kind != Kind::Check;
            let mut fields = description.fields.iter().filter(is_called_so);
            let item = fields.next().and_then(|field| Item::of(&field.kind));
            let highest = item.map_or(u64::MAX, |item| item.highest());
            let at = if fields.next().is_none() { At::Absent } else { At::Unclear };
            (name.to_owned(), Value { at, highest })
        });
        let lengths = lengths.collect();
        Ok(Self { place: place.clone(), is_subsection, lengths })
    }
}

/// Where the length called `name` is: a field of the innermost struct or subsection that has one, with the place of that.
pub(super) fn find<'p>(parts: &'p [Part], name: &str) -> Option<(&'p Place, Value)> {
    let mut parts = parts.iter().rev();
    let mut found = None;
    loop {
        let part = parts.next()?;
        if let Some(length) = part.lengths.get(name) {
            // Which of two is meant, nobody can tell.
            found = Some(match found {
                None => (&part.place, *length),
                Some((place, _)) => (place, Value { at: At::Unclear, highest: u64::MAX }),
            });
        }
        if !part.is_subsection {
            return found;
        }
    }
}

/// Names of the lengths that `description` and its subsections count by.
fn collect_lengths<'d>(description: &'d Description, into: &mut Vec<&'d str>, budget: &Budget) -> Result<(), TooLarge> {
    for field in description.fields.iter() {
        if let Some(Count { length: Some(Length::Field(name)), .. }) = &field.count {
            budget.step(name.len())?;
            into.push(name);
        }
    }
    description.subsections.iter().try_for_each(|subsection| collect_lengths(subsection, into, budget))
}
