//! A paused guest in a file: the same stream, without a destination that answers.

mod beside;
mod in_place;

use std::time::{Duration, Instant};

use super::Peer;
use super::control::Control;
use super::load::{Loaded, Loader};
use super::release::check_release;
use super::save::{Saver, SendPhase, Which};
use super::wire::{Link, STREAM, Timeout, is_closed};
use crate::channel::{Channel, Clock};
use crate::codec::{Limits, Outbox, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::{DirtyLog, GuestRam, RamSection, announces_shared};
use crate::section::Sections;
use crate::stream::{Command, Element, IGNORE_SHARED, put_configuration, put_header};

pub use crate::ram::mapped::{FileThreads, FileWorker};
pub use beside::Beside;
pub use in_place::{Saving, save_in_place};

/// Bytes handed to the channel at once.
const CHUNK: u64 = 1 << 20;
/// The message for a file that ends before its stream does.
const CUT: &str = "the file ends here, before the end of its stream: it was not written whole, or a copy was cut. Compare \
                   its length with the original's, or save the guest again";

/// Writes a guest, which must not run meanwhile. The file contains sections and memory: the caller must keep the disks.
///
/// # Errors
/// Errors of a device or of the channel; `Rejected` before anything is written if a section is unmigratable, or if state cannot
/// be represented in the release [for which it is saved](Sections::save_for).
pub fn save(
    channel: &mut dyn Channel,
    machine_type: &str,
    sections: &mut Sections<'_>,
    ram: &dyn GuestRam,
) -> Result<()> {
    save_with(channel, machine_type, sections, ram, &Control::default())
}

/// As for [`save`]; `control` can cancel it, and has its figures.
///
/// # Errors
/// As for [`save`]; `Cancelled`.
pub fn save_with(
    channel: &mut dyn Channel,
    machine_type: &str,
    sections: &mut Sections<'_>,
    ram: &dyn GuestRam,
    control: &Control,
) -> Result<()> {
    sections.check_migratable()?;
    check_release(sections)?;
    let (begun, mut log) = (Instant::now(), Still);
    let ram_bytes = ram.blocks().iter().map(|block| block.len).sum();
    let section = RamSection::outgoing(ram, &mut log);
    let pages = section.figures();
    let mut wire = Link::new(channel, ram, &Still, control, Strictness::Strict, Limits::default(), 0);
    let publish = |bytes: u64| {
        let (moved, pending, elapsed) = (pages.moved(), pages.pending_bytes(), begun.elapsed());
        control.publish(|progress| {
            (progress.elapsed, progress.bytes, progress.ram_bytes) = (elapsed, bytes, ram_bytes);
            (progress.normal_pages, progress.zero_pages) = (moved.normal, moved.zero);
            progress.remaining_bytes = pending;
        });
    };
    let mut out = Outbox::new();
    put_header(out.bytes_mut());
    put_configuration(out.bytes_mut(), machine_type, announces_shared(ram).then_some(IGNORE_SHARED));
    let mut saver = Saver::new(sections, Box::new(section), &Still);
    let mut saved = saver.put_devices(out.bytes_mut(), (Peer::Vmstate, SendPhase::Early))?;
    saver.start(&mut out, Peer::Vmstate)?;
    saver.sync()?;
    while !saver.iterate(&mut out, CHUNK, Which::All)? {
        wire.send_unanswered(&mut out)?;
        out.clear();
        publish(wire.sent());
    }
    saver.complete(&mut out, Which::All)?;
    saved.extend(saver.put_devices(out.bytes_mut(), (Peer::Vmstate, SendPhase::Last))?);
    Element::Eof.write(out.bytes_mut());
    saver.describe(machine_type, &saved)?.write(out.bytes_mut());
    wire.send_unanswered(&mut out)?;
    publish(wire.sent());
    Ok(())
}

/// Reads a guest, which does not run yet: the caller decides whether it may.
///
/// # Errors
/// Faults of the stream, with their place; `Io` if the file ends before the stream does.
pub fn load(
    channel: &mut dyn Channel,
    machine_type: &str,
    strictness: Strictness,
    limits: Limits,
    sections: &mut Sections<'_>,
    ram: &dyn GuestRam,
) -> Result<()> {
    sections.check_migratable()?;
    let control = Control::default();
    let wire = Link::new(channel, ram, &Still, &control, strictness, limits, STREAM);
    let memory = Box::new(RamSection::incoming(ram));
    let mut loader = Loader::new(wire, sections, memory, !ram.blocks().is_empty(), strictness);
    load_all(&mut loader, machine_type, announces_shared(ram))
        .map_err(|error| if is_closed(&error) { error.restated(CUT) } else { error })?;
    // A file may end here: the self-description is for people and tools.
    if let Err(error) = loader.drop_description(Timeout::Endless) {
        tracing::debug!("no self-description: {error}");
    }
    Ok(())
}

fn load_all(loader: &mut Loader<'_, '_>, machine_type: &str, shares_memory: bool) -> Result<()> {
    loader.read_configuration(machine_type, shares_memory)??;
    loop {
        let offset = loader.wire.offset();
        match loader.step()? {
            Loaded::Section | Loaded::Command(Command::SwitchoverStart) => {}
            Loaded::Command(command) if command.is_postcopy() => return Err(command.unsupported().at(offset)),
            Loaded::Command(command) => {
                let message = format!("command {command:?} needs an answer, which a file cannot give");
                return Err(Error::new(ErrorKind::Incompatible, message).at(offset));
            }
            Loaded::Eof => return loader.check_complete(),
        }
    }
}

/// The dirty log and clock of a guest that does not run: no writes, and no waits.
struct Still;

impl DirtyLog for Still {
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    fn sync(&mut self, _block: usize, _words: &mut [u64]) -> Result<()> {
        Ok(())
    }

    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}
}

impl Clock for Still {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, _duration: Duration) {}
}
