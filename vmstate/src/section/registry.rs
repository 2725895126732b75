//! The registry: the sections of a machine, their order, and which of them a load has seen.

use std::cmp::Reverse;
use std::sync::Arc;

use super::registration::{Content, Registration};
use super::{IterativeSection, Section, SectionRules};
use crate::codec::{Reader, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::json::Schema;

/// The sections of one machine.
#[derive(Debug, Default)]
pub struct Sections<'a> {
    pub(super) entries: Vec<Registration<'a>>,
    /// Older names, each with the present name of the sections.
    pub(super) aliases: Vec<(String, String)>,
    /// Names of sections that only one side may have, each with advice for the user.
    remedies: Vec<(String, String)>,
    /// The older release for which everything is saved, if there is one.
    pub(super) release: Option<Arc<Schema>>,
    /// Index of the entry after the one that the load saw last.
    next: usize,
    /// Number of leading entries that have only one name and instance id each.
    plain: usize,
}

impl<'a> Sections<'a> {
    /// Creates an empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a section under the name of its description, and under the instance id of its rules; without one, the next free id
    /// (`calculate_new_instance_id`, migration/savevm.c).
    ///
    /// # Errors
    /// As [`register`](Self::register).
    pub fn add(&mut self, section: impl Section + 'a) -> Result<&mut Registration<'a>> {
        let name = section.description().name.to_string();
        let instance = section.rules().instance_id.map_or_else(|| self.next_instance(&name), Ok)?;
        self.register(&name, instance, section)
    }

    /// Adds a section of a device on a bus: its name is `path/name`, its instance id 0. A QEMU-compatible load also accepts the
    /// name without the path, as old streams have it, with the instance id that [`add`](Self::add) would assign among sections
    /// with a path (`vmstate_register_with_alias_id`, migration/savevm.c).
    ///
    /// # Errors
    /// As [`register`](Self::register).
    pub fn add_at(&mut self, path: &str, section: impl Section + 'a) -> Result<&mut Registration<'a>> {
        let name = section.description().name.to_string();
        let others = self.entries.iter().filter_map(|entry| entry.compat.as_ref());
        let taken = others.filter(|(other, _)| *other == name).map(|(_, instance)| instance + 1).max();
        let instance = section.rules().instance_id.or(taken).unwrap_or(0);
        let idstr = format!("{path}/{name}");
        if let Some(owner) = self.renamed(&name).filter(|owner| *owner != idstr) {
            return Err(misuse(&idstr, 0, format!("without its path it is the older name of {owner}")));
        }
        let added = self.register(&idstr, 0, section)?;
        added.compat = Some((name, instance));
        Ok(added)
    }

    fn next_instance(&self, idstr: &str) -> Result<u32> {
        let same = self.entries.iter().filter(|entry| entry.idstr == idstr);
        match same.map(|entry| entry.instance).max() {
            None => Ok(0),
            Some(last) => last
                .checked_add(1)
                .ok_or_else(|| Error::new(ErrorKind::Misuse, "no instance number is left").in_section(idstr, last)),
        }
    }

    /// Adds a section under a name and an instance id; everything else follows its [rules](Section::rules). To keep the device,
    /// pass `&mut device` or its `Arc<Mutex<_>>`.
    ///
    /// # Errors
    /// `Misuse` if the name is taken, is an older name of other sections, is empty, or is longer than 255 bytes, the most that
    /// its length byte allows.
    pub fn register(
        &mut self,
        idstr: &str,
        instance: u32,
        section: impl Section + 'a,
    ) -> Result<&mut Registration<'a>> {
        let rules = section.rules();
        self.insert(idstr, instance, rules, Content::Whole(Box::new(section)))
    }

    /// Adds a section that is sent in parts while the guest runs, under the name of its description and the next free instance
    /// id. It is sent after the guest's memory and before the sections that are sent whole, with the same rules: it is required
    /// unless it is [`optional`](Registration::optional), and may have [older names](Self::add_alias).
    ///
    /// # Errors
    /// As [`register`](Self::register).
    pub fn add_iterative(&mut self, section: impl IterativeSection + Send + 'a) -> Result<&mut Registration<'a>> {
        let name = section.description().name.to_string();
        let instance = self.next_instance(&name)?;
        self.register_iterative(&name, instance, section)
    }

    /// As for [`add_iterative`](Self::add_iterative), under a name and an instance id.
    ///
    /// # Errors
    /// As [`register`](Self::register).
    pub fn register_iterative(
        &mut self,
        idstr: &str,
        instance: u32,
        section: impl IterativeSection + Send + 'a,
    ) -> Result<&mut Registration<'a>> {
        self.insert(idstr, instance, SectionRules::DEFAULT, Content::Iterative(Box::new(section)))
    }

    fn insert(
        &mut self,
        idstr: &str,
        instance: u32,
        rules: SectionRules,
        content: Content<'a>,
    ) -> Result<&mut Registration<'a>> {
        check_name(idstr, instance)?;
        if self.entries.iter().any(|entry| entry.idstr == idstr && entry.instance == instance) {
            let message = "registered twice: give each device of a kind its own instance number";
            return Err(misuse(idstr, instance, message));
        }
        if let Some(owner) = self.renamed(idstr) {
            return Err(misuse(idstr, instance, format!("this is the older name of {owner}: give it another one")));
        }
        self.entries.push(Registration::new(idstr, instance, rules, content));
        let [.., added] = self.entries.as_mut_slice() else { unreachable!("an entry was pushed") };
        Ok(added)
    }

    /// Also loads the sections called `idstr` under `older`, the name that an earlier release gave them; each keeps its instance
    /// id. They are sent as `idstr`. Subsections are named after the description and not after the section: a device with
    /// subsections keeps its description's name, and is [registered](Self::register) under the new one.
    ///
    /// ```
    /// use vmstate::codec::Reader;
    /// use vmstate::section::Sections;
    /// use vmstate::VmState;
    ///
    /// #[derive(VmState, Default)]
    /// #[vmstate(name = "serial")]
    /// struct Serial {
    ///     divider: u16,
    /// }
    ///
    /// let mut sections = Sections::new();
    /// sections.add(Serial::default())?;
    /// sections.add_alias("serial", "uart")?;
    /// sections.load("uart", 0, 1, &mut Reader::strict(&[0, 12]))?;
    /// # Ok::<(), vmstate::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Misuse` if no section is called `idstr`, or if `older` in a stream could mean another section.
    pub fn add_alias(&mut self, idstr: &str, older: &str) -> Result<()> {
        check_name(older, 0)?;
        let Some(instance) = self.entries.iter().find(|entry| entry.idstr == idstr).map(|entry| entry.instance) else {
            return Err(misuse(idstr, 0, "no section has this name: register it before its older names"));
        };
        let means = |entry: &&Registration<'_>| {
            entry.idstr == older || entry.idstr != idstr && entry.compat.as_ref().is_some_and(|(name, _)| name == older)
        };
        let other = self.entries.iter().find(means).map(|entry| entry.idstr.as_str());
        match other.or(self.renamed(older).filter(|owner| *owner != idstr)) {
            Some(other) => Err(misuse(idstr, instance, format!("its older name {older:?} also means {other}"))),
            None if self.renamed(older).is_some() => Ok(()),
            None => {
                self.aliases.push((older.to_owned(), idstr.to_owned()));
                self.forget_older();
                Ok(())
            }
        }
    }

    /// The present name of the sections with this older name.
    fn renamed(&self, older: &str) -> Option<&str> {
        self.aliases.iter().find(|(known, _)| known == older).map(|(_, idstr)| idstr.as_str())
    }

    /// The sections that are sent whole, in the order in which they are sent: higher priority first, and in the order of
    /// registration within one priority (`savevm_state_handler_insert`, migration/savevm.c).
    pub fn in_order(&mut self) -> Vec<&mut Registration<'a>> {
        self.look_up_release();
        // The caller may change their names.
        self.plain = 0;
        let mut entries = Vec::with_capacity(self.entries.len());
        entries.extend(self.entries.iter_mut().filter(|entry| !entry.is_iterative()));
        if !entries.is_sorted_by_key(|entry| Reverse(entry.priority)) {
            entries.sort_by_key(|entry| Reverse(entry.priority));
        }
        entries
    }

    /// Checks, before a migration or a snapshot on either side, that no section blocks it (`migration_is_blocked`,
    /// migration/migration.c; `qemu_loadvm_state`, migration/savevm.c).
    ///
    /// # Errors
    /// `Rejected`, with the section that blocks the migration, and why.
    pub fn check_migratable(&self) -> Result<()> {
        let blocked = self.entries.iter().find_map(|entry| Some((entry, entry.unmigratable.as_ref()?)));
        match blocked {
            None => Ok(()),
            Some((entry, reason)) => {
                let message = format!("this machine cannot be migrated: {reason}");
                Err(Error::new(ErrorKind::Rejected, message).in_section(&entry.idstr, entry.instance))
            }
        }
    }

    /// The schema of what a `machine` with these sections sends.
    ///
    /// # Errors
    /// `Misuse` if two sections of one name have different descriptions.
    pub fn schema(&self, machine: Option<&str>) -> Result<Schema> {
        let mut schema = Schema::new(machine);
        for entry in &self.entries {
            schema.add(&entry.idstr, entry.description())?;
            if entry.required {
                schema.require(&entry.idstr);
            }
        }
        for (older, idstr) in &self.aliases {
            schema.add_alias(idstr, older)?;
        }
        Ok(schema)
    }

    /// Sets the advice for the case that only one side has a section `idstr`, or that a source sends a subsection of that name
    /// which is unknown here: the error ends with `remedy`.
    pub fn add_remedy(&mut self, idstr: &str, remedy: &str) {
        self.remedies.push((idstr.to_owned(), remedy.to_owned()));
    }

    fn remedy(&self, idstr: &str) -> Option<&str> {
        self.remedies.iter().find(|(name, _)| name == idstr).map(|(_, remedy)| remedy.as_str())
    }

    /// Starts a new load: no section is loaded yet.
    pub fn begin_load(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.loaded = false);
        self.next = 0;
        self.plain = self.entries.iter().take_while(|entry| entry.alias.is_none() && entry.compat.is_none()).count();
    }

    /// Loads the section that the stream calls `idstr`, `instance`, written at `version`.
    ///
    /// # Errors
    /// `Incompatible` for a name or version that this machine does not have, `Malformed` for a section that came before (strict
    /// loads) or comes in parts, and the errors of the section.
    pub fn load(&mut self, idstr: &str, instance: u32, version: u32, input: &mut Reader<'_>) -> Result<()> {
        let (strictness, offset) = (input.strictness(), input.offset());
        self.load_found(idstr, instance, version, input, strictness)
            .map_err(|error| error.at(offset).in_section(idstr, instance))
    }

    fn load_found(
        &mut self,
        idstr: &str,
        instance: u32,
        version: u32,
        input: &mut Reader<'_>,
        strictness: Strictness,
    ) -> Result<()> {
        let index = self.admit(idstr, instance, version, strictness)?;
        let loaded = self.entries.get_mut(index).map_or(Ok(()), |entry| entry.load(input, version));
        loaded.map_err(|error| self.with_remedy(error, idstr, input))?;
        self.next = index + 1;
        Ok(())
    }

    /// The entry that matches a section's header, if a section with this header may come now.
    pub(super) fn admit(&self, idstr: &str, instance: u32, version: u32, strictness: Strictness) -> Result<usize> {
        let found = self.find(idstr, instance, strictness);
        let Some((index, entry)) = found.and_then(|index| Some((index, self.entries.get(index)?))) else {
            let name = self.renamed(idstr).unwrap_or(idstr);
            let what = match self.entries.iter().any(|entry| entry.idstr == name) {
                true => "instance",
                false => "section",
            };
            let remedy = self.remedy(idstr).unwrap_or("both sides need the same devices");
            let message = format!("this machine has no such {what}: {remedy}");
            return Err(Error::new(ErrorKind::Incompatible, message));
        };
        if entry.loaded && strictness == Strictness::Strict {
            return Err(Error::new(ErrorKind::Malformed, "came twice"));
        }
        entry.description().check_version(version)?;
        Ok(index)
    }

    /// Adds the remedy to an error. The name of an unknown subsection is still unread when the subsection is refused.
    fn with_remedy(&self, error: Error, idstr: &str, input: &Reader<'_>) -> Error {
        let name = input.peek_subsection(idstr).ok().flatten().and_then(|name| std::str::from_utf8(name).ok());
        match name.and_then(|name| self.remedy(name)) {
            Some(remedy) if error.kind() == ErrorKind::Incompatible => {
                let message = format!("{}: {remedy}", error.message());
                error.restated(message)
            }
            _ => error,
        }
    }

    /// The first entry that matches. Most streams have the order of the registry, so the search is skipped if the next entry
    /// matches and no earlier entry could.
    pub(super) fn find(&self, idstr: &str, instance: u32, strictness: Strictness) -> Option<usize> {
        let next = self.entries.get(self.next).filter(|_| self.next <= self.plain && instance != u32::MAX);
        if next.is_some_and(|entry| entry.instance == instance && entry.idstr == idstr) {
            return Some(self.next);
        }
        let answering = |name: &str| self.entries.iter().position(|entry| entry.answers_to(name, instance, strictness));
        self.renamed(idstr).and_then(answering).or_else(|| answering(idstr))
    }

    /// True once the load has changed the state of a section other than an early one.
    pub(crate) fn has_loaded(&self) -> bool {
        self.entries.iter().any(|entry| entry.loaded && !entry.is_early())
    }

    /// Checks after a load that all required sections came. A QEMU-compatible load does not require any, as in QEMU.
    ///
    /// # Errors
    /// `Malformed`, naming all that are missing.
    pub fn check_complete(&self, strictness: Strictness) -> Result<()> {
        self.check_came(strictness, |_, entry| entry.loaded)
    }

    /// Checks that `came` is true for all required sections.
    pub(super) fn check_came(
        &self,
        strictness: Strictness,
        came: impl Fn(usize, &Registration<'_>) -> bool,
    ) -> Result<()> {
        let missing = self.entries.iter().enumerate().filter(|(index, entry)| entry.required && !came(*index, entry));
        let names: Vec<_> = missing
            .map(|(_, Registration { idstr, instance, .. })| match self.remedy(idstr) {
                Some(remedy) => format!("{idstr}/{instance} ({remedy})"),
                None => format!("{idstr}/{instance}"),
            })
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let names = names.join(", ");
        if strictness == Strictness::QemuCompatible {
            tracing::warn!("sections that did not arrive keep their reset state: {names}");
            return Ok(());
        }
        Err(Error::new(ErrorKind::Malformed, format!("required sections did not arrive: {names}")))
    }
}

/// Checks the length of a name, which has a length byte on the wire.
fn check_name(idstr: &str, instance: u32) -> Result<()> {
    match idstr.len() {
        1..=255 => Ok(()),
        _ => Err(misuse(idstr, instance, "a section's name has 1 to 255 bytes")),
    }
}

fn misuse(idstr: &str, instance: u32, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Misuse, message).in_section(idstr, instance)
}
