//! The parts of a stream that a migration and a file have in common, on the way out.

use super::{Peer, release};
use crate::codec::{Outbox, Writer};
use crate::error::{ErrorKind, Result};
use crate::ram::{PAGE_SIZE, RAM_IDSTR, RAM_VERSION, RamSender, put_end_of_section};
use crate::section::Sections;
use crate::stream::{Element, SectionHeader, SelfDescription, put_footer};

/// Section numbers: the RAM's, and the first of the devices'. Not 0: QEMU's destination looks a number up among all
/// handlers, and those it has not loaded yet have number 0 (`load_section_id`, migration/savevm.c).
const RAM_ID: u32 = 1;
const FIRST_DEVICE_ID: u32 = 2;

/// Appends the section that announces the RAM blocks.
pub(super) fn put_ram_start(out: &mut Outbox, ram: &RamSender<'_>) {
    let (idstr, instance, version) = (RAM_IDSTR.into(), 0, RAM_VERSION);
    Element::Start(SectionHeader { id: RAM_ID, idstr, instance, version }).write(out.bytes_mut());
    ram.put_blocks(out);
    put_footer(out.bytes_mut(), RAM_ID);
}

/// Appends a section of pages, until `out` has about `wanted` bytes; true if no pages are left.
pub(super) fn put_ram_part(out: &mut Outbox, ram: &mut RamSender<'_>, wanted: u64) -> Result<bool> {
    put_ram(out, ram, Element::Part(RAM_ID), wanted)
}

/// Appends the last section of pages, with all that are left.
pub(super) fn put_ram_end(out: &mut Outbox, ram: &mut RamSender<'_>) -> Result<()> {
    put_ram(out, ram, Element::End(RAM_ID), u64::MAX).map(|_| ())
}

fn put_ram(out: &mut Outbox, ram: &mut RamSender<'_>, element: Element, wanted: u64) -> Result<bool> {
    element.write(out.bytes_mut());
    let over = ram.put_pages(out, wanted)?;
    put_end_of_section(out);
    put_footer(out.bytes_mut(), RAM_ID);
    Ok(over)
}

/// The self-description of a stream of `machine`, which belongs after the end of the stream.
pub(super) fn describe(machine: &str) -> SelfDescription {
    SelfDescription::new(machine, PAGE_SIZE)
}

/// When a section is sent (`vmsd->early_setup`, migration/savevm.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Before the guest's memory, while the guest runs.
    Early,
    /// Behind it, when the guest stands still.
    Last,
}

/// Appends the devices whose turn it is and that `peer` knows, and what they are to `described`.
///
/// # Errors
/// What a device refuses; `Rejected`, with all reasons, if the release for which it is saved cannot have it.
pub(super) fn put_devices(
    out: &mut Vec<u8>,
    sections: &mut Sections<'_>,
    (peer, turn): (Peer, Turn),
    described: &mut SelfDescription,
) -> Result<()> {
    let mut problems = Vec::new();
    for (id, section) in (FIRST_DEVICE_ID..).zip(sections.in_order()) {
        let known = peer == Peer::Vmstate || !section.is_beyond_qemu();
        if section.is_early() != (turn == Turn::Early) || !known || !section.is_needed() {
            continue;
        }
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
        let (idstr, version, description) = section.sent_as()?;
        let instance = section.instance();
        let pushed = described.push(idstr, instance, description, &outcomes);
        pushed.map_err(|error| error.in_section(idstr, instance))?;
        let idstr = idstr.into();
        Element::Full(SectionHeader { id, idstr, instance, version }).write(out);
        out.extend_from_slice(&body);
        put_footer(out, id);
    }
    release::refused(&problems)
}
