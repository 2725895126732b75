//! Saving of the parts of a stream that a migration and a file have in common.

use std::time::Duration;

use super::all::{AllSections, Owner};
use super::report::SectionReport;
use super::{Peer, release};
use crate::channel::Clock;
use crate::codec::{Outbox, Outcomes, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::EngineSection;
use crate::section::{IterativeSection, Sections};
use crate::stream::{Element, SectionHeader, SelfDescription, put_footer};

/// The first section number. Not 0: QEMU's destination looks a number up among all handlers, and those that it has not loaded yet
/// have number 0 (`load_section_id`, migration/savevm.c).
const FIRST_ID: u32 = 1;

/// Page size in the self-description (QEMU's `TARGET_PAGE_SIZE` on x86).
const PAGE_SIZE: u64 = 4096;

/// A section that was saved whole.
pub(super) struct Saved {
    /// Its index among all sections.
    place: usize,
    /// The decisions of the save.
    outcomes: Outcomes,
    bytes: u64,
    duration: Duration,
}

/// When a section that is sent whole is sent (`vmsd->early_setup`, migration/savevm.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendPhase {
    /// Before the guest's memory, while the guest runs.
    Early,
    /// After it, when the guest is paused.
    Last,
}

/// A selection of sections in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    All,
    /// The engine's own.
    Memory,
    Others,
}

/// The sections of one machine while they are sent. Sections in parts are cleaned up when it is dropped.
pub(super) struct Saver<'a, 's> {
    all: AllSections<'a, 's>,
    clock: &'a dyn Clock,
    /// Sections in parts that are set up, in the order in which they are sent.
    begun: Vec<Begun>,
}

/// A section in parts that is set up.
struct Begun {
    /// Its number in the stream.
    id: u32,
    owner: Owner,
    /// True if no part of this round is left to send.
    is_over: bool,
}

impl Which {
    fn has(self, owner: Owner) -> bool {
        match self {
            Self::All => true,
            Self::Memory => owner == Owner::Engine,
            Self::Others => owner != Owner::Engine,
        }
    }
}

impl<'a, 's> Saver<'a, 's> {
    /// Creates a saver; `own` is the section in parts that the engine provides, and is sent first.
    pub(super) fn new(
        registered: &'a mut Sections<'s>,
        own: Box<dyn EngineSection + 'a>,
        clock: &'a dyn Clock,
    ) -> Self {
        Self { all: AllSections { registered, own }, clock, begun: Vec::new() }
    }

    /// True if the release for which the sections are saved is known.
    pub(super) fn has_release(&self) -> bool {
        self.all.registered.release().is_some()
    }

    /// Sets up the sections in parts that `peer` supports, and appends the START of each.
    ///
    /// # Errors
    /// Errors of a section; `Incompatible` if the release for which it is saved cannot have it.
    pub(super) fn start(&mut self, out: &mut Outbox, peer: Peer) -> Result<()> {
        let registered = self.all.registered.iterative().into_iter().filter(|index| {
            let entry = self.all.registered.at(*index);
            entry.is_some_and(|entry| (peer == Peer::Vmstate || !entry.is_beyond_qemu()) && entry.is_needed())
        });
        let owners: Vec<_> = std::iter::once(Owner::Engine).chain(registered.map(Owner::Registered)).collect();
        for (id, owner) in (FIRST_ID..).zip(owners) {
            let (idstr, instance, version) = self.sent_as(owner)?;
            let header = SectionHeader { id, idstr: idstr.clone().into(), instance, version };
            Element::Start(header).write(out.bytes_mut());
            self.begun.push(Begun { id, owner, is_over: false });
            self.all.parts(owner)?.setup(out).map_err(|error| error.in_section(&idstr, instance))?;
            put_footer(out.bytes_mut(), id);
        }
        Ok(())
    }

    /// Name, instance and version in the stream.
    fn sent_as(&self, owner: Owner) -> Result<(String, u32, u32)> {
        let registered = if let Owner::Registered(index) = owner { self.all.registered.at(index) } else { None };
        let Some(entry) = registered else {
            let own = self.all.own.description();
            return Ok((own.name.to_string(), 0, own.version));
        };
        let (idstr, version) = entry.sent_in_parts_as()?;
        Ok((idstr.to_owned(), entry.instance(), version))
    }

    /// An estimate of the bytes that the sections in parts still have to send.
    pub(super) fn pending(&mut self) -> u64 {
        self.pending_of(|_| true)
    }

    /// As for [`pending`](Self::pending), without the engine's own section.
    pub(super) fn pending_registered(&mut self) -> u64 {
        self.pending_of(|owner| owner != Owner::Engine)
    }

    fn pending_of(&mut self, counts: impl Fn(Owner) -> bool) -> u64 {
        let Self { all, begun, .. } = self;
        let counted = begun.iter().map(|section| section.owner).filter(|owner| counts(*owner));
        let pending = counted.map(|owner| all.parts(owner).map_or(0, |section| section.pending()));
        pending.fold(0, u64::saturating_add)
    }

    /// Begins a round: the sections in parts add the places written so far.
    ///
    /// # Errors
    /// Errors of a section.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.each(Which::All, |section, begun| {
            begun.is_over = false;
            section.sync()
        })
    }

    /// In post-copy, over another connection: the round of guest memory continues with the pages that the destination lacks.
    pub(super) fn resume(&mut self) {
        self.begun.iter_mut().filter(|begun| begun.owner == Owner::Engine).for_each(|begun| begun.is_over = false);
    }

    /// Appends PARTs of about `budget` bytes in total: each section gets the rest of the budget, if it has something left in this
    /// round. True if the round is complete.
    ///
    /// # Errors
    /// Errors of a section; `Misuse` if a section makes no progress.
    pub(super) fn iterate(&mut self, out: &mut Outbox, budget: u64, which: Which) -> Result<bool> {
        let full = out.len().saturating_add(budget);
        let mut is_first = true;
        self.each(which, |section, begun| {
            let left = full.saturating_sub(out.len());
            if begun.is_over || left == 0 && !is_first {
                return Ok(());
            }
            is_first = false;
            Element::Part(begun.id).write(out.bytes_mut());
            let before = out.len();
            begun.is_over = section.iterate(out, left)?;
            if !begun.is_over && out.len() == before {
                let message = "reports that more is left to be sent, but appends nothing";
                return Err(Error::new(ErrorKind::Misuse, message));
            }
            put_footer(out.bytes_mut(), begun.id);
            Ok(())
        })?;
        Ok(self.begun.iter().filter(|section| which.has(section.owner)).all(|section| section.is_over))
    }

    /// Appends the records of requested pages in post-copy, outside of any section.
    ///
    /// # Errors
    /// What memory refuses.
    pub(super) fn put_asked(&mut self, out: &mut Outbox) -> Result<()> {
        self.all.own.put_asked(out)
    }

    /// Appends the ENDs.
    ///
    /// # Errors
    /// Errors of a section.
    pub(super) fn complete(&mut self, out: &mut Outbox, which: Which) -> Result<()> {
        self.each(which, |section, begun| {
            Element::End(begun.id).write(out.bytes_mut());
            section.complete(out)?;
            put_footer(out.bytes_mut(), begun.id);
            Ok(())
        })
    }

    /// Appends the sections that are sent whole in this phase and that `peer` supports, and returns them.
    ///
    /// # Errors
    /// Errors of a device; `Rejected`, with all reasons, if the release for which it is saved cannot have it.
    pub(super) fn put_devices(&mut self, out: &mut Vec<u8>, (peer, phase): (Peer, SendPhase)) -> Result<Vec<Saved>> {
        let (mut problems, mut saved) = (Vec::new(), Vec::new());
        // After the numbers of all sections in parts, sent or not, so that numbers are the same in each phase.
        let parts = u32::try_from(self.all.registered.iterative().len()).unwrap_or(u32::MAX);
        let first = FIRST_ID.saturating_add(1).saturating_add(parts);
        for ((place, section), id) in self.all.registered.in_order().into_iter().enumerate().zip(first..) {
            let known = peer == Peer::Vmstate || !section.is_beyond_qemu();
            if section.is_early() != (phase == SendPhase::Early) || !known || !section.is_needed() {
                continue;
            }
            let (name, instance) = (section.idstr(), section.instance());
            let _section = tracing::debug_span!("section", section = name, instance).entered();
            let begun = self.clock.now();
            let mut body = Writer::recording();
            match section.save(&mut body) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Incompatible => {
                    problems.push(error.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            }
            let (body, outcomes) = body.into_parts();
            let (idstr, version, _) = section.sent_as()?;
            let bytes = body.len() as u64;
            tracing::debug!(version, bytes, "saved");
            let (idstr, instance) = (idstr.into(), section.instance());
            Element::Full(SectionHeader { id, idstr, instance, version }).write(out);
            out.extend_from_slice(&body);
            put_footer(out, id);
            let duration = self.clock.now().saturating_sub(begun);
            saved.push(Saved { place, outcomes, bytes, duration });
        }
        release::refused(&problems).map(|()| saved)
    }

    /// The self-description of a stream of `machine` with the `saved` sections; it comes after the end of the stream.
    ///
    /// # Errors
    /// `Misuse` if a section was not written according to its description.
    pub(super) fn describe(&mut self, machine: &str, saved: &[Saved]) -> Result<SelfDescription> {
        let mut described = SelfDescription::new(machine, PAGE_SIZE);
        let sections = self.all.registered.in_order();
        for Saved { place, outcomes, .. } in saved {
            let Some(section) = sections.get(*place) else { continue };
            let (idstr, _, description) = section.sent_as()?;
            let pushed = described.push(idstr, section.instance(), description, outcomes);
            pushed.map_err(|error| error.in_section(idstr, section.instance()))?;
        }
        Ok(described)
    }

    /// The sections `saved` in the pause, for reports.
    pub(super) fn saved_in_pause(&mut self, saved: &[Saved]) -> Vec<SectionReport> {
        let sections = self.all.registered.in_order();
        let named = saved.iter().filter_map(|Saved { place, bytes, duration, .. }| {
            let section = sections.get(*place).filter(|section| !section.is_early())?;
            let (idstr, instance) = (section.sent_as().ok()?.0.to_owned(), section.instance());
            Some(SectionReport { idstr, instance, bytes: *bytes, saved: Some(*duration), loaded: None })
        });
        named.collect()
    }

    /// Calls a function for each section in parts that is set up.
    fn each(
        &mut self,
        which: Which,
        mut does: impl FnMut(&mut dyn IterativeSection, &mut Begun) -> Result<()>,
    ) -> Result<()> {
        let Self { all, begun, .. } = self;
        let failed = begun.iter_mut().filter(|begun| which.has(begun.owner)).find_map(|begun| {
            let done = all.parts(begun.owner).and_then(|section| does(section, begun));
            Some((begun.owner, done.err()?))
        });
        let Some((owner, error)) = failed else { return Ok(()) };
        let (idstr, instance, _) = self.sent_as(owner)?;
        Err(error.in_section(&idstr, instance))
    }
}

impl Drop for Saver<'_, '_> {
    fn drop(&mut self) {
        let Self { all, begun, .. } = self;
        for begun in begun {
            if let Ok(section) = all.parts(begun.owner) {
                section.cleanup();
            }
        }
    }
}
