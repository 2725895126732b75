//! Saving for an older release: each section with the name and version that the release's schema has.

use std::sync::Arc;

use super::registration::Content;
use super::{Registration, Sections, taken};
use crate::codec::{SubsectionVersions, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;
use crate::schema::json::Schema;

/// The reason why a section that the release lacks is not sent.
const UNKNOWN: &str = "this section is not known there: leave the device out of machines that go there";

/// How one section is sent to an older release.
#[derive(Debug)]
pub(super) struct Older {
    pub(super) idstr: String,
    pub(super) version: u32,
    pub(super) description: Description,
    /// The section's description in the release.
    there: Description,
    subsections: Arc<SubsectionVersions>,
}

impl Sections<'_> {
    /// From now on, saves everything so that the release with this schema loads it ([`schema`](Self::schema), as that release
    /// wrote it): each section under the one of its present and older names that the release has, sections and subsections at the
    /// release's version if that is older than today's. With `None`, and before the first call, everything is saved at its newest
    /// version. The setting stays after a migration or snapshot, successful or not.
    ///
    /// A migration or snapshot is refused before anything is sent, with all reasons, if some state cannot be represented in that
    /// release: a needed section or subsection that the release lacks, a version that this release no longer writes, a section
    /// that the release requires and this machine does not send, a different layout, a value that the release refuses. To find
    /// such subsections and values, everything is saved once before, in a live migration while the guest runs. A state that
    /// becomes unrepresentable later ends the migration at the next [rehearsal](crate::migrate::Machine::rehearse), or in the
    /// pause before any device is sent; the guest then continues here.
    pub fn save_for(&mut self, release: Option<Schema>) {
        self.release = release.map(Arc::new);
        self.forget_older();
    }

    /// Makes the next save look up again how each section is sent.
    pub(super) fn forget_older(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.older = None);
    }

    /// The older release for which everything is saved, if there is one.
    pub(crate) fn release(&self) -> Option<Arc<Schema>> {
        self.release.clone()
    }

    /// Looks up how each section is sent: once, and not again in the pause.
    pub(super) fn look_up_release(&mut self) {
        let Some(release) = &self.release else { return };
        for entry in self.entries.iter_mut().filter(|entry| entry.older.is_none()) {
            let aliases = self.aliases.iter().filter(|(_, idstr)| *idstr == entry.idstr).map(|(older, _)| older);
            let names = std::iter::once(&entry.idstr).chain(aliases);
            let known = names.into_iter().find_map(|name| Some((name, release.section(name)?)));
            entry.older = Some(Box::new(match known {
                None => Err((entry.idstr.clone(), UNKNOWN.to_owned())),
                Some((name, there)) => {
                    Older::new(name, entry.description(), there).map_err(|problem| (name.to_owned(), problem))
                }
            }));
        }
    }
}

impl Older {
    fn new(name: &str, here: &Description, there: &Description) -> Result<Self, String> {
        let version = here.version.min(there.version);
        if let Some(problem) = no_common_version(version, here.minimum_version, there.minimum_version) {
            return Err(problem);
        }
        let known = there.all_subsections();
        Ok(Self {
            idstr: name.to_owned(),
            version,
            description: here.older(version, &known, true),
            there: there.clone(),
            subsections: Arc::new(SubsectionVersions::new(known)),
        })
    }
}

/// Why no common version exists to send at.
fn no_common_version(version: u32, oldest_here: u32, oldest_there: u32) -> Option<String> {
    if version < oldest_there {
        return Some(format!("its newest version is {version}, the oldest that loads there is {oldest_there}"));
    }
    if version < oldest_here {
        return Some(format!(
            "its version there is {version}, the oldest that this release can write is {oldest_here}"
        ));
    }
    None
}

impl Registration<'_> {
    /// Name, version and description under which the section is sent.
    ///
    /// # Errors
    /// `Incompatible` if the section cannot be sent to the release for which it is saved.
    pub(crate) fn sent_as(&self) -> Result<(&str, u32, &Description)> {
        match self.older.as_deref() {
            None => Ok((&self.idstr, self.description().version, self.description())),
            Some(Ok(older)) => Ok((&older.idstr, older.version, &older.description)),
            Some(Err((_, problem))) => Err(self.incompatible(problem)),
        }
    }

    /// Name and version under which the section is sent in parts, which must be its newest version.
    ///
    /// # Errors
    /// As for [`sent_as`](Self::sent_as).
    pub(crate) fn sent_in_parts_as(&self) -> Result<(&str, u32)> {
        let ((idstr, version, _), newest) = (self.sent_as()?, self.description().version);
        if version != newest {
            return Err(self.incompatible(&format!("its version there is {version}; it is sent at {newest} only")));
        }
        Ok((idstr, version))
    }

    /// The section's name in the release for which it is saved.
    pub(crate) fn name_there(&self) -> &str {
        match self.older.as_deref() {
            None => &self.idstr,
            Some(Ok(older)) => &older.idstr,
            Some(Err((name, _))) => name,
        }
    }

    /// Appends the state of the section.
    ///
    /// # Errors
    /// Errors of the section, with its name; `Incompatible` if the state cannot be represented in the release for which it is
    /// saved; `Misuse` if the section is sent in parts.
    #[inline]
    pub fn save(&mut self, out: &mut Writer) -> Result<()> {
        let saved = match (&mut self.content, &self.older) {
            (Content::Whole(section), None) => section.save(out),
            (Content::Whole(_), Some(_)) => self.save_older(out),
            (Content::Iterative(_), _) => Err(Error::new(ErrorKind::Misuse, "is sent in parts, not whole")),
        };
        saved.map_err(|error| error.in_section(&self.idstr, self.instance))
    }

    /// Appends the state in the layout of the release for which it is saved.
    #[cold]
    fn save_older(&mut self, out: &mut Writer) -> Result<()> {
        let Content::Whole(section) = &mut self.content else { return Ok(()) };
        let (version, subsections) = match self.older.as_deref() {
            None => return section.save(out),
            Some(Ok(older)) => (older.version, Arc::clone(&older.subsections)),
            Some(Err((_, problem))) => return Err(self.incompatible(problem)),
        };
        let before = out.len();
        out.limit_subsections(Some(subsections));
        let saved = section.save_at(out, version);
        let problems = out.limit_subsections(None);
        match saved {
            // A hand-written section supports its newest version only.
            Err(error) if error.kind() == ErrorKind::Misuse => Err(self.incompatible(error.message())),
            Ok(()) if !problems.is_empty() => Err(self.incompatible(&problems.join("; "))),
            Ok(()) => match self.refused_value(out.as_slice().get(before..).unwrap_or_default()) {
                Some(refused) => Err(refused.in_section(&self.idstr, self.instance)),
                None => Ok(()),
            },
            saved => saved,
        }
    }

    /// The first value in the section's bytes that the release refuses.
    fn refused_value(&self, bytes: &[u8]) -> Option<Error> {
        let Some(Ok(Older { version, there, .. })) = self.older.as_deref() else { return None };
        taken::refused_value(bytes, there, *version)
    }

    fn incompatible(&self, problem: &str) -> Error {
        Error::new(ErrorKind::Incompatible, problem).in_section(&self.idstr, self.instance)
    }
}
