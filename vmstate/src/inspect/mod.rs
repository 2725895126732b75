//! Decodes fields by name from the bytes of a section and the self-description of its stream, without the device's type. A stream
//! without self-description is decoded by a schema, as far as the schema determines the bytes.
//!
//! The description is an entry of `devices` in the JSON at a stream's end, as [`vmdesc`](crate::schema::vmdesc()) or QEMU writes
//! it. Neither the description nor the bytes are trusted; values that were decoded before an inconsistency are kept.

mod read;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json, json};

use crate::codec::Reader;
use crate::error::Result;
use crate::schema::Description;
use crate::schema::program::Program;

/// The values of a section, of a subsection, or of a nested struct.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields {
    /// Fields in wire order. An array whose elements differ has one field for each element.
    pub fields: Vec<Field>,
    /// Subsections that were sent.
    pub subsections: Vec<Subsection>,
}

/// A value with its position in the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Name, with `[index]` if the description lists this element of an array alone.
    pub name: String,
    /// The type's name in the description.
    pub type_name: String,
    /// Stream offset of the first byte.
    pub offset: u64,
    /// Size on the wire in bytes.
    pub size: u64,
    /// The decoded value.
    pub value: Value,
}

/// A subsection that was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Subsection {
    /// Full name, as `serial/fifo`.
    pub name: String,
    /// Version of its fields.
    pub version: u32,
    /// The values of the subsection.
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
    /// Bytes whose meaning the description does not define.
    Bytes(Vec<u8>),
    /// A nested struct.
    Struct(Fields),
    /// Elements of one type.
    Array(Vec<Value>),
}

impl Fields {
    /// Decodes a section's body, or a struct, by its self-description; the values before an error stay in `self`.
    ///
    /// # Errors
    /// `Malformed` if the description is invalid or the bytes do not match it; `Incomplete` if they end too early. The path names
    /// the field.
    #[doc(hidden)]
    pub fn read(&mut self, input: &mut Reader<'_>, description: &Json) -> Result<()> {
        let program = Program::described(description);
        self.run(input, &program, program.newest)
    }

    /// Decodes a section's body that was written at `version`, as far as the bytes and the description determine the layout; the
    /// values before an error stay in `self`.
    ///
    /// # Errors
    /// `Incompatible` where the bytes do not determine what follows, `Malformed` if they do not match the description,
    /// `Incomplete` if they end too early. The path names the field.
    pub fn read_by_schema(&mut self, input: &mut Reader<'_>, description: &Description, version: u32) -> Result<()> {
        self.run(input, &Program::of(description), version)
    }

    pub(crate) fn to_json(&self) -> Json {
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

/// An object of all values by name: numbers, `true`, bytes as hex. A name that occurs twice is made unique with the field's
/// offset.
impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl Value {
    /// The value as a number, if it is one.
    fn number(&self) -> Option<i128> {
        match self {
            Self::Bool(value) => Some((*value).into()),
            Self::Unsigned(value) => Some((*value).into()),
            Self::Signed(value) => Some((*value).into()),
            _ => None,
        }
    }

    fn to_json(&self) -> Json {
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

/// Bytes are written as hex.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

/// Two hexadecimal digits for each byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
