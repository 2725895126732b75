//! The self-description after the end of a stream: `06 | u32 length | JSON`, with QEMU's keys.
//!
//! Loaders do not need it; tools that decode a stream without the program that wrote it do.

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Value, json};
use std::io;

use super::element::kind;
use crate::codec::{Outcomes, Reader};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Description, vmdesc};

/// The longest self-description that a loader reads, in bytes; QEMU's for a large machine is about 100 KiB.
pub const MAX_DESCRIPTION: u32 = 16 << 20;

/// The self-description of one stream, built while its sections are written.
#[derive(Debug)]
pub struct SelfDescription {
    machine: usize,
    page_size: u64,
    devices: Vec<Value>,
}

impl SelfDescription {
    /// Begins the self-description of a stream whose configuration names `machine`.
    pub fn new(machine: &str, page_size: u64) -> Self {
        Self { machine: machine.len(), page_size, devices: Vec::new() }
    }

    /// Adds the section just written.
    ///
    /// # Errors
    /// `Misuse` if the section was not written according to its description.
    pub fn push(&mut self, idstr: &str, instance: u32, description: &Description, outcomes: &Outcomes) -> Result<()> {
        let mut device = Map::new();
        device.insert("name".into(), idstr.into());
        device.insert("instance_id".into(), instance.into());
        device.extend(vmdesc(description, outcomes)?);
        self.devices.push(Value::Object(device));
        Ok(())
    }

    /// Appends marker, length and text.
    pub fn write(&self, out: &mut Vec<u8>) {
        let text = compact(&json!({
            "configuration": {
                "vmsd_name": "configuration",
                "version": 1,
                "fields": [
                    {"name": "len", "type": "uint32", "size": 4},
                    {"name": "name", "type": "buffer", "size": self.machine},
                ],
            },
            "page_size": self.page_size,
            "devices": self.devices,
        }));
        let Ok(length) = u32::try_from(text.len()) else { return };
        out.push(kind::DESCRIPTION);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&text);
    }
}

/// Reads marker and length; the text of that length follows.
///
/// # Errors
/// `Malformed` for another marker, or a length above [`MAX_DESCRIPTION`].
pub fn read_description_length(input: &mut Reader<'_>) -> Result<u32> {
    let offset = input.offset();
    let malformed = |message: String| Err(Error::new(ErrorKind::Malformed, message).at(offset));
    match (input.u8()?, input.u32()?) {
        (kind::DESCRIPTION, length) if length <= MAX_DESCRIPTION => Ok(length),
        (kind::DESCRIPTION, length) => malformed(format!("a self-description of {length} bytes is too long")),
        (mark, _) => malformed(format!("{mark:#04x} after the end of the stream")),
    }
}

/// JSON on one line with `", "` between items and `": "` after names, ASCII only (qobject/json-writer.c).
fn compact(value: &Value) -> Vec<u8> {
    let mut text = Vec::new();
    // Writing JSON values into memory cannot fail.
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Compact));
    text
}

struct Compact;

impl Formatter for Compact {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut units = [0; 2];
        for character in fragment.chars() {
            if character.is_ascii() {
                write!(out, "{character}")?;
            } else {
                character.encode_utf16(&mut units).iter().try_for_each(|unit| write!(out, "\\u{unit:04X}"))?;
            }
        }
        Ok(())
    }
}
