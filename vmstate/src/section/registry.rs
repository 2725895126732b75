//! The registry: which sections a machine has, in which order they are sent, and which of them a load has seen.

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;

use super::Section;
use super::older::Older;
use crate::codec::{Reader, Strictness, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;
use crate::schema::json::Schema;

/// The sections of one machine.
#[derive(Debug, Default)]
pub struct Sections<'a> {
    pub(super) entries: Vec<Registration<'a>>,
    /// Older names, each with the name that the sections have now.
    pub(super) aliases: Vec<(String, String)>,
    /// Names of sections on which the two sides may differ, each with what to do then.
    remedies: Vec<(String, String)>,
    /// The release for which everything is saved, unless that is this one.
    pub(super) release: Option<Arc<Schema>>,
    /// The entry behind the one that a load saw last.
    next: usize,
    /// So many of the first entries have only one name and number each.
    plain: usize,
}

/// One registered section.
pub struct Registration<'a> {
    pub(super) idstr: String,
    pub(super) instance: u32,
    alias: Option<u32>,
    /// Name and instance before it had a path.
    compat: Option<(String, u32)>,
    priority: u32,
    early: bool,
    required: bool,
    beyond_qemu: bool,
    unmigratable: Option<String>,
    loaded: bool,
    /// How it is sent to the release for which it is saved, or its name there and why it cannot be. Boxed, as it is seldom
    /// there, and a save looks at all registrations.
    pub(super) older: Option<Box<std::result::Result<Older, (String, String)>>>,
    pub(super) section: Box<dyn Section + 'a>,
}

impl<'a> Sections<'a> {
    /// No sections.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a section under the name of its description, and under the instance number that its rules say: if none, the
    /// next that is free (`calculate_new_instance_id`, migration/savevm.c).
    ///
    /// # Errors
    /// As [`register`](Self::register).
    pub fn add(&mut self, section: impl Section + 'a) -> Result<&mut Registration<'a>> {
        let name = section.description().name.to_string();
        let instance = section.rules().instance_id.map_or_else(|| self.next_instance(&name), Ok)?;
        self.register(&name, instance, section)
    }

    /// Adds a section of a device on a bus: its name is `path/name`, its instance 0. A QEMU-compatible load also takes it
    /// under the name without path, as streams of old have it, with the instance number that [`add`](Self::add)
    /// would give among those with a path (`vmstate_register_with_alias_id`, migration/savevm.c).
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

    /// Adds a section under a name and an instance number; all else is as its [rules](Section::rules) say. A device that
    /// the caller keeps is passed as `&mut device`, or as its `Arc<Mutex<_>>`.
    ///
    /// # Errors
    /// `Misuse` if the name is taken, is an older name of other sections, is empty, or is longer than the 255 bytes that
    /// its length byte can say.
    pub fn register(
        &mut self,
        idstr: &str,
        instance: u32,
        section: impl Section + 'a,
    ) -> Result<&mut Registration<'a>> {
        check_name(idstr, instance)?;
        if self.entries.iter().any(|entry| entry.idstr == idstr && entry.instance == instance) {
            let message = "registered twice: give each device of a kind its own instance number";
            return Err(misuse(idstr, instance, message));
        }
        if let Some(owner) = self.renamed(idstr) {
            return Err(misuse(idstr, instance, format!("this is the older name of {owner}: give it another one")));
        }
        let rules = section.rules();
        self.entries.push(Registration {
            idstr: idstr.to_owned(),
            instance,
            alias: rules.alias_id,
            compat: None,
            priority: rules.priority,
            early: rules.early_setup,
            required: !rules.conditional,
            beyond_qemu: false,
            unmigratable: rules.unmigratable.map(str::to_owned),
            loaded: false,
            older: None,
            section: Box::new(section),
        });
        let [.., added] = self.entries.as_mut_slice() else { unreachable!("an entry was pushed") };
        Ok(added)
    }

    /// Loads the sections called `idstr` also under `older`, the name that an earlier release gave them; each keeps its
    /// instance number. They are sent as `idstr`. Subsections are called after the description and not after the section: a
    /// device that has some keeps its description's name, and is [registered](Self::register) under the new one.
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
    /// `Misuse` if no section is called `idstr`, or if a stream that says `older` could mean another section.
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

    /// What the sections are called now whose older name this is.
    fn renamed(&self, older: &str) -> Option<&str> {
        self.aliases.iter().find(|(known, _)| known == older).map(|(_, idstr)| idstr.as_str())
    }

    /// In the order they are sent: higher priority first, and as registered within one (`savevm_state_handler_insert`,
    /// migration/savevm.c).
    pub fn in_order(&mut self) -> Vec<&mut Registration<'a>> {
        self.look_up_release();
        // The caller may give them other names.
        self.plain = 0;
        let mut entries: Vec<_> = self.entries.iter_mut().collect();
        if !entries.is_sorted_by_key(|entry| Reverse(entry.priority)) {
            entries.sort_by_key(|entry| Reverse(entry.priority));
        }
        entries
    }

    /// Before a migration or a snapshot, of either side: nothing stands in its way (`migration_is_blocked`,
    /// migration/migration.c; `qemu_loadvm_state`, migration/savevm.c).
    ///
    /// # Errors
    /// `Rejected`, with the section that cannot be migrated, and why.
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

    /// What a `machine` of these sections sends, as data.
    ///
    /// # Errors
    /// `Misuse` if two sections of one name have different descriptions.
    pub fn schema(&self, machine: Option<&str>) -> Result<Schema> {
        let mut schema = Schema::new(machine);
        for entry in &self.entries {
            schema.add(&entry.idstr, entry.section.description())?;
            if entry.required {
                schema.require(&entry.idstr);
            }
        }
        for (older, idstr) in &self.aliases {
            schema.add_alias(idstr, older)?;
        }
        Ok(schema)
    }

    /// Says what to do when a source has a section `idstr` that this machine lacks, or lacks one that this machine has, or sends a
    /// subsection of that name that is not known here: the refusal ends with `remedy`.
    pub fn add_remedy(&mut self, idstr: &str, remedy: &str) {
        self.remedies.push((idstr.to_owned(), remedy.to_owned()));
    }

    fn remedy(&self, idstr: &str) -> Option<&str> {
        self.remedies.iter().find(|(name, _)| name == idstr).map(|(_, remedy)| remedy.as_str())
    }

    /// Forgets what earlier loads have seen.
    pub fn begin_load(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.loaded = false);
        self.next = 0;
        self.plain = self.entries.iter().take_while(|entry| entry.alias.is_none() && entry.compat.is_none()).count();
    }

    /// Loads the section that the stream calls `idstr`, `instance`, written at `version`.
    ///
    /// # Errors
    /// `Incompatible` for a name or version that this machine does not have, `Malformed` for a section that came
    /// before (strict loads), and whatever the section says.
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
        let found = self.find(idstr, instance, strictness);
        let incompatible = |message: String| Err(Error::new(ErrorKind::Incompatible, message));
        let Some((index, entry)) = found.and_then(|index| Some((index, self.entries.get_mut(index)?))) else {
            let name = self.renamed(idstr).unwrap_or(idstr);
            let what = match self.entries.iter().any(|entry| entry.idstr == name) {
                true => "instance",
                false => "section",
            };
            let remedy = self.remedy(idstr).unwrap_or("both sides need the same devices");
            return incompatible(format!("this machine has no such {what}: {remedy}"));
        };
        if entry.loaded && strictness == Strictness::Strict {
            return Err(Error::new(ErrorKind::Malformed, "came twice"));
        }
        let Description { version: newest, minimum_version: oldest, .. } = *entry.section.description();
        if version > newest {
            return incompatible(format!("version {version} is newer than {newest}"));
        }
        if version < oldest {
            return incompatible(format!("version {version} is older than {oldest}, the oldest that loads"));
        }
        let loaded = entry.section.load(input, version);
        entry.loaded |= loaded.is_ok();
        loaded.map_err(|error| self.with_remedy(error, idstr, input))?;
        self.next = index + 1;
        Ok(())
    }

    /// An unknown subsection's name is still to be read when it is refused.
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

    /// The first entry that answers. Most streams have the order of the registry, so the search is spared if the next
    /// one is meant and none before it could answer in its place.
    fn find(&self, idstr: &str, instance: u32, strictness: Strictness) -> Option<usize> {
        let next = self.entries.get(self.next).filter(|_| self.next <= self.plain && instance != u32::MAX);
        if next.is_some_and(|entry| entry.instance == instance && entry.idstr == idstr) {
            return Some(self.next);
        }
        let answering = |name: &str| self.entries.iter().position(|entry| entry.answers_to(name, instance, strictness));
        self.renamed(idstr).and_then(answering).or_else(|| answering(idstr))
    }

    /// True once the load has changed more than what early sections hold.
    pub(crate) fn has_loaded(&self) -> bool {
        self.entries.iter().any(|entry| entry.loaded && !entry.is_early())
    }

    /// After a load: all required sections came. A QEMU-compatible load does without, as QEMU's does.
    ///
    /// # Errors
    /// `Malformed`, naming all that are missing.
    pub fn check_complete(&self, strictness: Strictness) -> Result<()> {
        let missing = self.entries.iter().filter(|entry| entry.required && !entry.loaded);
        let names: Vec<_> = missing
            .map(|Registration { idstr, instance, .. }| match self.remedy(idstr) {
                Some(remedy) => format!("{idstr}/{instance} ({remedy})"),
                None => format!("{idstr}/{instance}"),
            })
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let names = names.join(", ");
        if strictness == Strictness::QemuCompatible {
            tracing::warn!("sections that did not come keep their reset state: {names}");
            return Ok(());
        }
        Err(Error::new(ErrorKind::Malformed, format!("required sections did not come: {names}")))
    }
}

/// A name has a length byte on the wire.
fn check_name(idstr: &str, instance: u32) -> Result<()> {
    match idstr.len() {
        1..=255 => Ok(()),
        _ => Err(misuse(idstr, instance, "a section's name has 1 to 255 bytes")),
    }
}

fn misuse(idstr: &str, instance: u32, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Misuse, message).in_section(idstr, instance)
}

impl Registration<'_> {
    /// Sends it before all sections of lower priority, as a device needs whose state others depend on when they load.
    pub fn priority(&mut self, priority: u32) -> &mut Self {
        self.priority = priority;
        self
    }

    /// Loads it also under this instance number, which an earlier release used. An older name:
    /// [`Sections::add_alias`].
    pub fn alias(&mut self, instance: u32) -> &mut Self {
        self.alias = Some(instance);
        self
    }

    /// Says why the machine cannot be migrated as long as it has this section.
    pub fn unmigratable(&mut self, reason: &str) -> &mut Self {
        self.unmigratable = Some(reason.to_owned());
        self
    }

    /// A stream without it is complete.
    pub fn optional(&mut self) -> &mut Self {
        self.required = false;
        self
    }

    /// QEMU's machine of this type has no such section, and would refuse the stream because of it: it is sent only to a destination
    /// that says it is of this library, and a stream without it is complete.
    pub fn beyond_qemu(&mut self) -> &mut Self {
        (self.required, self.beyond_qemu) = (false, true);
        self
    }

    /// Name in the stream.
    #[inline]
    pub fn idstr(&self) -> &str {
        &self.idstr
    }

    /// Which of several devices of that name.
    #[inline]
    pub fn instance(&self) -> u32 {
        self.instance
    }

    /// True if it is sent before the guest's memory.
    pub fn is_early(&self) -> bool {
        self.early
    }

    /// True if a QEMU is not sent it.
    pub fn is_beyond_qemu(&self) -> bool {
        self.beyond_qemu
    }

    /// False if it need not be sent now.
    pub fn is_needed(&self) -> bool {
        self.section.is_needed()
    }

    /// What its bytes are.
    #[inline]
    pub fn description(&self) -> &'static Description {
        self.section.description()
    }

    /// Appends its state.
    ///
    /// # Errors
    /// What the section says, with its name; `Incompatible` if it cannot be said in the release for which it is saved.
    #[inline]
    pub fn save(&mut self, out: &mut Writer) -> Result<()> {
        let saved = match self.older {
            None => self.section.save(out),
            Some(_) => self.save_older(out),
        };
        saved.map_err(|error| error.in_section(&self.idstr, self.instance))
    }

    /// QEMU's `find_se` (migration/savevm.c): an entry without alias has alias -1 there, so the wire's 0xffffffff
    /// matches it; and one with a path still answers to what it was called without.
    fn answers_to(&self, idstr: &str, instance: u32, strictness: Strictness) -> bool {
        let alias = match strictness {
            Strictness::Strict => self.alias,
            Strictness::QemuCompatible => Some(self.alias.unwrap_or(u32::MAX)),
        };
        let old = self.compat.as_ref().filter(|(name, _)| strictness == Strictness::QemuCompatible && name == idstr);
        let known = (self.idstr == idstr).then_some(self.instance).or(old.map(|(_, instance)| *instance));
        known.is_some_and(|known| known == instance || alias == Some(instance))
    }
}

impl fmt::Debug for Registration<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { idstr, instance, alias, compat, priority, early, required, beyond_qemu, .. } = self;
        let Self { unmigratable, loaded, older, .. } = self;
        f.debug_struct("Registration")
            .field("idstr", idstr)
            .field("instance", instance)
            .field("alias", alias)
            .field("compat", compat)
            .field("priority", priority)
            .field("early", early)
            .field("required", required)
            .field("beyond_qemu", beyond_qemu)
            .field("unmigratable", unmigratable)
            .field("loaded", loaded)
            .field("older", older)
            .finish_non_exhaustive()
    }
}
