//! Loading of the parts of a stream that a migration and a file have in common.

use std::time::Duration;

use super::all::{AllSections, Owner};
use super::report::SectionReport;
use super::wire::{Link, Timeout};
use crate::codec::{Outbox, Reader, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::EngineSection;
use crate::section::{IterativeSection, Record, Sections};
use crate::stream::{
    Command, Configuration, Element, MAPPED_RAM, Reply, SectionHeader, Terms, read_description_length, read_footer,
    read_header,
};

/// Number of bytes of a self-description that are dropped at once.
const DROP: u32 = 64 << 10;
/// How long [`Loader::serve`] waits if there is nothing to do.
const MOMENT: Duration = Duration::from_millis(1);

/// The result of [`Loader::step`].
pub(super) enum Loaded {
    /// A section was loaded.
    Section,
    /// A command of the source.
    Command(Command),
    /// The end of the sections.
    Eof,
}

pub(super) struct Loader<'a, 's> {
    pub(super) wire: Link<'a>,
    all: AllSections<'a, 's>,
    /// True if the engine's own section in parts is required.
    is_own_required: bool,
    /// Sections in parts that have begun, in that order.
    begun: Vec<Begun>,
    /// Sections that came whole, except the early ones, in their order.
    pub(super) whole: Vec<SectionReport>,
    strictness: Strictness,
    /// True if each page has its place in the file that is read.
    is_placed: bool,
    timeout: Timeout,
    /// True if the source waits for answers: it closes its side only when it has given up.
    source_listens: bool,
    /// True once the guest may run: no device may change any more.
    pages_only: bool,
    /// The part of a section whose body is being read.
    open: Option<OpenPart>,
}

/// A PART or END section whose header was read, and perhaps some records.
#[derive(Clone, Copy)]
struct OpenPart {
    /// Index in `begun`.
    index: usize,
    is_end: bool,
}

/// A section in parts that has begun.
struct Begun {
    /// The section's number in the stream.
    id: u32,
    owner: Owner,
    idstr: String,
    instance: u32,
    version: u32,
    is_over: bool,
    /// True if the section may end after the guest runs, in post-copy.
    may_end_in_postcopy: bool,
}

/// A method of a section in parts that reads one record of a body.
type ReadRecord = fn(&mut dyn IterativeSection, &mut Reader<'_>, u32) -> Result<Record>;

impl OpenPart {
    fn reader(self) -> ReadRecord {
        match self.is_end {
            true => |section, input, version| section.load_end(input, version),
            false => |section, input, version| section.load_part(input, version),
        }
    }
}

impl<'a, 's> Loader<'a, 's> {
    /// Creates a loader; `own` is the section in parts that the engine provides.
    pub(super) fn new(
        wire: Link<'a>,
        registered: &'a mut Sections<'s>,
        own: Box<dyn EngineSection + 'a>,
        is_own_required: bool,
        strictness: Strictness,
    ) -> Self {
        registered.begin_load();
        let all = AllSections { registered, own };
        let (timeout, source_listens) = (Timeout::Endless, false);
        let (begun, whole) = (Vec::new(), Vec::new());
        let (is_placed, pages_only, open) = (false, false, None);
        Self {
            wire,
            all,
            is_own_required,
            begun,
            whole,
            strictness,
            is_placed,
            timeout,
            source_listens,
            pages_only,
            open,
        }
    }

    /// Sets how long to wait for the next data; without limit at first.
    pub(super) fn set_timeout(&mut self, timeout: Timeout) {
        self.timeout = timeout;
    }

    /// Accepts only guest memory from now on.
    pub(super) fn accept_only_pages(&mut self) {
        self.pages_only = true;
    }

    /// In post-copy, over another connection: accepts further pages, although the last part may have come over the previous
    /// connection.
    pub(super) fn resume(&mut self) {
        self.open = None;
        for section in &mut self.begun {
            match section.owner {
                Owner::Engine => section.is_over = false,
                owner if !section.is_over => {
                    if let Ok(section) = self.all.parts(owner) {
                        section.interrupted();
                    }
                }
                Owner::Registered(_) => {}
            }
        }
    }

    /// Checks that no section forbids a migration.
    pub(super) fn check_migratable(&self) -> Result<()> {
        self.all.registered.check_migratable()
    }

    /// Reads header and configuration. A mismatch of machine type or capabilities is the inner error: the stream continues after
    /// it.
    pub(super) fn read_configuration(&mut self, machine: &str, shares_memory: bool) -> Result<Result<()>> {
        self.wire.decode(self.timeout, read_header)?;
        let offset = self.wire.offset();
        let configuration = self.wire.decode(self.timeout, Configuration::read)?;
        self.is_placed = configuration.has(MAPPED_RAM);
        let terms = Terms { shares_memory, is_file: self.wire.file()?.is_some() };
        Ok(configuration.check(machine, terms, self.strictness).map_err(|error| error.at(offset)))
    }

    /// Reads the next element, with its body and footer, or the rest of a part.
    pub(super) fn step(&mut self) -> Result<Loaded> {
        let read = match self.open {
            Some(_) => Loaded::Section,
            None => self.begin_step()?,
        };
        if let Some(part) = self.open.take() {
            self.load_body(part.index, part.reader())?;
            self.end_part(part);
        }
        Ok(read)
    }

    /// Reads the next element; of a PART or END section only the header.
    fn begin_step(&mut self) -> Result<Loaded> {
        let offset = self.wire.offset();
        match self.wire.decode(self.timeout, |input| Element::read(input).map(Element::into_owned))? {
            Element::Eof => return Ok(Loaded::Eof),
            Element::Command(command) => {
                self.source_listens |= matches!(command, Command::OpenReturnPath);
                return Ok(Loaded::Command(command));
            }
            Element::Start(_) | Element::Full(_) if self.pages_only => {
                let message = "a section after the package, where only pages are allowed";
                return Err(Error::new(ErrorKind::Malformed, message).at(offset));
            }
            // QEMU loads START and FULL alike (qemu_loadvm_state_main, migration/savevm.c).
            Element::Start(header) => self.load_first(&header, true, offset)?,
            Element::Full(header) => self.load_first(&header, false, offset)?,
            Element::Part(id) => self.begin_part(id, false, offset)?,
            Element::End(id) => self.begin_part(id, true, offset)?,
        }
        Ok(Loaded::Section)
    }

    /// In post-copy, while the machine takes over: requests the pages that it waits for, and receives pages, for a moment. Also returns
    /// in the middle of a part, because the machine continues only between calls, and a QEMU sends pages for 50 ms in one part
    /// (`MAX_WAIT`, migration/ram.c).
    pub(super) fn serve(&mut self) -> Result<()> {
        let until = self.wire.clock().now().saturating_add(MOMENT);
        if let Some(part) = self.open {
            return self.serve_part(part, until);
        }
        let is_over = self.wire.poll_until(until, |input| match input.peek(1) {
            Some(mark) => Ok(Element::is_eof(mark)),
            None => Err(input.incomplete(1)),
        })?;
        match is_over {
            Some(false) => match self.begin_step()? {
                // QEMU's source sends a ping right after the package (`postcopy_start`, migration/migration.c).
                Loaded::Command(Command::Ping(number)) => {
                    let mut answer = Outbox::new();
                    Reply::Pong(number).write(answer.bytes_mut());
                    self.wire.send(&mut answer, self.timeout)
                }
                Loaded::Command(command) => Err(command.unsupported()),
                Loaded::Section | Loaded::Eof => Ok(()),
            },
            // The end is handled later. Until then accesses wait for zero pages that have arrived and are not stored.
            Some(true) => {
                self.wire.serve_waits()?;
                self.wire.clock().sleep(MOMENT);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Reads records of a part that arrive until then.
    fn serve_part(&mut self, part: OpenPart, until: Duration) -> Result<()> {
        if let Some(Record::Last | Record::Whole) = self.read_record(part.index, part.reader(), Some(until))? {
            self.open = None;
            self.end_part(part);
        }
        self.wire.serve_waits()
    }

    /// True once the next element may change the machine: all sections in parts have begun. Waits for the first byte of that
    /// element.
    ///
    /// # Errors
    /// `Malformed` if a required section has not begun.
    pub(super) fn is_handshake_complete(&mut self) -> Result<bool> {
        let waits = match self.is_own_required {
            true => !self.has_begun(Owner::Engine),
            // Nothing else shows that they may still come.
            false => self.check_begun().is_err(),
        };
        if waits {
            return Ok(false);
        }
        let next_begins = self.wire.decode(self.timeout, |input| match input.peek(1) {
            Some(mark) => Ok(Element::is_start(mark)),
            None => Err(input.incomplete(1)),
        })?;
        if next_begins {
            return Ok(false);
        }
        self.check_begun().map(|()| true)
    }

    /// True if only early sections were loaded.
    pub(super) fn has_only_early_sections(&self) -> bool {
        !self.all.registered.has_loaded()
    }

    /// True if a ping at this point asks whether everything is loaded. Without sections in parts, only the ping's number shows
    /// that.
    pub(super) fn is_last_ping(&self, is_ready: bool) -> bool {
        match self.begun.is_empty() {
            true => is_ready && !self.is_own_required,
            false => self.begun.iter().all(|section| section.is_over),
        }
    }

    /// True once the last part of a section has arrived: the source's guest is paused.
    pub(super) fn has_ended_parts(&self) -> bool {
        self.begun.iter().any(|section| section.is_over)
    }

    /// Checks that everything which this machine requires has come.
    pub(super) fn check_complete(&self) -> Result<()> {
        self.check_came(|_| true)
    }

    /// As for [`check_complete`](Self::check_complete), but pages may still be missing, and parts of sections that may end late.
    pub(super) fn check_devices(&self) -> Result<()> {
        self.check_came(|section| !section.may_end_in_postcopy)
    }

    /// Checks that the `wanted` sections in parts have ended, and that all others came.
    fn check_came(&self, wanted: impl Fn(&Begun) -> bool) -> Result<()> {
        let own = self.all.own.description();
        let missing = (self.is_own_required && !self.has_begun(Owner::Engine)).then_some((&*own.name, 0));
        let unfinished = self.begun.iter().find(|section| !section.is_over && wanted(section));
        match missing.or(unfinished.map(|section| (section.idstr.as_str(), section.instance))) {
            Some((idstr, instance)) => {
                Err(Error::new(ErrorKind::Malformed, "its last part did not arrive").in_section(idstr, instance))
            }
            None => self.all.registered.check_complete(self.strictness),
        }
    }

    /// Reads and drops the self-description.
    pub(super) fn drop_description(&mut self, timeout: Timeout) -> Result<()> {
        let mut left = self.wire.decode(timeout, read_description_length)?;
        while left > 0 {
            let step = left.min(DROP);
            self.wire.decode(timeout, |input| input.take(usize::try_from(step).unwrap_or_default()).map(|_| ()))?;
            left -= step;
        }
        Ok(())
    }

    fn has_begun(&self, owner: Owner) -> bool {
        self.begun.iter().any(|section| section.owner == owner)
    }

    fn check_begun(&self) -> Result<()> {
        self.all.registered.check_begun(self.strictness, |index| self.has_begun(Owner::Registered(index)))
    }

    /// Loads a START or FULL section.
    fn load_first(&mut self, header: &SectionHeader<'_>, is_start: bool, offset: u64) -> Result<()> {
        let SectionHeader { id, idstr, instance, version } = header;
        let place = |error: Error| error.at(offset).in_section(idstr, *instance);
        let _section = tracing::debug_span!("section", section = &**idstr, instance = *instance).entered();
        let Some(owner) = self.owner(header, is_start).map_err(place)? else {
            self.load_whole(header).map_err(|error| error.in_section(idstr, *instance))?;
            tracing::debug!(version = *version, "loaded");
            return self.footer(*id, idstr, *instance);
        };
        if let Some(other) = self.begun.iter().find(|other| other.id == *id)
            && self.strictness == Strictness::Strict
        {
            let message = format!("has number {id}, as {}/{} has", other.idstr, other.instance);
            return Err(place(Error::new(ErrorKind::Malformed, message)));
        }
        // A section that comes again, which QEMU allows, begins again.
        self.begun.retain(|section| section.owner != owner);
        let idstr = idstr.clone().into_owned();
        let may_end_in_postcopy = owner == Owner::Engine || self.all.parts(owner)?.may_end_in_postcopy();
        let (instance, version) = (*instance, *version);
        self.begun.push(Begun { id: *id, owner, idstr, instance, version, is_over: false, may_end_in_postcopy });
        let index = self.begun.len() - 1;
        if self.is_placed && owner == Owner::Engine {
            return self.load_placed(index);
        }
        let last = self.load_body(index, |section, input, version| section.load_start(input, version))?;
        if let (Record::Whole, Owner::Registered(index)) = (last, owner) {
            self.begun.pop();
            self.all.registered.end_parts(index);
        }
        Ok(())
    }

    /// Loads the body and footer of the engine's START section, for a stream whose pages have places in its file.
    fn load_placed(&mut self, index: usize) -> Result<()> {
        let Self { wire, all, begun, timeout, strictness, .. } = self;
        let Some(Begun { id, idstr, instance, .. }) = begun.get(index) else { return Ok(()) };
        let place = |error: Error| error.in_section(idstr, *instance);
        let offset = wire.offset();
        let no_file = || Error::new(ErrorKind::Misuse, "the stream is not read from a file").at(offset);
        let (file, at) = wire.file().map_err(place)?.ok_or_else(|| place(no_file()))?;
        let goes_on = all.own.load_placed(file, at, *strictness).map_err(place)?;
        wire.go_to(goes_on).map_err(place)?;
        wire.decode(*timeout, |input| all.own.end_placed(input)).map_err(place)?;
        wire.decode(*timeout, |input| read_footer(input, *id)).map_err(place)
    }

    fn load_whole(&mut self, SectionHeader { idstr, instance, version, .. }: &SectionHeader<'_>) -> Result<()> {
        let (clock, offset) = (self.wire.clock(), self.wire.offset());
        // The time of the attempt that had all bytes: waiting for the wire is not part of the section's time.
        let loaded = self.wire.decode(self.timeout, |input| {
            let begun = clock.now();
            self.all.registered.load(idstr, *instance, *version, input)?;
            Ok(clock.now().saturating_sub(begun))
        })?;
        if self.all.registered.has_loaded() {
            self.whole.push(SectionReport {
                idstr: idstr.to_string(),
                instance: *instance,
                bytes: self.wire.offset() - offset,
                saved: None,
                loaded: Some(loaded),
            });
        }
        Ok(())
    }

    /// The owner of the section, if it is a section in parts.
    fn owner(&self, header: &SectionHeader<'_>, is_start: bool) -> Result<Option<Owner>> {
        let SectionHeader { idstr, instance, version, .. } = header;
        let own = self.all.own.description();
        if *idstr == *own.name && *instance == 0 && is_start {
            if self.has_begun(Owner::Engine) && self.strictness == Strictness::Strict {
                return Err(Error::new(ErrorKind::Malformed, "came twice"));
            }
            own.check_version(*version)?;
            return Ok(Some(Owner::Engine));
        }
        let found = self.all.registered.begin_parts((idstr, *instance, *version), is_start, self.strictness)?;
        let owner = found.map(Owner::Registered);
        if owner.is_some_and(|owner| self.has_begun(owner)) && self.strictness == Strictness::Strict {
            return Err(Error::new(ErrorKind::Malformed, "came twice"));
        }
        Ok(owner)
    }

    /// Checks the header of a PART or END section, and opens it.
    fn begin_part(&mut self, id: u32, is_end: bool, offset: u64) -> Result<()> {
        let Some(index) = self.begun.iter().rposition(|section| section.id == id) else {
            let message = format!("part of section number {id}, which has not started");
            return Err(Error::new(ErrorKind::Malformed, message).at(offset));
        };
        // A file has no handshake, at whose end this was checked.
        self.check_begun()?;
        if let Some(Begun { is_over: true, idstr, instance, .. }) = self.begun.get(index)
            && self.strictness == Strictness::Strict
        {
            let message = if is_end { "its last part came twice" } else { "a part after the last one" };
            return Err(Error::new(ErrorKind::Malformed, message).at(offset).in_section(idstr, *instance));
        }
        self.open = Some(OpenPart { index, is_end });
        Ok(())
    }

    fn end_part(&mut self, OpenPart { index, is_end }: OpenPart) {
        if let Some(section) = self.begun.get_mut(index).filter(|_| is_end) {
            section.is_over = true;
            if let Owner::Registered(index) = section.owner {
                self.all.registered.end_parts(index);
            }
        }
    }

    /// Reads all records of a body, and its footer. Returns the last record's result.
    fn load_body(&mut self, index: usize, read: ReadRecord) -> Result<Record> {
        let mut wait = None;
        loop {
            let offset = self.wire.offset();
            match self.read_record(index, read, None)?.unwrap_or(Record::Last) {
                last @ (Record::Last | Record::Whole) => return Ok(last),
                Record::Awaited => {
                    let waited = self.wire.wait_for_page_channels(wait.get_or_insert_default(), self.timeout);
                    // A source that has given up sends no more pages.
                    let there = waited.and_then(|()| match self.source_listens {
                        true => self.wire.receive_at_hand(),
                        false => Ok(()),
                    });
                    there.map_err(|lost| match self.begun.get(index) {
                        Some(Begun { idstr, instance, .. }) => lost.at(offset).in_section(idstr, *instance),
                        None => lost,
                    })?;
                    continue;
                }
                Record::More => self.wire.serve_waits()?,
            }
            wait = None;
        }
    }

    /// Reads the next record of a body, and the footer behind the last one; `None` if no record arrives until then.
    fn read_record(&mut self, index: usize, read: ReadRecord, until: Option<Duration>) -> Result<Option<Record>> {
        let Self { wire, all, begun, timeout, .. } = self;
        let Some(Begun { id, owner, idstr, instance, version, .. }) = begun.get(index) else {
            return Ok(Some(Record::Last));
        };
        let place = |error: Error| error.in_section(idstr, *instance);
        let (section, offset) = (all.parts(*owner)?, wire.offset());
        let record = match until {
            Some(until) => wire.poll_until(until, |input| read(section, input, *version)),
            None => wire.decode(*timeout, |input| read(section, input, *version)).map(Some),
        };
        let record = record.map_err(place)?;
        match record {
            Some(Record::Last | Record::Whole) => {
                wire.decode(*timeout, |input| read_footer(input, *id)).map_err(place)?;
            }
            Some(Record::More) if wire.offset() == offset => {
                return Err(place(Error::new(ErrorKind::Misuse, "a record without bytes was read").at(offset)));
            }
            Some(Record::More | Record::Awaited) | None => {}
        }
        Ok(record)
    }

    fn footer(&mut self, id: u32, idstr: &str, instance: u32) -> Result<()> {
        self.wire
            .decode(self.timeout, |input| read_footer(input, id))
            .map_err(|error| error.in_section(idstr, instance))
    }
}

impl Drop for Loader<'_, '_> {
    fn drop(&mut self) {
        for Begun { owner, .. } in &self.begun {
            if let Ok(section) = self.all.parts(*owner) {
                section.cleanup();
            }
        }
    }
}
