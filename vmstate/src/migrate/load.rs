//! The parts of a stream that a migration and a file have in common, on the way in.

use super::wire::{Link, Patience};
use crate::codec::Strictness;
use crate::error::{Error, ErrorKind, Result};
use crate::ram::{GuestRam, PageCount, RAM_IDSTR, RAM_VERSION, RamReceiver, RamRecord};
use crate::section::Sections;
use crate::stream::{
    Command, Configuration, Element, SectionHeader, read_description_length, read_footer, read_header,
};

/// Bytes of a self-description dropped at once.
const DROP: u32 = 64 << 10;

/// What [`Loader::step`] has done.
pub(super) enum Loaded {
    /// A section is loaded.
    Section,
    /// The source wants something.
    Command(Command),
    /// No more sections.
    Eof,
}

pub(super) struct Loader<'a, 's> {
    pub(super) wire: Link<'a>,
    sections: &'a mut Sections<'s>,
    ram: RamReceiver<'a>,
    has_ram: bool,
    ram_id: Option<u32>,
    ram_complete: bool,
    strictness: Strictness,
    patience: Patience,
}

impl<'a, 's> Loader<'a, 's> {
    pub(super) fn new(
        wire: Link<'a>,
        sections: &'a mut Sections<'s>,
        ram: &'a dyn GuestRam,
        strictness: Strictness,
    ) -> Self {
        sections.begin_load();
        let has_ram = !ram.blocks().is_empty();
        let ram = RamReceiver::new(ram);
        Self {
            wire,
            sections,
            ram,
            has_ram,
            ram_id: None,
            ram_complete: false,
            strictness,
            patience: Patience::Endless,
        }
    }

    /// How long to wait from now on for what comes next; at first without limit.
    pub(super) fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// Nothing here stands in the way.
    pub(super) fn check_migratable(&self) -> Result<()> {
        self.sections.check_migratable()
    }

    /// Reads header and configuration. What is wrong with the source's machine type is the inner error: the stream goes
    /// on behind it.
    pub(super) fn introduction(&mut self, machine: &str) -> Result<Result<()>> {
        self.wire.decode(self.patience, read_header)?;
        let offset = self.wire.offset();
        let configuration = self.wire.decode(self.patience, Configuration::read)?;
        Ok(configuration.check(machine, self.strictness).map_err(|error| error.at(offset)))
    }

    /// Takes the next element, with all that belongs to it.
    pub(super) fn step(&mut self) -> Result<Loaded> {
        let offset = self.wire.offset();
        let malformed = |message: String| Err(Error::new(ErrorKind::Malformed, message).at(offset));
        match self.wire.decode(self.patience, |input| Element::read(input).map(Element::into_owned))? {
            Element::Eof => return Ok(Loaded::Eof),
            Element::Command(command) => return Ok(Loaded::Command(command)),
            Element::Start(header) if header.idstr == RAM_IDSTR => self.start_ram(&header, offset)?,
            Element::Start(header) if self.strictness == Strictness::Strict => {
                return malformed(format!("section {} comes in parts; only {RAM_IDSTR} does", header.idstr));
            }
            // QEMU loads START and FULL alike (qemu_loadvm_state_main, migration/savevm.c).
            Element::Start(header) | Element::Full(header) => self.load_device(&header)?,
            Element::Part(id) | Element::End(id) if self.ram_id != Some(id) => {
                return malformed(format!("part of section number {id}, which has not started"));
            }
            Element::Part(id) => self.load_pages(id)?,
            Element::End(id) => {
                self.load_pages(id)?;
                self.ram_complete = true;
            }
        }
        Ok(Loaded::Section)
    }

    /// True once the next thing in the stream may change the machine: the RAM blocks were compared, if there are any.
    pub(super) fn is_introduced(&self) -> bool {
        !self.has_ram || self.ram_id.is_some()
    }

    /// True if no section but early ones has loaded.
    pub(super) fn has_only_early_sections(&self) -> bool {
        !self.sections.has_loaded()
    }

    /// True if a ping that comes now asks whether everything is loaded. Without RAM only its number tells.
    pub(super) fn is_last_ping(&self, is_ready: bool) -> bool {
        if self.has_ram { self.ram_complete } else { is_ready }
    }

    /// True once the last pages are there.
    pub(super) fn ram_complete(&self) -> bool {
        self.ram_complete
    }

    pub(super) fn received(&self) -> PageCount {
        self.ram.received()
    }

    /// Everything came that this machine needs.
    pub(super) fn check_complete(&self) -> Result<()> {
        if self.has_ram && !self.ram_complete {
            return Err(Error::new(ErrorKind::Malformed, "the last pages did not come").in_section(RAM_IDSTR, 0));
        }
        self.sections.check_complete(self.strictness)
    }

    /// Reads and drops the self-description.
    pub(super) fn drop_description(&mut self, patience: Patience) -> Result<()> {
        let mut left = self.wire.decode(patience, read_description_length)?;
        while left > 0 {
            let step = left.min(DROP);
            self.wire.decode(patience, |input| input.take(usize::try_from(step).unwrap_or_default()).map(|_| ()))?;
            left -= step;
        }
        Ok(())
    }

    fn start_ram(&mut self, header: &SectionHeader<'_>, offset: u64) -> Result<()> {
        let place = |error: Error| error.at(offset).in_section(&header.idstr, header.instance);
        if header.instance != 0 || header.version != RAM_VERSION {
            let message = format!("version {} is not {RAM_VERSION}, or not the only instance", header.version);
            return Err(place(Error::new(ErrorKind::Incompatible, message)));
        }
        if self.ram_id.is_some() && self.strictness == Strictness::Strict {
            return Err(place(Error::new(ErrorKind::Malformed, "came twice")));
        }
        self.wire.decode(self.patience, |input| self.ram.read_blocks(input)).map_err(place)?;
        self.ram_id = Some(header.id);
        self.footer(header.id, RAM_IDSTR, 0)
    }

    fn load_pages(&mut self, id: u32) -> Result<()> {
        let place = |error: Error| error.in_section(RAM_IDSTR, 0);
        if self.ram_complete && self.strictness == Strictness::Strict {
            let offset = self.wire.offset();
            return Err(place(Error::new(ErrorKind::Malformed, "pages after the last pages").at(offset)));
        }
        while self.wire.decode(self.patience, |input| self.ram.read_record(input)).map_err(place)? == RamRecord::Page {}
        self.footer(id, RAM_IDSTR, 0)
    }

    fn load_device(&mut self, header: &SectionHeader<'_>) -> Result<()> {
        let SectionHeader { id, idstr, instance, version } = header;
        self.wire
            .decode(self.patience, |input| self.sections.load(idstr, *instance, *version, input))
            .map_err(|error| error.in_section(idstr, *instance))?;
        self.footer(*id, idstr, *instance)
    }

    fn footer(&mut self, id: u32, idstr: &str, instance: u32) -> Result<()> {
        self.wire
            .decode(self.patience, |input| read_footer(input, id))
            .map_err(|error| error.in_section(idstr, instance))
    }
}
