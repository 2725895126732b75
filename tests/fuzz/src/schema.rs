//! Target: the text of a schema. What is read is written and read as the same; and each section loads in itself.

use vmstate::Section;
use vmstate::compat::{Reason, Verdict, check};
use vmstate::schema::json::Schema;
use vmstate::schema::{Description, Kind};

use crate::{Target, devices};

pub(crate) const TARGET: Target = Target { name: "schema", memory: 256 << 20, body, seeds };

fn body(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let Ok(schema) = Schema::from_json(text) else { return };
    let written = schema.to_json();
    let again = Schema::from_json(&written).unwrap_or_else(|error| panic!("not read back: {error}\n{written}"));
    assert_eq!(again, schema, "read back as something else");
    for (_, description) in schema.sections() {
        loads_in_itself(description);
    }
}

/// A release loads its own streams.
///
/// # Panics
/// If the checker doubts it.
pub(crate) fn loads_in_itself(description: &Description) {
    let report = check(description, description);
    report.to_string();
    if !is_sound(description) {
        return;
    }
    for crossing in &report.crossings {
        let too_large = |reason: &Reason| matches!(reason, Reason::TooLarge);
        match &crossing.verdict {
            Verdict::Loads => {}
            Verdict::Breaks(breaks) if too_large(&breaks.reason) => {}
            verdict => panic!("{description:?} does not load in itself: {verdict:?}"),
        }
    }
}

/// False where even QEMU would not load what it wrote: versions that exclude each other, subsections that share a name,
/// are not looked for, or look like those of another struct. Structs with subsections are left to the derive's own rules.
fn is_sound(description: &Description) -> bool {
    let plain = |nested: &Description| nested.subsections.is_empty() && is_sound(nested);
    let found = |name: &str| name.len() > description.name.len() && name.starts_with(&*description.name);
    let mut names: Vec<&str> = description.subsections.iter().map(|subsection| &*subsection.name).collect();
    names.sort_unstable();
    names.dedup();
    description.minimum_version <= description.version
        && names.len() == description.subsections.len()
        && description.subsections.iter().all(|subsection| plain(subsection) && found(&subsection.name))
        && description.fields.iter().all(|field| {
            let mut kind = &field.kind;
            while let Kind::Array(element, _) | Kind::CountedArray(element) = kind {
                kind = element;
            }
            match kind {
                Kind::Struct(nested) => plain(nested),
                _ => true,
            }
        })
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
