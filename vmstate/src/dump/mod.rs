//! Decodes a whole stream without the program that wrote it: every section and command with its offset, device sections by the
//! stream's self-description or by a schema, RAM as a count of pages. For a damaged stream, everything before the damage is
//! returned.

mod describe;
mod json;

use crate::codec::{Limits, Reader, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::Fields;
use crate::ram::{RAM_IDSTR, RamRecord, RamSummary};
use crate::schema::json::Schema;
pub use crate::stream::{Command, Configuration, Discard, PageSizes, SectionHeader, Stretch, Terms};
use crate::stream::{Element, IGNORE_SHARED, MAPPED_RAM, read_description_length, read_footer, read_header};
use describe::{BySchema, Descriptions, SelfDescribed};

/// Bytes of memory that all values of one stream may take; a machine with hundreds of devices needs a few million.
const VALUES: usize = 256 << 20;

/// The decoded stream.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Dump {
    /// The source's configuration, if the stream is intact so far.
    pub configuration: Option<Configuration>,
    /// Commands and sections, in order.
    pub entries: Vec<Entry>,
    /// Page counts for each block.
    pub ram: RamSummary,
    /// True if the stream describes itself.
    pub described: bool,
    /// Why and where reading stopped before the end of the stream.
    pub damage: Option<Error>,
}

/// One element of the stream.
#[derive(Debug)]
pub enum Entry {
    /// A command to the destination.
    Command {
        /// Stream offset of the command's first byte.
        offset: u64,
        /// The command.
        command: Command,
    },
    /// A section, or a part of one.
    Section(SectionDump),
    /// The end of the sections.
    Eof {
        /// Stream offset of the EOF byte.
        offset: u64,
    },
}

/// A section, or a part of one.
#[derive(Debug)]
#[non_exhaustive]
pub struct SectionDump {
    /// Stream offset of the section's first byte.
    pub offset: u64,
    /// The kind of part.
    pub part: Part,
    /// The section's name and instance; a later part has those of the first one.
    pub header: SectionHeader<'static>,
    /// Stream offset of the section's body.
    pub body: u64,
    /// Size of the body in bytes, as far as it was read.
    pub size: u64,
    /// The section's values; `None` for RAM, and if neither stream nor schema describe the section.
    pub fields: Option<Fields>,
    /// Why and where `fields` stops before the end of the body: the schema does not define the next bytes (`Incompatible`), or
    /// does not match them.
    pub unread: Option<Error>,
}

/// The parts of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The first of several parts.
    Start,
    /// A part between the first and the last.
    Part,
    /// The last of several parts.
    End,
    /// A whole section.
    Full,
}

impl Dump {
    /// Decodes a stream. Never fails: the error that stopped it is in [`damage`](Self::damage).
    pub fn read(stream: &[u8]) -> Self {
        Self::read_with(stream, &Schema::default())
    }

    /// As for [`read`](Self::read); sections that the stream does not describe are decoded by `schema`.
    pub fn read_with(stream: &[u8], schema: &Schema) -> Self {
        let mut dump = Self::default();
        let limits = Limits { allocation: VALUES };
        let mut input = Reader::new(stream, 0, Strictness::QemuCompatible, limits).complete();
        let description = describe::find(stream);
        dump.described = description.is_some();
        let stream = description.as_ref().map(SelfDescribed::new).unwrap_or_default();
        let described = Descriptions { stream, schema: BySchema::new(schema) };
        dump.damage = dump.walk(&mut input, &described).err();
        dump
    }

    /// The sections and parts of sections, in order.
    pub fn sections(&self) -> impl Iterator<Item = &SectionDump> + Clone {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Section(section) => Some(section),
            _ => None,
        })
    }

    fn walk(&mut self, input: &mut Reader<'_>, described: &Descriptions<'_>) -> Result<()> {
        read_header(input)?;
        self.configuration = Some(Configuration::read(input)?);
        let mut started: Vec<SectionHeader<'_>> = Vec::new();
        loop {
            let offset = input.offset();
            let (part, header) = match Element::read(input)? {
                Element::Command(command) => {
                    self.entries.push(Entry::Command { offset, command });
                    continue;
                }
                Element::Eof => {
                    self.entries.push(Entry::Eof { offset });
                    break;
                }
                Element::Full(header) => (Part::Full, header),
                Element::Start(header) => {
                    // QEMU has a handful of sections in parts, so a linear search is enough.
                    if started.len() == 64 {
                        return Err(input.malformed("more than 64 sections in parts"));
                    }
                    started.push(header.clone());
                    (Part::Start, header)
                }
                Element::Part(id) => (Part::Part, find(&started, id, offset)?),
                Element::End(id) => (Part::End, find(&started, id, offset)?),
            };
            let id = header.id;
            let body = input.offset();
            let header = header.into_owned();
            let mut section = SectionDump { offset, part, header, body, size: 0, fields: None, unread: None };
            let read = self.read_body(input, described, &mut section);
            section.size = input.offset().saturating_sub(body);
            let SectionHeader { idstr, instance, .. } = section.header.clone();
            self.entries.push(Entry::Section(section));
            read.and_then(|()| read_footer(input, id)).map_err(|error| error.in_section(&idstr, instance))?;
        }
        self.read_end(input)
    }

    fn read_body(
        &mut self,
        input: &mut Reader<'_>,
        described: &Descriptions<'_>,
        section: &mut SectionDump,
    ) -> Result<()> {
        let header = &section.header;
        if header.idstr == RAM_IDSTR && section.part != Part::Full {
            return self.read_ram(input, section.part);
        }
        if let Some(program) = described.stream.of(header)? {
            return section.fields.insert(Fields::default()).run(input, program, program.newest);
        }
        let Some(program) = described.schema.of(header) else { return skip_body(input, header.id) };
        let body = input.rest();
        let fields = section.fields.insert(Fields::default());
        let read = fields.run(input, program, header.version);
        let Err(error) = read.and_then(|()| footer_is_next(input, header.id)) else { return Ok(()) };
        if error.kind() != ErrorKind::Incompatible {
            // The values that were read may not be those of this section.
            input.go_back(body);
        }
        match skip_body(input, header.id) {
            Ok(()) => {
                section.unread = Some(error);
                Ok(())
            }
            Err(_) if error.kind() != ErrorKind::Incompatible => Err(error),
            lost => lost,
        }
    }

    fn read_ram(&mut self, input: &mut Reader<'_>, part: Part) -> Result<()> {
        if part == Part::Start {
            let has =
                |capability| self.configuration.as_ref().is_some_and(|configuration| configuration.has(capability));
            if has(MAPPED_RAM) {
                return self.ram.read_placed(input);
            }
            // With this capability, each block in the list is followed by its address (`ram_save_setup`, migration/ram.c).
            let addresses = has(IGNORE_SHARED);
            return self.ram.read_blocks(input, addresses);
        }
        while self.ram.read_record(input)? != RamRecord::End {}
        Ok(())
    }

    /// Reads what follows the last section: nothing, or the self-description and nothing after it.
    fn read_end(&mut self, input: &mut Reader<'_>) -> Result<()> {
        if input.rest().is_empty() {
            return Ok(());
        }
        let length = read_description_length(input)?;
        let offset = input.offset();
        let text = input.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        if !self.described {
            let error = serde_json::from_slice::<serde_json::Value>(text).err();
            let message = error.map_or("it is no object with \"devices\"".to_owned(), |error| error.to_string());
            return Err(Error::new(ErrorKind::Malformed, format!("the self-description: {message}")).at(offset));
        }
        match input.rest().len() {
            0 => Ok(()),
            more => Err(input.malformed(format!("the end of the stream expected, {more} bytes follow"))),
        }
    }
}

/// Skips a body of unknown layout.
fn skip_body(input: &mut Reader<'_>, id: u32) -> Result<()> {
    match describe::undescribed_body(input.rest(), id).and_then(|size| input.take(size).ok()) {
        Some(_) => Ok(()),
        None => {
            let message = format!("the footer 0x7e of section number {id} expected, it does not come");
            Err(Error::new(ErrorKind::Incomplete, message).at(input.offset()))
        }
    }
}

/// Checks that the section ends where the schema says.
fn footer_is_next(input: &Reader<'_>, id: u32) -> Result<()> {
    match input.peek(5) {
        Some([0x7e, found @ ..]) if *found == id.to_be_bytes() => Ok(()),
        Some(_) => Err(input.malformed("by the schema the section ends here, but its footer is not here")),
        None => Err(input.incomplete(5)),
    }
}

fn find<'a>(started: &[SectionHeader<'a>], id: u32, offset: u64) -> Result<SectionHeader<'a>> {
    started.iter().rev().find(|header| header.id == id).cloned().ok_or_else(|| {
        Error::new(ErrorKind::Malformed, format!("part of section number {id}, which has not started")).at(offset)
    })
}
