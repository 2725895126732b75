//! The elements of a stream: its header, sections with their footers, commands, the end.

use std::borrow::Cow;

use super::command::Command;
use crate::codec::{Reader, put_name};
use crate::error::{Error, ErrorKind, Result};

/// "QEVM" (`QEMU_VM_FILE_MAGIC`, migration/savevm.h).
const MAGIC: u32 = 0x5145_564d;
/// `QEMU_VM_FILE_VERSION`.
const VERSION: u32 = 3;

/// Section types (`QEMU_VM_*`, migration/savevm.h).
pub(super) mod kind {
    pub(crate) const EOF: u8 = 0x00;
    pub(crate) const START: u8 = 0x01;
    pub(crate) const PART: u8 = 0x02;
    pub(crate) const END: u8 = 0x03;
    pub(crate) const FULL: u8 = 0x04;
    pub(crate) use crate::codec::mark::SUBSECTION;
    pub(crate) const DESCRIPTION: u8 = 0x06;
    pub(crate) const CONFIGURATION: u8 = 0x07;
    pub(crate) const COMMAND: u8 = 0x08;
    pub(crate) const FOOTER: u8 = 0x7e;
}

/// The header of a section, as START and FULL carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionHeader<'a> {
    /// The section's number, chosen by the source; its later parts and its footer carry it.
    pub id: u32,
    /// Name of the section (QEMU's idstr).
    pub idstr: Cow<'a, str>,
    /// Instance id among sections of that name.
    pub instance: u32,
    /// Version of the state.
    pub version: u32,
}

/// One element of the stream after the configuration. A section's body and footer follow its element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element<'a> {
    /// The first part of a section that is sent in parts.
    Start(SectionHeader<'a>),
    /// A further part.
    Part(u32),
    /// The last part.
    End(u32),
    /// A whole section.
    Full(SectionHeader<'a>),
    /// A command to the destination.
    Command(Command),
    /// The end of the sections.
    Eof,
}

/// Appends magic and version.
pub fn put_header(out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC.to_be_bytes());
    out.extend_from_slice(&VERSION.to_be_bytes());
}

/// Reads magic and version.
///
/// # Errors
/// `Malformed` if the bytes are not a migration stream, `Incompatible` for another version.
pub fn read_header(input: &mut Reader<'_>) -> Result<()> {
    let offset = input.offset();
    let magic = input.u32()?;
    if magic != MAGIC {
        let message = format!("not a migration stream: it begins with {magic:#010x}, not {MAGIC:#010x} (QEVM)");
        return Err(Error::new(ErrorKind::Malformed, message).at(offset));
    }
    match input.u32()? {
        VERSION => Ok(()),
        other => {
            let message = format!("stream version {other}: only version {VERSION} is supported");
            Err(Error::new(ErrorKind::Incompatible, message).at(offset))
        }
    }
}

/// Appends the footer of the section `id`.
#[inline]
pub fn put_footer(out: &mut Vec<u8>, id: u32) {
    put_numbered(out, kind::FOOTER, id);
}

/// Reads the footer of the section `id`.
///
/// # Errors
/// `Malformed` for another byte or another number: the section's body was longer or shorter than what was read.
pub fn read_footer(input: &mut Reader<'_>, id: u32) -> Result<()> {
    let offset = input.offset();
    let malformed = |message: String| Err(Error::new(ErrorKind::Malformed, message).at(offset));
    let mark = input.u8()?;
    if mark != kind::FOOTER {
        return malformed(format!("the section's footer {:#04x} expected, got {mark:#04x}", kind::FOOTER));
    }
    match input.u32()? {
        found if found == id => Ok(()),
        found => malformed(format!("footer of section number {id} expected, got number {found}")),
    }
}

impl<'a> Element<'a> {
    /// Appends the element.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Start(header) => header.write(out, kind::START),
            Self::Full(header) => header.write(out, kind::FULL),
            Self::Part(id) => put_numbered(out, kind::PART, *id),
            Self::End(id) => put_numbered(out, kind::END, *id),
            Self::Command(command) => {
                out.push(kind::COMMAND);
                command.write(out);
            }
            Self::Eof => out.push(kind::EOF),
        }
    }

    /// Reads the next element.
    ///
    /// # Errors
    /// `Malformed` for a type that is not allowed here, `Incompatible` for a command that is not supported.
    pub fn read(input: &mut Reader<'a>) -> Result<Self> {
        let offset = input.offset();
        let misplaced = |what: &str| Err(Error::new(ErrorKind::Malformed, what).at(offset));
        match input.u8()? {
            kind::EOF => Ok(Self::Eof),
            kind::START => SectionHeader::read(input).map(Self::Start),
            kind::PART => input.u32().map(Self::Part),
            kind::END => input.u32().map(Self::End),
            kind::FULL => SectionHeader::read(input).map(Self::Full),
            kind::COMMAND => Command::read(input).map(Self::Command),
            kind::SUBSECTION => misplaced("a subsection outside of a section"),
            kind::DESCRIPTION => misplaced("a self-description before the end of the stream"),
            kind::CONFIGURATION => misplaced("a second configuration"),
            kind::FOOTER => misplaced("a footer outside of a section"),
            other => misplaced(&format!("section type {other:#04x} does not exist")),
        }
    }

    /// True if the bytes begin with a START.
    pub fn is_start(bytes: &[u8]) -> bool {
        bytes.first() == Some(&kind::START)
    }

    /// True if the bytes begin with EOF.
    pub fn is_eof(bytes: &[u8]) -> bool {
        bytes.first() == Some(&kind::EOF)
    }

    /// Copies borrowed names.
    pub fn into_owned(self) -> Element<'static> {
        match self {
            Self::Start(header) => Element::Start(header.into_owned()),
            Self::Part(id) => Element::Part(id),
            Self::End(id) => Element::End(id),
            Self::Full(header) => Element::Full(header.into_owned()),
            Self::Command(command) => Element::Command(command),
            Self::Eof => Element::Eof,
        }
    }
}

impl<'a> SectionHeader<'a> {
    /// Copies a borrowed name.
    pub fn into_owned(self) -> SectionHeader<'static> {
        let Self { id, idstr, instance, version } = self;
        SectionHeader { id, idstr: idstr.into_owned().into(), instance, version }
    }

    #[inline]
    fn write(&self, out: &mut Vec<u8>, kind: u8) {
        put_numbered(out, kind, self.id);
        put_name(out, &self.idstr);
        out.extend_from_slice([self.instance.to_be_bytes(), self.version.to_be_bytes()].as_flattened());
    }

    #[inline]
    fn read(input: &mut Reader<'a>) -> Result<Self> {
        let id = input.u32()?;
        let idstr = input.name()?.into();
        Ok(Self { id, idstr, instance: input.u32()?, version: input.u32()? })
    }
}

#[inline]
fn put_numbered(out: &mut Vec<u8>, kind: u8, id: u32) {
    let [a, b, c, d] = id.to_be_bytes();
    out.extend_from_slice(&[kind, a, b, c, d]);
}
