//! Fields by name from the bytes of a section and a schema, for streams that do not describe themselves.
//!
//! A schema says what may be on the wire. What a save decided (predicates, counts, null pointers) is not in the bytes:
//! reading ends there.

use super::{Field, Fields, Subsection, Value, signed, unsigned};
use crate::codec::Reader;
use crate::codec::mark::{MORE, NO_MORE, NULL, SUBSECTION};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{self, Description, Kind, Presence};

impl Fields {
    /// Reads a section's body that was written at `version`, as far as bytes and description say what is there; all that
    /// came before an error stays in `self`.
    ///
    /// # Errors
    /// `Incompatible` where the bytes do not say how they go on, `Malformed` if they are not what the description says,
    /// `Incomplete` if they end too early. The path names the field.
    pub fn read_by_schema(&mut self, input: &mut Reader<'_>, description: &Description, version: u32) -> Result<()> {
        let (newest, oldest) = (description.version, description.minimum_version);
        if version < oldest || version > newest {
            return unknown(input, format!("version {version}, the schema has {oldest} to {newest}"));
        }
        for field in description.fields.iter() {
            self.read_described(input, field, version).map_err(|error| error.in_field(&*field.name))?;
        }
        while let Some(name) = next_subsection(input, description) {
            let Some(known) = description.subsections.iter().find(|subsection| *subsection.name == *name) else {
                return unknown(input, format!("subsection {name}, which the schema does not have"));
            };
            input.take(1)?;
            let (_, version) = (input.name()?, input.u32()?);
            self.subsections.push(Subsection { name: name.clone(), version, fields: Self::default() });
            let Some(added) = self.subsections.last_mut() else { continue };
            added.fields.read_by_schema(input, known, version).map_err(|error| error.in_field(name))?;
        }
        Ok(())
    }

    fn read_described(&mut self, input: &mut Reader<'_>, described: &schema::Field, version: u32) -> Result<()> {
        match &described.presence {
            _ if described.kind == Kind::Check => return Ok(()),
            Presence::Since(since) if *since > version => return Ok(()),
            Presence::Since(_) => {}
            Presence::If(predicate) => {
                let predicate = if predicate.is_empty() { "a predicate" } else { predicate };
                return unknown(input, format!("{predicate} decides whether it is there"));
            }
        }
        self.read_named(input, &described.name, &described.kind)
    }

    fn read_named(&mut self, input: &mut Reader<'_>, name: &str, kind: &Kind) -> Result<()> {
        let offset = input.offset();
        let mut value = Value::Array(Vec::new());
        let read = read_value(input, kind, &mut value);
        let size = input.offset().saturating_sub(offset);
        if size > 0 || read.is_ok() {
            self.fields.push(Field { name: name.to_owned(), type_name: schema::type_name(kind), offset, size, value });
        }
        read
    }
}

/// Reads one value; of one that is damaged or unknown from some point on, `into` gets what came before.
fn read_value(input: &mut Reader<'_>, kind: &Kind, into: &mut Value) -> Result<()> {
    // An element of no bytes, a thousand million times, is not free.
    input.charge(size_of::<Field>())?;
    let bytes = match kind {
        Kind::Bool => {
            let offset = input.offset();
            *into = match input.u8()? {
                value @ (0 | 1) => Value::Bool(value == 1),
                other => return malformed(offset, format!("a bool is 0 or 1, got {other}")),
            };
            return Ok(());
        }
        Kind::Unsigned(width) => {
            *into = Value::Unsigned(unsigned(input.take(usize::from(*width))?));
            return Ok(());
        }
        Kind::Signed(width) => {
            *into = Value::Signed(signed(input.take(usize::from(*width))?));
            return Ok(());
        }
        Kind::Timer => {
            *into = Value::Unsigned(input.u64()?);
            return Ok(());
        }
        Kind::Limited(inner, _) => return read_value(input, inner, into),
        Kind::Struct(nested) | Kind::Temporary(nested) => return read_struct(input, nested, nested.version, into),
        Kind::StructAt(nested, version) => return read_struct(input, nested, *version, into),
        Kind::Array(element, count) => return read_elements(input, element, *count, into),
        Kind::List(element) => return read_list(input, into, |input, into| read_value(input, element, into)),
        Kind::Map(key, value) => return read_map(input, key, value, into),
        Kind::Nullable(inner) => {
            return match input.peek(1) {
                Some([NULL]) => unknown(input, "0x30 is a null pointer, or the first byte of the value".to_owned()),
                _ => read_value(input, inner, into),
            };
        }
        Kind::CountedBuffer | Kind::CountedArray(_) | Kind::CountedBitmap => {
            return unknown(input, "the schema does not say which field has its length".to_owned());
        }
        Kind::Check => return Ok(()),
        Kind::Double => 8,
        Kind::Buffer(bytes) | Kind::Unused(bytes) => *bytes,
        Kind::Bitmap(bits) => bits.div_ceil(64) * 8,
        // QEMU's size is that in memory. Of most fields it is that on the wire, too, else the footer is not where it
        // should be.
        Kind::Custom(codec) => match schema::json::opaque_size(kind) {
            Some(bytes @ 1..) => usize::try_from(bytes).unwrap_or(usize::MAX),
            Some(0) => return unknown(input, "the schema has no size of it".to_owned()),
            None => return unknown(input, format!("only its codec {codec} knows its bytes")),
        },
    };
    let bytes = input.take(bytes)?;
    input.charge(bytes.len())?;
    *into = Value::Bytes(bytes.to_vec());
    Ok(())
}

fn read_struct(input: &mut Reader<'_>, nested: &Description, version: u32, into: &mut Value) -> Result<()> {
    let mut fields = Fields::default();
    let read = fields.read_by_schema(input, nested, version);
    *into = Value::Struct(fields);
    read
}

fn read_elements(input: &mut Reader<'_>, element: &Kind, count: usize, into: &mut Value) -> Result<()> {
    let mut values = Vec::new();
    let read = (0..count)
        .try_for_each(|index| push(&mut values, index, input, |input, into| read_value(input, element, into)));
    *into = Value::Array(values);
    read
}

fn read_list(
    input: &mut Reader<'_>,
    into: &mut Value,
    mut read: impl FnMut(&mut Reader<'_>, &mut Value) -> Result<()>,
) -> Result<()> {
    let mut values = Vec::new();
    let result = loop {
        let offset = input.offset();
        match input.u8() {
            Ok(NO_MORE) => break Ok(()),
            Ok(MORE) => {}
            Ok(other) => break malformed(offset, format!("1 before an element or 0 at the end expected, got {other}")),
            Err(error) => break Err(error),
        }
        let index = values.len();
        if let Err(error) = push(&mut values, index, input, &mut read) {
            break Err(error);
        }
    };
    *into = Value::Array(values);
    result
}

/// Entries as structs of `key` and `value`.
fn read_map(input: &mut Reader<'_>, key: &Kind, value: &Kind, into: &mut Value) -> Result<()> {
    let offset = input.offset();
    let count = input.u32()?;
    read_list(input, into, |input, into| {
        let mut entry = Fields::default();
        let read = entry.read_named(input, "key", key).and_then(|()| entry.read_named(input, "value", value));
        *into = Value::Struct(entry);
        read
    })?;
    match into {
        Value::Array(entries) if entries.len() != count as usize => {
            malformed(offset, format!("{count} entries are said to come, {} do", entries.len()))
        }
        _ => Ok(()),
    }
}

/// Reads one more element.
fn push(
    values: &mut Vec<Value>,
    index: usize,
    input: &mut Reader<'_>,
    read: impl FnOnce(&mut Reader<'_>, &mut Value) -> Result<()>,
) -> Result<()> {
    let before = input.offset();
    let mut value = Value::Array(Vec::new());
    let result = read(input, &mut value);
    if result.is_ok() || input.offset() > before {
        values.push(value);
    }
    result.map_err(|error| error.in_element(index))
}

/// The name of the subsection that comes next, if one of this struct does: its name begins with the struct's
/// (`vmstate_subsection_load`, migration/vmstate.c).
fn next_subsection(input: &Reader<'_>, of: &Description) -> Option<String> {
    let [SUBSECTION, length] = *input.peek(2)? else { return None };
    let name = input.peek(2 + usize::from(length))?.get(2..)?;
    let name = str::from_utf8(name).ok()?;
    let is_ours = name.strip_prefix(&*of.name).is_some_and(|rest| !rest.is_empty());
    is_ours.then(|| name.to_owned())
}

/// The bytes are well formed, but do not say how they go on.
fn unknown(input: &Reader<'_>, message: String) -> Result<()> {
    Err(Error::new(ErrorKind::Incompatible, message).at(input.offset()))
}

fn malformed(offset: u64, message: String) -> Result<()> {
    Err(Error::new(ErrorKind::Malformed, message).at(offset))
}
