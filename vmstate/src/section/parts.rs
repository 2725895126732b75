//! The registry's functions for sections that are sent in parts: which exist, and which may begin to load.

use std::cmp::Reverse;

use super::registration::Content;
use super::{IterativeSection, Registration, Sections};
use crate::codec::Strictness;
use crate::error::{Error, ErrorKind, Result};

impl<'a> Sections<'a> {
    /// Indices of the sections that are sent in parts, in the order of [`in_order`](Self::in_order), in which they are sent.
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

    /// The iterative section at an index.
    pub(crate) fn parts(&mut self, index: usize) -> Option<&mut dyn IterativeSection> {
        match &mut self.entries.get_mut(index)?.content {
            Content::Iterative(section) => Some(&mut **section),
            Content::Whole(_) => None,
        }
    }

    /// The index of the section that the stream calls `idstr`, `instance`, if this side has it in parts. A strict load requires
    /// that the stream agrees (`comes_in_parts`).
    ///
    /// # Errors
    /// `Malformed` if the section comes whole where this side has it in parts, or the reverse, or came before.
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

    /// Checks that every section which comes in parts has `begun`, as far as a strict load requires.
    ///
    /// # Errors
    /// As for [`check_complete`](Self::check_complete).
    pub(crate) fn check_begun(&self, strictness: Strictness, begun: impl Fn(usize) -> bool) -> Result<()> {
        match strictness {
            Strictness::Strict => {
                self.check_came(strictness, |index, entry| !entry.is_iterative() || entry.loaded || begun(index))
            }
            Strictness::QemuCompatible => Ok(()),
        }
    }

    /// Marks the section at an index as loaded, after its last part.
    pub(crate) fn end_parts(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.loaded = true;
        }
    }
}
