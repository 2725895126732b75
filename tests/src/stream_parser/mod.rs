//! A reader of whole migration streams that shares no code with the crates under test.
//!
//! It is written from the facts of the format: QEMU 10.0, `docs/devel/migration` and the constants of
//! `migration/savevm.c`, `vmstate.c` and `ram.c`. Device sections are parsed by the self-description at the end of the
//! stream, so a stream whose bytes and description disagree is an error.

mod cursor;
mod device;
mod ram;

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value as Json;

use cursor::{Cursor, Result, error};

pub use cursor::ParseError;
pub use device::{Field, Fields, Subsection, Value};
pub use ram::{Page, Ram, RamBlock};

const MAGIC: u32 = 0x5145_564d;
const VERSION: u32 = 3;

const EOF: u8 = 0x00;
const START: u8 = 0x01;
const PART: u8 = 0x02;
const END: u8 = 0x03;
const FULL: u8 = 0x04;
const SUBSECTION: u8 = 0x05;
const DESCRIPTION: u8 = 0x06;
const CONFIGURATION: u8 = 0x07;
const COMMAND: u8 = 0x08;
const FOOTER: u8 = 0x7e;

/// A stream, parsed to its last byte.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The configuration.
    pub configuration: Configuration,
    /// Commands, in order.
    pub commands: Vec<Command>,
    /// Every section, in order; a section in parts appears once for each part.
    pub sections: Vec<Section>,
    /// The content of the `ram` sections.
    pub ram: Ram,
    /// The content of the FULL sections, in order.
    pub devices: Vec<Device>,
    /// The self-description.
    pub description: Json,
    /// Offset of the EOF byte.
    pub eof: usize,
}

/// The configuration section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Name of the machine type.
    pub machine: String,
    /// Capabilities that change the stream.
    pub capabilities: Vec<String>,
    /// Number of bits of the target's page size, where they are not the minimum.
    pub page_bits: Option<u32>,
    /// The machine's UUID.
    pub uuid: Option<[u8; 16]>,
}

/// A command of the source to the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The command's number.
    pub code: u16,
    /// The command's data.
    pub payload: Vec<u8>,
    /// The command's offset in the stream.
    pub offset: usize,
}

/// Whether a section is whole, or which part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionKind {
    /// The start of a section in parts.
    Start,
    /// A middle part of a section.
    Part,
    /// The last part of a section.
    End,
    /// A whole section.
    Full,
}

/// One section, or one part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Whether the section is whole, or which part of one.
    pub kind: SectionKind,
    /// Number of the section in this stream.
    pub id: u32,
    /// The section's name (idstr).
    pub name: String,
    /// The instance id.
    pub instance: u32,
    /// Version of the contents.
    pub version: u32,
    /// Offset of the section's type byte.
    pub offset: usize,
    /// Range of the body, between header and footer.
    pub body: Range<usize>,
}

/// Contents of a FULL section.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// The section's name (idstr).
    pub name: String,
    /// The instance id.
    pub instance: u32,
    /// Version of the contents.
    pub version: u32,
    /// The device's values.
    pub fields: Fields,
}

impl Stream {
    /// The device called `name`, of `instance`.
    pub fn device(&self, name: &str, instance: u32) -> Option<&Device> {
        self.devices.iter().find(|device| device.name == name && device.instance == instance)
    }
}

/// Reads a whole stream.
///
/// # Errors
/// The first offset where the bytes differ from what the format or the stream's own description requires.
pub fn parse(bytes: &[u8]) -> std::result::Result<Stream, ParseError> {
    let mut cursor = Cursor::new(bytes);
    cursor.exactly(Cursor::u32, &MAGIC, "magic")?;
    cursor.exactly(Cursor::u32, &VERSION, "stream version")?;
    cursor.exactly(Cursor::u8, &CONFIGURATION, "configuration mark")?;
    let configuration = configuration(&mut cursor)?;
    let description = find_description(bytes)?;
    let mut reader = Reader {
        described: device::described(&description)?,
        ids: BTreeMap::new(),
        stream: Stream {
            configuration,
            commands: Vec::new(),
            sections: Vec::new(),
            ram: Ram::default(),
            devices: Vec::new(),
            description,
            eof: 0,
        },
    };
    reader.sections(&mut cursor)?;
    reader.tail(&mut cursor)?;
    Ok(reader.stream)
}

fn configuration(cursor: &mut Cursor<'_>) -> Result<Configuration> {
    let len = cursor.u32("length of the machine name")?;
    let mut configuration =
        Configuration { machine: cursor.text(len as usize, "machine name")?, ..Configuration::default() };
    while cursor.clone().u8("section type")? == SUBSECTION {
        let at = cursor.at;
        let (name, version) = subsection_header(cursor)?;
        match (name.as_str(), version) {
            ("configuration/target-page-bits", 1) => configuration.page_bits = Some(cursor.u32("page bits")?),
            ("configuration/capabilities", 1) => {
                for _ in 0..cursor.u32("count of capabilities")? {
                    configuration.capabilities.push(cursor.counted_text("capability")?);
                }
            }
            ("configuration/uuid", 1) => {
                configuration.uuid = cursor.take(16, "UUID")?.try_into().ok();
            }
            _ => return error(at, "a known configuration subsection of version 1", format!("{name} {version}")),
        }
    }
    Ok(configuration)
}

fn subsection_header(cursor: &mut Cursor<'_>) -> Result<(String, u32)> {
    cursor.exactly(Cursor::u8, &SUBSECTION, "subsection mark")?;
    Ok((cursor.counted_text("subsection name")?, cursor.u32("subsection version")?))
}

/// Finds the description, which is the last part of the stream, after EOF, its type byte and its length.
fn find_description(bytes: &[u8]) -> Result<Json> {
    let starts = (1..bytes.len().saturating_sub(5)).rev().filter(|&at| {
        let length = [bytes[at + 1], bytes[at + 2], bytes[at + 3], bytes[at + 4]];
        bytes[at - 1..=at] == [EOF, DESCRIPTION] && u32::from_be_bytes(length) as usize == bytes.len() - at - 5
    });
    for at in starts {
        if let Ok(description @ Json::Object(_)) = serde_json::from_slice(&bytes[at + 5..]) {
            return Ok(description);
        }
    }
    error(bytes.len(), "EOF and a description in JSON that reaches to the last byte", "none")
}

struct Reader {
    described: BTreeMap<(String, u32), Json>,
    ids: BTreeMap<u32, (String, u32, u32)>,
    stream: Stream,
}

impl Reader {
    fn sections(&mut self, cursor: &mut Cursor<'_>) -> Result<()> {
        loop {
            let offset = cursor.at;
            let kind = match cursor.u8("section type")? {
                EOF => {
                    self.stream.eof = offset;
                    return Ok(());
                }
                COMMAND => {
                    let command = command(cursor, offset)?;
                    self.stream.commands.push(command);
                    continue;
                }
                START => SectionKind::Start,
                PART => SectionKind::Part,
                END => SectionKind::End,
                FULL => SectionKind::Full,
                other => return error(offset, "a section, a command or EOF", format!("type {other:#04x}")),
            };
            self.section(cursor, offset, kind)?;
        }
    }

    fn section(&mut self, cursor: &mut Cursor<'_>, offset: usize, kind: SectionKind) -> Result<()> {
        let id = cursor.u32("section id")?;
        let (name, instance, version) = match kind {
            SectionKind::Start | SectionKind::Full => {
                let header =
                    (cursor.counted_text("section name")?, cursor.u32("instance id")?, cursor.u32("section version")?);
                if self.ids.insert(id, header.clone()).is_some() {
                    return error(offset + 1, "a section id that is not taken", id);
                }
                header
            }
            SectionKind::Part | SectionKind::End => match self.ids.get(&id) {
                Some(header) => header.clone(),
                None => return error(offset + 1, "the id of a section that was started", id),
            },
        };
        let start = cursor.at;
        if kind == SectionKind::Full {
            let Some(description) = self.described.remove(&(name.clone(), instance)) else {
                return error(offset, "a section that the description lists once", format!("{name} {instance}"));
            };
            let fields = device::section(cursor, &description, version)?;
            self.stream.devices.push(Device { name: name.clone(), instance, version, fields });
        } else if (name.as_str(), instance, version) == ("ram", 0, 4) {
            let addresses = self.stream.configuration.capabilities.iter().any(|name| name == "x-ignore-shared");
            match kind {
                SectionKind::Start => self.stream.ram.start(cursor, addresses)?,
                _ => self.stream.ram.part(cursor)?,
            }
        } else {
            return error(
                offset,
                "ram 0 version 4 as the only section in parts",
                format!("{name} {instance} {version}"),
            );
        }
        let body = start..cursor.at;
        cursor.exactly(Cursor::u8, &FOOTER, &format!("footer of {name}"))?;
        cursor.exactly(Cursor::u32, &id, &format!("id in the footer of {name}"))?;
        self.stream.sections.push(Section { kind, id, name, instance, version, offset, body });
        Ok(())
    }

    /// Checks that only the description follows EOF, and that it lists exactly the sections of the stream, in their
    /// order.
    fn tail(&mut self, cursor: &mut Cursor<'_>) -> Result<()> {
        if let Some((name, instance)) = self.described.keys().next() {
            return error(self.stream.eof, format!("the section {name} {instance} that the description lists"), "EOF");
        }
        let order: Vec<_> = device::order(&self.stream.description);
        let came = self.stream.devices.iter().map(|device| (device.name.as_str(), device.instance));
        if !order.iter().map(|(name, instance)| (name.as_str(), *instance)).eq(came) {
            return error(self.stream.eof, "sections in the order of the description", "another order");
        }
        cursor.exactly(Cursor::u8, &DESCRIPTION, "description mark")?;
        let length = cursor.u32("length of the description")? as usize;
        cursor.take(length, "description")?;
        if cursor.at != cursor.len() {
            return error(cursor.at, "the end of the stream", format!("{} bytes more", cursor.len() - cursor.at));
        }
        Ok(())
    }
}

/// Parses a command of pre-copy by its length; commands of post-copy and COLO, which change the grammar after them, are
/// errors.
fn command(cursor: &mut Cursor<'_>, offset: usize) -> Result<Command> {
    let code = cursor.u16("command")?;
    let length = cursor.u16("length of the command")?;
    let wanted = match code {
        1 | 11 => 0,
        2 => 4,
        _ => return error(offset + 1, "command 1 (return path), 2 (ping) or 11 (switch-over)", code),
    };
    if length != wanted {
        return error(offset + 3, format!("{wanted} bytes for command {code}"), length);
    }
    Ok(Command { code, payload: cursor.take(length.into(), "command data")?.to_vec(), offset })
}
