//! Formats descriptions as JSON: two spaces for each level, keys in QEMU's order.

use serde_json::{Map, Number, Value};

use super::read::{ALIASES, AT_MOST_CURRENT, EQUAL, FIRST, LAST, NOT_ZERO, OPAQUE, SCALAR};
use super::{MACHINE, Schema};
use crate::schema::{Count, Description, Field, Kind, Length, Limit, Presence};

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
            let described = (section.version, section.minimum_version);
            put_versions(self.contradiction(name).unwrap_or(described), &mut object);
            if self.requires(name) {
                object.insert("required".into(), true.into());
            }
            let aliases: Vec<&str> = self.aliases(name).collect();
            if !aliases.is_empty() {
                object.insert(ALIASES.into(), aliases.into());
            }
            object.insert("Description".into(), description(section).into());
            root.insert(name.clone(), object.into());
        }
        format!("{:#}\n", Value::Object(root))
    }
}

fn put_versions((newest, oldest): (u32, u32), into: &mut Map<String, Value>) {
    into.insert("version_id".into(), newest.into());
    into.insert("minimum_version_id".into(), oldest.into());
}

fn description(of: &Description) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("name".into(), (*of.name).into());
    put_versions((of.version, of.minimum_version), &mut object);
    if let Some(hooks) = &of.hooks {
        object.insert("hooks".into(), hooks.iter().map(|hook| &**hook).collect());
    }
    if !of.fields.is_empty() {
        object.insert("Fields".into(), of.fields.iter().map(field).collect());
    }
    if !of.subsections.is_empty() {
        object.insert("Subsections".into(), of.subsections.iter().map(description).collect());
    }
    object
}

fn field(of: &Field) -> Map<String, Value> {
    let version = if let Presence::Since(version) = &of.presence { *version } else { 0 };
    let mut object = Map::new();
    object.insert("field".into(), (*of.name).into());
    object.insert("version_id".into(), version.into());
    object.insert("field_exists".into(), of.presence.is_decided().into());
    put_kind(&of.kind, &mut object);
    match &of.presence {
        Presence::If(predicate) if !predicate.is_empty() => drop(object.insert("exists".into(), (**predicate).into())),
        Presence::Tag(number) => drop(object.insert("tag".into(), json_number(*number))),
        _ => {}
    }
    if of.is_unframed {
        object.insert("unframed".into(), true.into());
    }
    if let Some(count) = &of.count {
        object.insert("count".into(), counted(count).into());
    }
    if let Some(conversion) = &of.conversion {
        object.insert("conversion".into(), (**conversion).into());
    }
    object
}

fn counted(count: &Count) -> Map<String, Value> {
    let mut object = Map::new();
    match &count.length {
        None => {}
        Some(Length::Field(name)) => drop(object.insert("length".into(), (**name).into())),
        Some(Length::Machine(name)) => drop(object.insert("configuration".into(), (**name).into())),
    }
    if count.factor != 1 {
        object.insert("factor".into(), count.factor.into());
    }
    object.insert("most".into(), count.most.into());
    if count.by_room {
        object.insert("room".into(), true.into());
    }
    object
}

/// Adds the keys of a KIND, for a field or for an element of a list or a map.
fn put_kind(kind: &Kind, object: &mut Map<String, Value>) {
    let (element, dimensions) = elements(kind);
    let count = dimensions.iter().try_fold(1_u64, |count, dimension| Some(count.saturating_mul((*dimension)?)));
    if let (Some(count), false) = (count, dimensions.is_empty()) {
        object.insert("num".into(), count.into());
    }
    object.insert("size".into(), size(element).into());
    // A property that a dump of QEMU does not state was unknown when the dump was read.
    if opaque_size(element).is_none() {
        object.insert("type".into(), type_name(element).into());
    }
    if !dimensions.is_empty() {
        object.insert("dimensions".into(), dimensions.into());
    }
    match element {
        Kind::Custom(name) if opaque_size(element).is_none() => {
            object.insert("custom".into(), (**name).into());
        }
        Kind::Limited(_, limit) => {
            object.insert("limit".into(), limited(limit));
        }
        Kind::Bitmap(bits) => {
            object.insert("bits".into(), (*bits as u64).into());
        }
        Kind::Struct(nested) | Kind::Temporary(nested) => {
            object.insert("Description".into(), description(nested).into());
        }
        Kind::StructAt(nested, version) => {
            object.insert("struct_version".into(), (*version).into());
            object.insert("Description".into(), description(nested).into());
        }
        Kind::List(inner) | Kind::Nullable(inner) => {
            object.insert("element".into(), alone(inner));
        }
        Kind::Map(key, value) => {
            object.insert("key".into(), alone(key));
            object.insert("element".into(), alone(value));
        }
        _ => {}
    }
}

fn alone(kind: &Kind) -> Value {
    let mut object = Map::new();
    put_kind(kind, &mut object);
    object.into()
}

fn limited(limit: &Limit) -> Value {
    match limit {
        Limit::Equal => EQUAL.into(),
        Limit::AtMostCurrent => AT_MOST_CURRENT.into(),
        Limit::NotZero => NOT_ZERO.into(),
        Limit::Scalar => SCALAR.into(),
        Limit::Within(first, last) => {
            Map::from_iter([(FIRST.to_owned(), json_number(*first)), (LAST.to_owned(), json_number(*last))]).into()
        }
        Limit::OneOf(values) => values.iter().map(|value| json_number(*value)).collect(),
    }
}

fn json_number(number: i128) -> Value {
    Number::from_i128(number).map_or(Value::Null, Value::Number)
}

/// The element of an array, and the length of each dimension.
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

/// Size on the wire if all fields are present; parts whose size an outcome decides count as zero.
fn size(of: &Kind) -> u64 {
    match of {
        Kind::Bool => 1,
        Kind::Unsigned(bytes) | Kind::Signed(bytes) => u64::from(*bytes),
        Kind::Limited(inner, _) => size(inner),
        Kind::Timer | Kind::Double => 8,
        Kind::Buffer(bytes) | Kind::Unused(bytes) => *bytes as u64,
        Kind::Bitmap(bits) => (*bits as u64).div_ceil(64) * 8,
        Kind::Struct(nested) => nested.fields.iter().fold(0, |sum: u64, field| sum.saturating_add(size(&field.kind))),
        Kind::Array(element, count) => size(element).saturating_mul(*count as u64),
        Kind::Custom(_) => opaque_size(of).unwrap_or(0),
        Kind::CountedBuffer | Kind::CountedArray(_) | Kind::CountedBitmap | Kind::Check => 0,
        Kind::StructAt(..) | Kind::Temporary(_) | Kind::Nullable(_) | Kind::List(_) | Kind::Map(..) => 0,
    }
}

/// The size of a field for which a dump of QEMU states only the size.
pub(crate) fn opaque_size(kind: &Kind) -> Option<u64> {
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
        Kind::Struct(_) | Kind::StructAt(..) => "struct".into(),
        Kind::Temporary(_) => "temporary".into(),
        Kind::Limited(inner, _) => type_name(inner),
        Kind::Timer => "timer".into(),
        Kind::Double => "double".into(),
        Kind::Bitmap(_) => "bitmap".into(),
        Kind::CountedBitmap => "counted_bitmap".into(),
        Kind::Nullable(_) => "nullable".into(),
        Kind::List(_) => "list".into(),
        Kind::Map(..) => "map".into(),
        Kind::Custom(_) => "custom".into(),
        Kind::Check => "check".into(),
        Kind::Array(element, _) | Kind::CountedArray(element) => type_name(element),
    }
}
