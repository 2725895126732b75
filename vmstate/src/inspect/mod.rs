//! Fields by name from the bytes of a section and the self-description of its stream alone: no type of a device is
//! needed. A stream that does not describe itself is read by a schema, as far as that goes.
//!
//! The description is an entry of `devices` in the JSON at a stream's end, as [`vmdesc`](crate::schema::vmdesc()) or QEMU
//! writes it. Neither it nor the bytes are trusted; what was read before they disagreed is kept.

mod by_schema;

use serde_json::{Map, Value as Json, json};

use crate::codec::Reader;
use crate::codec::mark::SUBSECTION;
use crate::error::{Error, ErrorKind, Result};

/// Values of a section, of a subsection, or of a struct in one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields {
    /// In wire order. Arrays whose elements differ have one field for each.
    pub fields: Vec<Field>,
    /// Those that were sent.
    pub subsections: Vec<Subsection>,
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Name, with `[index]` if the description lists this element of an array alone.
    pub name: String,
    /// Type, in the description's words.
    pub type_name: String,
    /// Stream offset of its first byte.
    pub offset: u64,
    /// Bytes on the wire.
    pub size: u64,
    /// What they mean.
    pub value: Value,
}

/// A subsection that was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Subsection {
    /// Whole name, as `serial/fifo`.
    pub name: String,
    /// Version of its fields.
    pub version: u32,
    /// Its values.
    pub fields: Fields,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `bool`.
    Bool(bool),
    /// `uint8` to `uint64`, and a timer's expiry in nanoseconds.
    Unsigned(u64),
    /// `int8` to `int64`.
    Signed(i64),
    /// Bytes that the description does not take apart.
    Bytes(Vec<u8>),
    /// A nested struct.
    Struct(Fields),
    /// Elements of one type.
    Array(Vec<Value>),
}

impl Fields {
    /// Reads a section's body, or a struct, by its description; all that came before an error stays in `self`.
    ///
    /// # Errors
    /// `Malformed` if the description is none, or the bytes are not what it says; `Incomplete` if they end too early.
    /// The path names the field.
    pub fn read(&mut self, input: &mut Reader<'_>, description: &Json) -> Result<()> {
        let offset = input.offset();
        for field in list(description, "fields").ok_or_else(|| undescribed(offset, "fields"))? {
            self.read_field(input, field)?;
        }
        for subsection in list(description, "subsections").unwrap_or_default() {
            let (name, version) = read_subsection_header(input, subsection)?;
            self.subsections.push(Subsection { name: name.clone(), version, fields: Self::default() });
            let Some(added) = self.subsections.last_mut() else { continue };
            added.fields.read(input, subsection).map_err(|error| error.in_field(name))?;
        }
        Ok(())
    }

    fn read_field(&mut self, input: &mut Reader<'_>, described: &Json) -> Result<()> {
        let offset = input.offset();
        let name = text(described, "name", offset)?;
        let type_name = text(described, "type", offset)?.to_owned();
        let name = match described.get("index").and_then(Json::as_u64) {
            Some(index) => format!("{name}[{index}]"),
            None => name.to_owned(),
        };
        // Each element of an array of structs has them again.
        input.charge(name.len().saturating_add(type_name.len())).map_err(|error| error.in_field("name"))?;
        let mut value = Value::Array(Vec::new());
        let read = match described.get("array_len").and_then(Json::as_u64) {
            None => read_value(input, described, &type_name, &mut value),
            Some(count) => read_array(input, described, &type_name, count, &mut value),
        };
        let size = input.offset().saturating_sub(offset);
        let came = size > 0 || read.is_ok();
        let read = read.map_err(|error| error.in_field(name.as_str()));
        if came {
            self.fields.push(Field { name, type_name, offset, size, value });
        }
        read
    }

    /// An object of all values by name: numbers, `true`, bytes as hex. Equal names are told apart by the description.
    pub fn to_json(&self) -> Json {
        let mut object = Map::new();
        for field in &self.fields {
            let name = match object.contains_key(&field.name) {
                true => format!("{}@{:#x}", field.name, field.offset),
                false => field.name.clone(),
            };
            object.insert(name, field.value.to_json());
        }
        for subsection in &self.subsections {
            let value = json!({"version": subsection.version, "fields": subsection.fields.to_json()});
            object.insert(subsection.name.clone(), value);
        }
        Json::Object(object)
    }
}

impl Value {
    /// As JSON; bytes as hex.
    pub fn to_json(&self) -> Json {
        match self {
            Self::Bool(value) => (*value).into(),
            Self::Unsigned(value) => (*value).into(),
            Self::Signed(value) => (*value).into(),
            Self::Bytes(bytes) => hex(bytes).into(),
            Self::Struct(fields) => fields.to_json(),
            Self::Array(values) => values.iter().map(Self::to_json).collect(),
        }
    }
}

/// Two hexadecimal digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_subsection_header(input: &mut Reader<'_>, described: &Json) -> Result<(String, u32)> {
    let offset = input.offset();
    let wanted = text(described, "vmsd_name", offset)?;
    let malformed = |message: String| Err(Error::new(ErrorKind::Malformed, message).at(offset));
    let mark = input.u8()?;
    if mark != SUBSECTION {
        return malformed(format!("subsection {wanted} ({SUBSECTION:#04x}) expected, got {mark:#04x}"));
    }
    let (name, version) = (input.name()?.to_owned(), input.u32()?);
    match name == wanted && described.get("version").and_then(Json::as_u64) == Some(version.into()) {
        true => Ok((name, version)),
        false => {
            malformed(format!("the description has subsection {wanted} here, the stream {name} version {version}"))
        }
    }
}

fn read_array(input: &mut Reader<'_>, of: &Json, kind: &str, count: u64, into: &mut Value) -> Result<()> {
    let mut values = Vec::new();
    let mut read = Ok(());
    for index in 0..count {
        let before = input.offset();
        let mut value = Value::Array(Vec::new());
        read = read_value(input, of, kind, &mut value);
        if read.is_ok() || input.offset() > before {
            values.push(value);
        }
        if read.is_err() {
            read = read.map_err(|error| error.in_element(usize::try_from(index).unwrap_or(usize::MAX)));
            break;
        }
    }
    *into = Value::Array(values);
    read
}

/// Reads one value; of a struct that is damaged, `into` gets what came before.
fn read_value(input: &mut Reader<'_>, described: &Json, kind: &str, into: &mut Value) -> Result<()> {
    // An element of no bytes, named a thousand million times, is not free.
    input.charge(size_of::<Field>())?;
    let offset = input.offset();
    let malformed = |message: String| Err(Error::new(ErrorKind::Malformed, message).at(offset));
    let size = described.get("size").and_then(Json::as_u64).and_then(|size| usize::try_from(size).ok());
    let size = size.ok_or_else(|| undescribed(offset, "size"))?;
    if let Some(nested) = described.get("struct") {
        let mut fields = Fields::default();
        let read = fields.read(input, nested);
        *into = Value::Struct(fields);
        read?;
        let came = input.offset().saturating_sub(offset);
        return match came == size as u64 {
            true => Ok(()),
            false => malformed(format!("a struct of {size} bytes is described, its fields have {came}")),
        };
    }
    let width = match kind.split(' ').next().unwrap_or_default() {
        "bool" | "int8" | "uint8" => Some(1),
        "int16" | "uint16" => Some(2),
        "int32" | "uint32" => Some(4),
        "int64" | "uint64" | "timer" => Some(8),
        _ => None,
    };
    if let Some(width) = width.filter(|&width| width != size) {
        return malformed(format!("a {kind} has {width} bytes, the description says {size}"));
    }
    let bytes = input.take(size)?;
    *into = match (width, kind) {
        (None, _) => {
            input.charge(size)?;
            Value::Bytes(bytes.to_vec())
        }
        (_, "bool") => match unsigned(bytes) {
            value @ (0 | 1) => Value::Bool(value == 1),
            other => return malformed(format!("a bool is 0 or 1, got {other}")),
        },
        (Some(_), kind) if kind.starts_with("int") => Value::Signed(signed(bytes)),
        (Some(_), _) => Value::Unsigned(unsigned(bytes)),
    };
    Ok(())
}

/// Up to eight bytes, big-endian.
fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// One to eight bytes, big-endian, two's complement.
fn signed(bytes: &[u8]) -> i64 {
    // The sign bit goes to the top, and comes back with its copies.
    let shift = 64 - 8 * bytes.len().clamp(1, 8);
    (unsigned(bytes) << shift).cast_signed() >> shift
}

fn list<'a>(of: &'a Json, key: &str) -> Option<&'a [Json]> {
    of.get(key)?.as_array().map(Vec::as_slice)
}

fn text<'a>(of: &'a Json, key: &str, offset: u64) -> Result<&'a str> {
    of.get(key).and_then(Json::as_str).ok_or_else(|| undescribed(offset, key))
}

fn undescribed(offset: u64, key: &str) -> Error {
    let message = format!("the self-description has no usable {key:?} for what is here");
    Error::new(ErrorKind::Malformed, message).at(offset)
}
