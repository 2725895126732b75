//! From descriptions to JSON: two spaces a level, keys in QEMU's order.

use serde_json::{Map, Value};

use super::read::OPAQUE;
use super::{MACHINE, Schema};
use crate::schema::{Description, Field, Kind, Presence};

impl Schema {
    /// The JSON text, with a newline at its end.
    ///
    /// ```
    /// use vmstate::VmState;
    /// use vmstate::schema::json::Schema;
    ///
    /// #[derive(VmState)]
    /// #[vmstate(name = "led", version = 1, minimum_version = 1)]
    /// struct Led {
    ///     level: u16,
    /// }
    ///
    /// let mut schema = Schema::new(None);
    /// schema.add("led", Led::DESCRIPTION)?;
    /// let text = schema.to_json();
    /// assert!(text.contains("\"minimum_version_id\": 1"));
    /// assert_eq!(Schema::from_json(&text)?, schema);
    /// # Ok::<(), vmstate::Error>(())
    /// ```
    pub fn to_json(&self) -> String {
        let mut root = Map::new();
        if let Some(machine) = self.machine() {
            root.insert(MACHINE.into(), Map::from_iter([("Name".to_owned(), machine.into())]).into());
        }
        for (name, section) in self.sections() {
            let mut object = Map::new();
            object.insert("Name".into(), name.as_str().into());
            put_versions(section, &mut object);
            object.insert("Description".into(), description(section).into());
            root.insert(name.clone(), object.into());
        }
        format!("{:#}\n", Value::Object(root))
    }
}

fn put_versions(of: &Description, into: &mut Map<String, Value>) {
    into.insert("version_id".into(), of.version.into());
    into.insert("minimum_version_id".into(), of.minimum_version.into());
}

fn description(of: &Description) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("name".into(), (*of.name).into());
    put_versions(of, &mut object);
    if !of.fields.is_empty() {
        object.insert("Fields".into(), of.fields.iter().map(field).collect());
    }
    if !of.subsections.is_empty() {
        object.insert("Subsections".into(), of.subsections.iter().map(description).collect());
    }
    object
}

fn field(of: &Field) -> Map<String, Value> {
    let (version, predicate) = match &of.presence {
        Presence::Since(version) => (*version, None),
        Presence::If(predicate) => (0, Some(&**predicate)),
    };
    let (element, dimensions) = elements(&of.kind);
    let mut object = Map::new();
    object.insert("field".into(), (*of.name).into());
    object.insert("version_id".into(), version.into());
    object.insert("field_exists".into(), predicate.is_some().into());
    let count = dimensions.iter().try_fold(1_u64, |count, dimension| Some(count.saturating_mul((*dimension)?)));
    if let (Some(count), false) = (count, dimensions.is_empty()) {
        object.insert("num".into(), count.into());
    }
    object.insert("size".into(), size(element).into());
    // What a dump of QEMU does not say was not known when it was read.
    if opaque_size(element).is_none() {
        object.insert("type".into(), type_name(element).into());
    }
    if let (Kind::Custom(name), None) = (element, opaque_size(element)) {
        object.insert("custom".into(), (**name).into());
    }
    if !dimensions.is_empty() {
        object.insert("dimensions".into(), dimensions.into());
    }
    if let Some(predicate) = predicate.filter(|name| !name.is_empty()) {
        object.insert("exists".into(), predicate.into());
    }
    if let Kind::Struct(nested) = element {
        object.insert("Description".into(), description(nested).into());
    }
    object
}

/// What an array repeats, and how often on each level.
fn elements(mut kind: &Kind) -> (&Kind, Vec<Option<u64>>) {
    let mut dimensions = Vec::new();
    loop {
        match kind {
            Kind::Array(element, count) => {
                dimensions.push(Some(*count as u64));
                kind = element;
            }
            Kind::CountedArray(element) => {
                dimensions.push(None);
                kind = element;
            }
            element => return (element, dimensions),
        }
    }
}

/// Bytes on the wire if all fields are there; what an outcome decides counts as nothing.
fn size(of: &Kind) -> u64 {
    match of {
        Kind::Bool => 1,
        Kind::Unsigned(bytes) | Kind::Signed(bytes) => u64::from(*bytes),
        Kind::Buffer(bytes) | Kind::Unused(bytes) => *bytes as u64,
        Kind::Struct(nested) => nested.fields.iter().fold(0, |sum: u64, field| sum.saturating_add(size(&field.kind))),
        Kind::Array(element, count) => size(element).saturating_mul(*count as u64),
        Kind::Custom(_) => opaque_size(of).unwrap_or(0),
        Kind::CountedBuffer | Kind::CountedArray(_) | Kind::Check => 0,
    }
}

/// The size of a field of which QEMU's dump said nothing else.
fn opaque_size(kind: &Kind) -> Option<u64> {
    let Kind::Custom(name) = kind else { return None };
    let size = name.strip_prefix(OPAQUE)?.parse().ok()?;
    (**name == *format!("{OPAQUE}{size}")).then_some(size)
}

fn type_name(of: &Kind) -> String {
    match of {
        Kind::Bool => "bool".into(),
        Kind::Unsigned(bytes) => format!("uint{}", u32::from(*bytes) * 8),
        Kind::Signed(bytes) => format!("int{}", u32::from(*bytes) * 8),
        Kind::Buffer(_) => "buffer".into(),
        Kind::CountedBuffer => "counted_buffer".into(),
        Kind::Unused(_) => "unused_buffer".into(),
        Kind::Struct(_) => "struct".into(),
        Kind::Custom(_) => "custom".into(),
        Kind::Check => "check".into(),
        Kind::Array(element, _) | Kind::CountedArray(element) => type_name(element),
    }
}
