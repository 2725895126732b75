//! Target: the text of a schema. A schema that is read must be written and read as itself, and each section must load
//! its own streams.

use vmstate::Section;
use vmstate::compat::{Verdict, check};
use vmstate::schema::json::Schema;
use vmstate::schema::{Description, Kind};

use crate::{Target, devices};

pub(crate) const TARGET: Target = Target { name: "schema", memory: 512 << 20, body, seeds };

fn body(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let Ok(schema) = Schema::from_json(text) else { return };
    let written = schema.to_json();
    let again = Schema::from_json(&written).unwrap_or_else(|error| panic!("not read back: {error}\n{written}"));
    assert_eq!(again, schema, "read back as something else");
    // Each version is a comparison of its own, with a bound of its own: only few are tried.
    let few = |description: &&Description| description.version.saturating_sub(description.minimum_version) < 4;
    for description in schema.sections().iter().map(|(_, description)| description).filter(few).take(2) {
        loads_in_itself(description);
    }
}

/// Checks that a release loads its own streams.
///
/// # Panics
/// When the checker doubts that.
pub(crate) fn loads_in_itself(description: &Description) {
    let report = check(description, description);
    report.to_string();
    if !is_sound(description) {
        return;
    }
    for comparison in &report.comparisons {
        match &comparison.verdict {
            Verdict::Loads | Verdict::NotCompared(_) => {}
            verdict => panic!("{description:?} does not load in itself: {verdict:?}"),
        }
    }
}

/// False for descriptions whose streams even QEMU would not load: versions that exclude each other, and subsections
/// that share a name, are never looked for, or would be taken by an earlier struct or subsection. Nested structs and
/// subsections with subsections of their own are excluded as well.
fn is_sound(description: &Description) -> bool {
    let sent: Vec<&str> = description.subsections.iter().map(|subsection| &*subsection.name).collect();
    let looks_for = |name: &str, sent: &str| sent.len() > name.len() && sent.starts_with(name);
    let mut inside = Vec::new();
    parts(description, &mut inside);
    description.minimum_version <= description.version
        && sent.iter().enumerate().all(|(index, name)| !sent[..index].contains(name))
        && sent.iter().all(|sent| looks_for(&description.name, sent))
        && inside.iter().all(|(part, version)| {
            part.subsections.is_empty()
                && part.has_version(*version)
                && !sent.iter().any(|sent| looks_for(&part.name, sent))
        })
}

/// Collects all nested structs and subsections, with the versions at which they are sent.
fn parts<'a>(of: &'a Description, into: &mut Vec<(&'a Description, u32)>) {
    let nested = of.fields.iter().flat_map(|field| structs(&field.kind));
    for (part, version) in nested.chain(of.subsections.iter().map(|subsection| (subsection, subsection.version))) {
        into.push((part, version));
        parts(part, into);
    }
}

/// The nested structs of a field.
fn structs(kind: &Kind) -> Vec<(&Description, u32)> {
    match kind {
        Kind::Struct(nested) | Kind::Temporary(nested) => vec![(nested, nested.version)],
        Kind::StructAt(nested, version) => vec![(nested, *version)],
        Kind::Array(inner, _) | Kind::CountedArray(inner) | Kind::List(inner) | Kind::Nullable(inner) => structs(inner),
        Kind::Map(key, value) => [structs(key), structs(value)].concat(),
        _ => Vec::new(),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for (name, _, device) in devices::all() {
        let mut schema = Schema::new(Some("microvm"));
        schema.add(name, device.description()).expect("one section");
        seeds.push(schema.to_json().into());
    }
    let qemu: serde_json::Value =
        serde_json::from_str(include_str!("../../../vmstate/tests/fixtures/qemu-10.0-dump-vmstate.json"))
            .expect("QEMU's own text");
    for (name, section) in qemu.as_object().expect("sections by name") {
        seeds.push(serde_json::json!({ name: section }).to_string().into());
    }
    seeds
}
