//! Parses device sections by their description: fields in order, then the subsections that were sent.
//!
//! The description has a type and a size for each field; a type of known width must have that size.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value as Json;

use super::cursor::{Cursor, Result, error};
use super::subsection_header;

/// Values of a section, of a subsection or of a struct.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields {
    /// The fields in wire order. An array whose elements the description lists appears once for each element.
    pub fields: Vec<Field>,
    /// The subsections that were sent.
    pub subsections: Vec<Subsection>,
}

/// A value with its name, type and place.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Name in the description.
    pub name: String,
    /// Type in the description.
    pub kind: String,
    /// Bytes on the wire.
    pub bytes: Range<usize>,
    /// The decoded value.
    pub value: Value,
}

/// A subsection that was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Subsection {
    /// Its whole name, as `serial/fifo`.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// Its values.
    pub fields: Fields,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned number, a time, or a truth value (0 or 1).
    Unsigned(u64),
    /// A signed number.
    Signed(i64),
    /// Bytes without structure in the description.
    Bytes(Vec<u8>),
    /// A struct.
    Struct(Fields),
    /// Elements of one type.
    Array(Vec<Value>),
}

impl Fields {
    /// The value at a path, as `["state", "lcr"]`.
    pub fn value(&self, path: &[&str]) -> Option<&Value> {
        let (name, rest) = path.split_first()?;
        let value = &self.fields.iter().find(|field| field.name == *name)?.value;
        match (rest, value) {
            ([], value) => Some(value),
            (rest, Value::Struct(fields)) => fields.value(rest),
            _ => None,
        }
    }

    /// The subsection called `name`.
    pub fn subsection(&self, name: &str) -> Option<&Subsection> {
        self.subsections.iter().find(|subsection| subsection.name == name)
    }
}

/// Name and instance of each described device, in order.
pub(super) fn order(description: &Json) -> Vec<(String, u32)> {
    let devices = description["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
    devices.iter().filter_map(identity).collect()
}

/// Descriptions by name and instance.
pub(super) fn described(description: &Json) -> Result<BTreeMap<(String, u32), Json>> {
    let Some(devices) = description["devices"].as_array() else {
        return error(0, "a description with \"devices\"", description);
    };
    let mut described = BTreeMap::new();
    for device in devices {
        let Some(identity) = identity(device) else {
            return error(0, "a device with \"name\" and \"instance_id\"", device);
        };
        if described.insert(identity, device.clone()).is_some() {
            return error(0, "each device once in the description", &device["name"]);
        }
    }
    Ok(described)
}

fn identity(device: &Json) -> Option<(String, u32)> {
    Some((device["name"].as_str()?.to_string(), device["instance_id"].as_u64()?.try_into().ok()?))
}

/// Parses the body of a FULL section of `version`. The description of a device that is saved by a function has a size
/// instead of a version.
pub(super) fn section(cursor: &mut Cursor<'_>, description: &Json, version: u32) -> Result<Fields> {
    if description.get("version").is_some() && description["version"] != version {
        return error(cursor.at, format!("version {} as described", description["version"]), version);
    }
    fields(cursor, description)
}

fn fields(cursor: &mut Cursor<'_>, description: &Json) -> Result<Fields> {
    let Some(described) = description["fields"].as_array() else {
        return error(cursor.at, "a description with \"fields\"", description);
    };
    let mut fields = Fields::default();
    for field in described {
        fields.fields.push(self::field(cursor, field)?);
    }
    for subsection in description["subsections"].as_array().into_iter().flatten() {
        let at = cursor.at;
        let (name, version) = subsection_header(cursor)?;
        if subsection["vmsd_name"] != name.as_str() || subsection["version"] != version {
            let expected = format!("subsection {} {}", subsection["vmsd_name"], subsection["version"]);
            return error(at, expected, format!("{name} {version}"));
        }
        fields.subsections.push(Subsection { name, version, fields: self::fields(cursor, subsection)? });
    }
    Ok(fields)
}

fn field(cursor: &mut Cursor<'_>, field: &Json) -> Result<Field> {
    let start = cursor.at;
    let (Some(name), Some(kind), Some(size)) = (field["name"].as_str(), field["type"].as_str(), field["size"].as_u64())
    else {
        return error(start, "a field with \"name\", \"type\" and \"size\"", field);
    };
    let value = match field.get("array_len") {
        None => value(cursor, field, name, kind, size)?,
        Some(count) => {
            let Some(count) = count.as_u64() else {
                return error(start, format!("a number as array_len of {name}"), count);
            };
            let elements: Result<_> = (0..count).map(|_| value(cursor, field, name, kind, size)).collect();
            Value::Array(elements?)
        }
    };
    Ok(Field { name: name.into(), kind: kind.into(), bytes: start..cursor.at, value })
}

fn value(cursor: &mut Cursor<'_>, field: &Json, name: &str, kind: &str, size: u64) -> Result<Value> {
    let start = cursor.at;
    let width = match kind.split(' ').next().unwrap_or_default() {
        "bool" | "int8" | "uint8" => Some(1),
        "int16" | "uint16" => Some(2),
        "int32" | "uint32" => Some(4),
        "int64" | "uint64" | "timer" => Some(8),
        _ => None,
    };
    if width.is_some_and(|width| width != size) {
        return error(start, format!("{} bytes for {name}, a {kind}", width.unwrap_or_default()), size);
    }
    if let Some(nested) = field.get("struct") {
        let fields = fields(cursor, nested)?;
        if (cursor.at - start) as u64 != size {
            return error(start, format!("{size} bytes for the struct {name}"), cursor.at - start);
        }
        return Ok(Value::Struct(fields));
    }
    let bytes = cursor.take(size.try_into().unwrap_or(usize::MAX), name)?;
    if kind == "bool" && bytes[0] > 1 {
        return error(start, format!("0 or 1 for {name}"), bytes[0]);
    }
    if kind == "unused_buffer" && bytes.iter().any(|&byte| byte != 0) {
        return error(start, format!("zero bytes for {name}"), format!("{bytes:02x?}"));
    }
    let unsigned = bytes.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte));
    Ok(match width {
        None => Value::Bytes(bytes.to_vec()),
        // Sign extension: the narrow type's sign bit is shifted to the top and back.
        Some(width) if kind.starts_with("int") => {
            let shift = 64 - 8 * width;
            Value::Signed((unsigned << shift) as i64 >> shift)
        }
        Some(_) => Value::Unsigned(unsigned),
    })
}
