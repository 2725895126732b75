//! All sections of a machine: those in its registry, and guest memory, the section in parts that the engine provides.

use crate::error::{Error, ErrorKind, Result};
use crate::ram::EngineSection;
use crate::section::{IterativeSection, Sections};

pub(super) struct AllSections<'a, 's> {
    pub(super) registered: &'a mut Sections<'s>,
    pub(super) own: Box<dyn EngineSection + 'a>,
}

/// The owner of a section in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Engine,
    /// Index in the registry.
    Registered(usize),
}

impl AllSections<'_, '_> {
    /// The section in parts of an owner.
    ///
    /// # Errors
    /// `Misuse` if the owner has none.
    pub(super) fn parts(&mut self, owner: Owner) -> Result<&mut dyn IterativeSection> {
        let found = match owner {
            Owner::Engine => Some(&mut *self.own as &mut dyn IterativeSection),
            Owner::Registered(index) => self.registered.parts(index),
        };
        found.ok_or_else(|| Error::new(ErrorKind::Misuse, "the section is not one in parts"))
    }
}
