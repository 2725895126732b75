//! The registry's side of sections that are sent in parts: which there are, and which may begin to load.

use std::cmp::Reverse;

use super::registration::Content;
use super::{IterativeSection, Registration, Sections};
use crate::codec::Strictness;
use crate::error::{Error, ErrorKind, Result};

impl<'a> Sections<'a> {
    /// Indices of those that are sent in parts, in the order they are sent, which is that of [`in_order`](Self::in_order).
    pub(crate) fn iterative(&mut self) -> Vec<usize> {
        self.look_up_release();
        let all = self.entries.iter().enumerate();
        let mut found: Vec<_> = all.filter(|(_, entry)| entry.is_iterative()).collect();
        found.sort_by_key(|(_, entry)| Reverse(entry.priority));
        found.into_iter().map(|(index, _)| index).collect()
    }

    /// The section at an index.
    pub(crate) fn at(&self, index: usize) -> Option<&Registration<'a>> {
        self.entries.get(index)
    }

    /// What is sent in parts of the section at an index.
    pub(crate) fn parts(&mut self, index: usize) -> Option<&mut dyn IterativeSection> {
        match &mut self.entries.get_mut(index)?.content {
            Content::Iterative(section) => Some(&mut **section),
            Content::Whole(_) => None,
        }
    }

    /// The index of the section that the stream calls `idstr`, `instance`, if it is one that comes in parts. Strict loads want it to
    /// `come_in_parts` as it does here.
    ///
    /// # Errors
    /// `Malformed` if it comes another way than here, or came before.
    pub(crate) fn begin_parts(
        &self,
        (idstr, instance, version): (&str, u32, u32),
        comes_in_parts: bool,
        strictness: Strictness,
    ) -> Result<Option<usize>> {
        let Some(entry) = self.find(idstr, instance, strictness).and_then(|index| self.at(index)) else {
            return Ok(None);
        };
        match (entry.is_iterative(), comes_in_parts) {
            (true, false) if strictness == Strictness::Strict => {
                Err(Error::new(ErrorKind::Malformed, "came whole; here it comes in parts"))
            }
            (false, true) if strictness == Strictness::Strict => {
                Err(Error::new(ErrorKind::Malformed, "came in parts; here it comes whole"))
            }
            (false, _) => Ok(None),
            (true, _) => self.admit(idstr, instance, version, strictness).map(Some),
        }
    }

    /// All that is to come in parts has `begun`, as far as a strict load requires it.
    ///
    /// # Errors
    /// As [`check_complete`](Self::check_complete).
    pub(crate) fn check_begun(&self, strictness: Strictness, begun: impl Fn(usize) -> bool) -> Result<()> {
        match strictness {
            Strictness::Strict => self.check_came(strictness, |index, entry| !entry.is_iterative() || begun(index)),
            Strictness::QemuCompatible => Ok(()),
        }
    }

    /// The last part of the section at an index has loaded.
    pub(crate) fn end_parts(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.loaded = true;
        }
    }
}
