//! The registry: which sections a machine has, in which order they are sent, and which of them a load has seen.

use std::cmp::Reverse;
use std::fmt;

use super::Section;
use crate::codec::{Reader, Strictness, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;
use crate::schema::json::Schema;

/// The sections of one machine.
#[derive(Debug, Default)]
pub struct Sections<'a> {
    entries: Vec<Registration<'a>>,
    /// The entry behind the one that a load saw last.
    next: usize,
}

/// One registered section.
pub struct Registration<'a> {
    idstr: String,
    instance: u32,
    alias: Option<u32>,
    priority: u32,
    required: bool,
    loaded: bool,
    section: Box<dyn Section + 'a>,
}

impl<'a> Sections<'a> {
    /// No sections.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a section: required, without alias, of the lowest priority. A device that the caller keeps is passed
    /// as `&mut device as &mut dyn Section`, or as its `Arc<Mutex<_>>`.
    ///
    /// # Errors
    /// `Misuse` if the name is taken, empty, or longer than the 255 bytes that its length byte can say.
    pub fn register(
        &mut self,
        idstr: &str,
        instance: u32,
        section: impl Section + 'a,
    ) -> Result<&mut Registration<'a>> {
        let misuse = |message: &str| Err(Error::new(ErrorKind::Misuse, message).in_section(idstr, instance));
        if idstr.is_empty() || idstr.len() > usize::from(u8::MAX) {
            return misuse("a section's name has 1 to 255 bytes");
        }
        if self.entries.iter().any(|entry| entry.idstr == idstr && entry.instance == instance) {
            return misuse("registered twice: give each device of a kind its own instance number");
        }
        let section = Box::new(section);
        let (alias, priority, required, loaded) = (None, 0, true, false);
        let idstr = idstr.to_owned();
        self.entries.push(Registration { idstr, instance, alias, priority, required, loaded, section });
        let [.., added] = self.entries.as_mut_slice() else { unreachable!("an entry was pushed") };
        Ok(added)
    }

    /// In the order they are sent: higher priority first, and as registered within one (`savevm_state_handler_insert`,
    /// migration/savevm.c).
    pub fn in_order(&mut self) -> Vec<&mut Registration<'a>> {
        let mut entries: Vec<_> = self.entries.iter_mut().collect();
        entries.sort_by_key(|entry| Reverse(entry.priority));
        entries
    }

    /// What a `machine` of these sections sends, as data.
    ///
    /// # Errors
    /// `Misuse` if two sections of one name have different descriptions.
    pub fn schema(&self, machine: Option<&str>) -> Result<Schema> {
        let mut schema = Schema::new(machine);
        self.entries.iter().try_for_each(|entry| schema.add(&entry.idstr, entry.section.description()))?;
        Ok(schema)
    }

    /// Forgets what earlier loads have seen.
    pub fn begin_load(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.loaded = false);
        self.next = 0;
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
            return incompatible(match self.entries.iter().any(|entry| entry.idstr == idstr) {
                true => "this machine has no such instance: both sides need the same devices".to_owned(),
                false => "this machine has no such section: both sides need the same devices".to_owned(),
            });
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
        entry.section.load(input, version)?;
        entry.loaded = true;
        self.next = index + 1;
        Ok(())
    }

    /// The first entry that answers. Most streams have the order of the registry, so the search is spared if the next
    /// one is meant and none before it could answer in its place.
    fn find(&self, idstr: &str, instance: u32, strictness: Strictness) -> Option<usize> {
        let (before, rest) = self.entries.split_at_checked(self.next)?;
        let is_next = rest.first().is_some_and(|entry| entry.instance == instance && entry.idstr == idstr);
        if is_next && instance != u32::MAX && before.iter().all(|entry| entry.alias.is_none()) {
            return Some(self.next);
        }
        self.entries.iter().position(|entry| entry.answers_to(idstr, instance, strictness))
    }

    /// After a load: all required sections came. A QEMU-compatible load does without, as QEMU's does.
    ///
    /// # Errors
    /// `Malformed`, naming all that are missing.
    pub fn check_complete(&self, strictness: Strictness) -> Result<()> {
        let missing = self.entries.iter().filter(|entry| entry.required && !entry.loaded);
        let names: Vec<_> = missing.map(|entry| format!("{}/{}", entry.idstr, entry.instance)).collect();
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

impl Registration<'_> {
    /// Sends it before all sections of lower priority, as a device needs whose state others depend on when they load.
    pub fn priority(&mut self, priority: u32) -> &mut Self {
        self.priority = priority;
        self
    }

    /// Loads it also under this instance number, which an earlier release used.
    pub fn alias(&mut self, instance: u32) -> &mut Self {
        self.alias = Some(instance);
        self
    }

    /// A stream without it is complete.
    pub fn optional(&mut self) -> &mut Self {
        self.required = false;
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

    /// What its bytes are.
    #[inline]
    pub fn description(&self) -> &'static Description {
        self.section.description()
    }

    /// Appends its state.
    ///
    /// # Errors
    /// What the section says, with its name.
    #[inline]
    pub fn save(&mut self, out: &mut Writer) -> Result<()> {
        self.section.save(out).map_err(|error| error.in_section(&self.idstr, self.instance))
    }

    /// QEMU's `find_se` (migration/savevm.c): an entry without alias has alias -1 there, so the wire's 0xffffffff
    /// matches it.
    fn answers_to(&self, idstr: &str, instance: u32, strictness: Strictness) -> bool {
        let alias = match strictness {
            Strictness::Strict => self.alias,
            Strictness::QemuCompatible => Some(self.alias.unwrap_or(u32::MAX)),
        };
        (self.instance == instance || alias == Some(instance)) && self.idstr == idstr
    }
}

impl fmt::Debug for Registration<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { idstr, instance, alias, priority, required, loaded, section: _ } = self;
        f.debug_struct("Registration")
            .field("idstr", idstr)
            .field("instance", instance)
            .field("alias", alias)
            .field("priority", priority)
            .field("required", required)
            .field("loaded", loaded)
            .finish_non_exhaustive()
    }
}
