//! One section in the registry: who it is, and how it is sent and loaded.

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
    /// Name and instance before it had a path.
    pub(super) compat: Option<(String, u32)>,
    pub(super) priority: u32,
    early: bool,
    pub(super) required: bool,
    beyond_qemu: bool,
    pub(super) unmigratable: Option<String>,
    pub(super) loaded: bool,
    /// How it is sent to the release for which it is saved, or its name there and why it cannot be. Boxed, as it is seldom
    /// there, and a save looks at all registrations.
    pub(super) older: Option<Box<std::result::Result<Older, (String, String)>>>,
    pub(super) content: Content<'a>,
}

/// How a section goes through the stream.
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
    /// Sends it before all sections of lower priority, as a device needs whose state others depend on when they load.
    pub fn priority(&mut self, priority: u32) -> &mut Self {
        self.priority = priority;
        self
    }

    /// Loads it also under this instance number, which an earlier release used. An older name:
    /// [`Sections::add_alias`](super::Sections::add_alias).
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

    /// True if it is sent in parts while the guest runs.
    pub fn is_iterative(&self) -> bool {
        matches!(self.content, Content::Iterative(_))
    }

    /// False if it need not be sent now.
    pub fn is_needed(&self) -> bool {
        match &self.content {
            Content::Whole(section) => section.is_needed(),
            Content::Iterative(section) => section.is_needed(),
        }
    }

    /// What its bytes are.
    #[inline]
    pub fn description(&self) -> &'static Description {
        match &self.content {
            Content::Whole(section) => section.description(),
            Content::Iterative(section) => section.description(),
        }
    }

    /// Takes in the state that came whole.
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

    /// QEMU's `find_se` (migration/savevm.c): an entry without alias has alias -1 there, so the wire's 0xffffffff
    /// matches it; and one with a path still answers to what it was called without.
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
