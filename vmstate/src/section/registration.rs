//! One section in the registry: its name, and how it is sent and loaded.

use std::fmt;

use super::older::Older;
use super::{IterativeSection, Section, SectionRules};
use crate::codec::{Reader, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;

/// One registered section.
pub struct Registration<'a> {
    pub(super) idstr: String,
    pub(super) instance: u32,
    pub(super) alias: Option<u32>,
    /// Name and instance id without the device's path.
    pub(super) compat: Option<(String, u32)>,
    pub(super) priority: u32,
    early: bool,
    pub(super) required: bool,
    beyond_qemu: bool,
    pub(super) unmigratable: Option<String>,
    pub(super) loaded: bool,
    /// How the section is sent to the release for which it is saved, or its name there and why it cannot be sent. Boxed, because
    /// it is rare and a save iterates over all registrations.
    pub(super) older: Option<Box<std::result::Result<Older, (String, String)>>>,
    pub(super) content: Content<'a>,
}

/// How a section is sent.
pub(super) enum Content<'a> {
    /// Whole, in one FULL section.
    Whole(Box<dyn Section + 'a>),
    /// In parts, from START to END.
    Iterative(Box<dyn IterativeSection + Send + 'a>),
}

impl<'a> Registration<'a> {
    pub(super) fn new(idstr: &str, instance: u32, rules: SectionRules, content: Content<'a>) -> Self {
        Self {
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
            content,
        }
    }
}

impl Registration<'_> {
    /// Sends the section before all sections of lower priority. Needed for a device whose state others depend on when they load.
    pub fn priority(&mut self, priority: u32) -> &mut Self {
        self.priority = priority;
        self
    }

    /// Also loads the section under this instance id, which an earlier release used. For an older name, see
    /// [`Sections::add_alias`](super::Sections::add_alias).
    pub fn alias(&mut self, instance: u32) -> &mut Self {
        self.alias = Some(instance);
        self
    }

    /// Declares that the machine cannot be migrated as long as it has this section, and why.
    pub fn unmigratable(&mut self, reason: &str) -> &mut Self {
        self.unmigratable = Some(reason.to_owned());
        self
    }

    /// Accepts streams without this section as complete.
    pub fn optional(&mut self) -> &mut Self {
        self.required = false;
        self
    }

    /// Declares that QEMU's machine of this type has no such section, and would refuse the stream because of it: the section is
    /// sent only to a destination that identifies itself as one of this library, and streams without it are complete.
    pub fn beyond_qemu(&mut self) -> &mut Self {
        (self.required, self.beyond_qemu) = (false, true);
        self
    }

    /// Name in the stream.
    #[inline]
    pub fn idstr(&self) -> &str {
        &self.idstr
    }

    /// Instance id among devices of that name.
    #[inline]
    pub fn instance(&self) -> u32 {
        self.instance
    }

    /// True if the section is sent before the guest's memory.
    pub fn is_early(&self) -> bool {
        self.early
    }

    /// True if the section is not sent to a QEMU.
    pub fn is_beyond_qemu(&self) -> bool {
        self.beyond_qemu
    }

    /// True if the section is sent in parts while the guest runs.
    pub fn is_iterative(&self) -> bool {
        matches!(self.content, Content::Iterative(_))
    }

    /// False if the section need not be sent now.
    pub fn is_needed(&self) -> bool {
        match &self.content {
            Content::Whole(section) => section.is_needed(),
            Content::Iterative(section) => section.is_needed(),
        }
    }

    /// The description of the section's bytes.
    #[inline]
    pub fn description(&self) -> &'static Description {
        match &self.content {
            Content::Whole(section) => section.description(),
            Content::Iterative(section) => section.description(),
        }
    }

    /// Loads the state of a section that came whole.
    pub(super) fn load(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
        match &mut self.content {
            Content::Whole(section) => section.load(input, version)?,
            Content::Iterative(_) => {
                return Err(Error::new(ErrorKind::Malformed, "came whole; here it comes in parts"));
            }
        }
        self.loaded = true;
        Ok(())
    }

    /// QEMU's `find_se` (migration/savevm.c): an entry without alias has alias -1 there, so the wire's 0xffffffff matches it; an
    /// entry with a path also matches its name without the path.
    pub(super) fn answers_to(&self, idstr: &str, instance: u32, strictness: Strictness) -> bool {
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
