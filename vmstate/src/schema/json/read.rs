//! From JSON to descriptions: our own text and QEMU's dumps. Nothing in the text is trusted.

use serde_json::{Map, Value};

use super::{MACHINE, Schema};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Description, Field, Kind, Presence, Shared};

/// Longest text in bytes; QEMU's dump of all devices of an x86 build has a few million.
const MAX_TEXT: usize = 16 << 20;
/// Most structs and subsections inside one another; QEMU's have up to 5.
const MAX_DEPTH: usize = 32;
/// Most dimensions of an array.
const MAX_DIMENSIONS: usize = 8;
/// Begins the type name of a field of which only the size is known.
pub(super) const OPAQUE: &str = "size ";

type Object = Map<String, Value>;

impl Schema {
    /// Reads a text that [`to_json`](Self::to_json) or QEMU's `-dump-vmstate` wrote.
    ///
    /// # Errors
    /// `Malformed`, with the path of keys to the place: no JSON, too long or too deep, a key that is missing, unknown or
    /// of the wrong type, numbers that disagree.
    pub fn from_json(text: &str) -> Result<Self> {
        if text.len() > MAX_TEXT {
            return malformed(format!("a schema of {} bytes is too long, at most {MAX_TEXT} are read", text.len()));
        }
        let root: Value = serde_json::from_str(text)
            .map_err(|error| Error::new(ErrorKind::Malformed, format!("the schema is no JSON: {error}")))?;
        let mut schema = Self::default();
        for (key, value) in object(&root)? {
            schema.read_entry(key, value).map_err(|error| error.in_field(key.as_str()))?;
        }
        Ok(schema)
    }

    fn read_entry(&mut self, key: &str, value: &Value) -> Result<()> {
        let entry = object(value)?;
        if text(entry, "Name")? != key && key != MACHINE {
            return malformed("\"Name\" is not the key".into());
        }
        if key == MACHINE {
            only(entry, &["Name"])?;
            self.machine = Some(text(entry, "Name")?.to_owned());
            return Ok(());
        }
        only(entry, &["Name", "version_id", "minimum_version_id", "Description"])?;
        let section = inside("Description", entry, |value| description(value, 0))?;
        let versions = (version(entry, "version_id")?, version(entry, "minimum_version_id")?);
        if versions != (section.version, section.minimum_version) {
            return malformed("the versions are not those of \"Description\"".into());
        }
        self.sections.push((key.to_owned(), section));
        Ok(())
    }
}

fn description(value: &Value, depth: usize) -> Result<Description> {
    if depth > MAX_DEPTH {
        return malformed(format!("more than {MAX_DEPTH} descriptions inside one another"));
    }
    let of = object(value)?;
    only(of, &["name", "version_id", "minimum_version_id", "Fields", "Subsections"])?;
    let fields = list(of, "Fields", |value| field(value, depth))?;
    let subsections = list(of, "Subsections", |value| description(value, depth + 1))?;
    let (newest, oldest) = (version(of, "version_id")?, version(of, "minimum_version_id")?);
    Ok(Description::new(text(of, "name")?.into(), newest, oldest, fields.into(), subsections.into()))
}

fn field(value: &Value, depth: usize) -> Result<Field> {
    let of = object(value)?;
    only(
        of,
        &[
            "field",
            "version_id",
            "field_exists",
            "num",
            "size",
            "type",
            "custom",
            "dimensions",
            "exists",
            "Description",
        ],
    )?;
    let name = text(of, "field")?;
    let since = version(of, "version_id")?;
    let presence = match need(of, "field_exists")?.as_bool() {
        Some(true) => Presence::If(if of.contains_key("exists") { text(of, "exists")? } else { "" }.into()),
        Some(false) => Presence::Since(since),
        None => return wrong("field_exists", "true or false"),
    };
    let size = number(of, "size")?;
    let mut kind = match of.contains_key("type") {
        true => element(of, text(of, "type")?, size, depth)?,
        false if of.contains_key("Description") => nested(of, depth)?,
        false if name == "unused" => Kind::Unused(size),
        false => Kind::Custom(format!("{OPAQUE}{size}").as_str().into()),
    };
    for dimension in dimensions(of)?.into_iter().rev() {
        kind = match dimension {
            Some(count) => Kind::Array(Shared::from(kind), count),
            None => Kind::CountedArray(Shared::from(kind)),
        };
    }
    Ok(Field::new(name.into(), kind, presence))
}

fn element(of: &Object, name: &str, size: usize, depth: usize) -> Result<Kind> {
    let (kind, bytes) = match name {
        "bool" => (Kind::Bool, 1),
        "uint8" => (Kind::Unsigned(1), 1),
        "uint16" => (Kind::Unsigned(2), 2),
        "uint32" => (Kind::Unsigned(4), 4),
        "uint64" => (Kind::Unsigned(8), 8),
        "int8" => (Kind::Signed(1), 1),
        "int16" => (Kind::Signed(2), 2),
        "int32" => (Kind::Signed(4), 4),
        "int64" => (Kind::Signed(8), 8),
        "buffer" => (Kind::Buffer(size), size),
        "unused_buffer" => (Kind::Unused(size), size),
        "counted_buffer" => (Kind::CountedBuffer, 0),
        "check" => (Kind::Check, 0),
        "custom" => (Kind::Custom(text(of, "custom")?.into()), 0),
        "struct" => (nested(of, depth)?, size),
        _ => return malformed(format!("type {name:?} does not exist")),
    };
    if bytes != size {
        return malformed(format!("a {name} has {bytes} bytes, \"size\" says {size}"));
    }
    Ok(kind)
}

fn nested(of: &Object, depth: usize) -> Result<Kind> {
    inside("Description", of, |value| description(value, depth + 1)).map(|nested| Kind::Struct(nested.into()))
}

/// Lengths of an array, outermost first; QEMU says one number for all.
fn dimensions(of: &Object) -> Result<Vec<Option<usize>>> {
    let total = if of.contains_key("num") { Some(number(of, "num")?) } else { None };
    let Some(value) = of.get("dimensions") else { return Ok(total.map(Some).into_iter().collect()) };
    let wrong = || wrong("dimensions", "a list of 1 to 8 numbers or nulls");
    let Some(list) = value.as_array().filter(|list| (1..=MAX_DIMENSIONS).contains(&list.len())) else { return wrong() };
    let mut dimensions = Vec::new();
    for value in list {
        match value.as_u64().map(usize::try_from) {
            Some(Ok(count)) => dimensions.push(Some(count)),
            None if value.is_null() => dimensions.push(None),
            _ => return wrong(),
        }
    }
    let product = dimensions.iter().try_fold(1_usize, |product, dimension| Some(product.saturating_mul((*dimension)?)));
    match product == total {
        true => Ok(dimensions),
        false => malformed("\"num\" is not the product of \"dimensions\"".into()),
    }
}

fn object(value: &Value) -> Result<&Object> {
    value.as_object().ok_or_else(|| Error::new(ErrorKind::Malformed, "an object {…} expected"))
}

/// A key that this reader does not know could change what the others mean.
fn only(of: &Object, known: &[&str]) -> Result<()> {
    match of.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => malformed(format!("key {key:?} is not known")),
        None => Ok(()),
    }
}

fn need<'a>(of: &'a Object, key: &str) -> Result<&'a Value> {
    of.get(key).ok_or_else(|| Error::new(ErrorKind::Malformed, format!("key {key:?} is missing")))
}

fn text<'a>(of: &'a Object, key: &str) -> Result<&'a str> {
    need(of, key)?.as_str().map_or_else(|| wrong(key, "a string"), Ok)
}

fn number(of: &Object, key: &str) -> Result<usize> {
    let number = need(of, key)?.as_u64().and_then(|number| usize::try_from(number).ok());
    number.map_or_else(|| wrong(key, "a number of elements or bytes"), Ok)
}

fn version(of: &Object, key: &str) -> Result<u32> {
    let version = need(of, key)?.as_u64().and_then(|version| u32::try_from(version).ok());
    version.map_or_else(|| wrong(key, "a version from 0 to 4294967295"), Ok)
}

fn inside<T>(key: &str, of: &Object, read: impl Fn(&Value) -> Result<T>) -> Result<T> {
    read(need(of, key)?).map_err(|error| error.in_field(key))
}

fn list<T>(of: &Object, key: &str, read: impl Fn(&Value) -> Result<T>) -> Result<Vec<T>> {
    let Some(value) = of.get(key) else { return Ok(Vec::new()) };
    let Some(values) = value.as_array() else { return wrong(key, "a list") };
    let element = |(index, value)| read(value).map_err(|error| error.in_element(index).in_field(key));
    values.iter().enumerate().map(element).collect()
}

fn wrong<T>(key: &str, expected: &str) -> Result<T> {
    malformed(format!("{key:?} has to be {expected}"))
}

fn malformed<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Malformed, message))
}
