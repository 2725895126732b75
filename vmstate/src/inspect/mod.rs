//! Fields by name from the bytes of a section and the self-description of its stream alone: no type of a device is
//! needed. A stream that does not describe itself is read by a schema, as far as that goes.
//!
//! The description is an entry of `devices` in the JSON at a stream's end, as [`vmdesc`](crate::schema::vmdesc()) or QEMU
//! writes it. Neither it nor the bytes are trusted; what was read before they disagreed is kept.

mod read;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json, json};

use crate::codec::Reader;
use crate::error::Result;
use crate::schema::Description;
use crate::schema::program::Program;

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
    /// Reads a section's body, or a struct, by its self-description; all that came before an error stays in `self`.
    ///
    /// # Errors
    /// `Malformed` if the description is none, or the bytes are not what it says; `Incomplete` if they end too early.
    /// The path names the field.
    #[doc(hidden)]
    pub fn read(&mut self, input: &mut Reader<'_>, description: &Json) -> Result<()> {
        let program = Program::described(description);
        self.run(input, &program, program.newest)
    }

    /// Reads a section's body that was written at `version`, as far as bytes and description say what is there; all that
    /// came before an error stays in `self`.
    ///
    /// # Errors
    /// `Incompatible` where the bytes do not say how they go on, `Malformed` if they are not what the description says,
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

/// An object of all values by name: numbers, `true`, bytes as hex. Where a name comes twice, its offset is added to it.
impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl Value {
    /// The number that it is, if it is one.
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

/// Bytes are hex.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

/// Two hexadecimal digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
