//! A guest that runs, in a file where each page has its place: copied in rounds while it runs, and to the end while it stands.

use std::time::{Duration, Instant};

use super::{CHUNK, Still};
use crate::channel::Channel;
use crate::codec::{Limits, Outbox, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::Control;
use crate::migrate::release::check_release;
use crate::migrate::save::{Saver, SendPhase, Which};
use crate::migrate::wire::Link;
use crate::migrate::{Downtime, Peer};
use crate::ram::{DirtyLog, GuestRam, PageFigures, RamSection};
use crate::section::Sections;
use crate::stream::{Element, MAPPED_RAM, put_configuration, put_header};

/// Rounds at most: a guest that dirties memory faster than the file takes it is stopped behind them.
const MOST_ROUNDS: u32 = 30;
/// The guest is stopped when no more than these bytes are left, whatever the downtime limit: they are not worth one more round.
const LITTLE: u64 = 1 << 20;

/// The guest that is saved, and where to.
pub struct Saving<'a, 's> {
    /// The file. Its position is where the stream begins; it needs [`Channel::file`].
    pub channel: &'a mut dyn Channel,
    /// Machine type, as `microvm`.
    pub machine_type: &'a str,
    /// Its devices.
    pub sections: &'a mut Sections<'s>,
    /// Its memory.
    pub ram: &'a dyn GuestRam,
    /// What it writes.
    pub log: &'a mut dyn DirtyLog,
    /// The reader of the file: sections that a QEMU lacks are left out for a QEMU.
    pub reader: Peer,
}

/// Writes a guest in QEMU's mapped-ram layout: each page has one place in the file, and a later write to it goes there again. So the file is
/// no longer than the guest's memory however long the guest runs meanwhile, and can be [mapped](GuestRam::map) when it is read. The guest
/// is copied in rounds; once what it dirties in one fits [`downtime_limit`](super::super::Parameters::downtime_limit), or rounds do not
/// help, `pause` is called, after which it must not run until this returns.
///
/// Whether the file is on the disk then is for the caller to see to. How long the guest stood until then is the
/// [`downtime`](super::super::Progress::downtime).
///
/// # Errors
/// As [`save_with`](super::save_with); `Misuse` if the channel is no file, or memory is shared; what `pause` has.
pub fn save_in_place(saving: Saving<'_, '_>, control: &Control, pause: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let Saving { channel, machine_type, sections, ram, log, reader } = saving;
    sections.check_migratable()?;
    check_release(sections)?;
    let no_file = || Error::new(ErrorKind::Misuse, "only in a file each page has its place, and this is none");
    let section = RamSection::outgoing(ram, log).in_place(channel.file().ok_or_else(no_file)?.try_clone()?);
    let progress = Progress { pages: section.figures(), control, begun: Instant::now(), ram };
    let mut wire = Link::new(channel, ram, &Still, control, Strictness::Strict, Limits::default(), 0);
    let mut out = Outbox::new();
    put_header(out.bytes_mut());
    put_configuration(out.bytes_mut(), machine_type, Some(MAPPED_RAM));
    let mut saver = Saver::new(sections, Box::new(section), &Still);
    let mut saved = saver.put_devices(out.bytes_mut(), (reader, SendPhase::Early))?;
    saver.start(&mut out, reader)?;
    wire.send_unanswered(&mut out)?;
    saver.sync()?;
    let mut left = u64::MAX;
    for number in 1..=MOST_ROUNDS {
        progress.round(number);
        let (begun, before) = (Instant::now(), progress.bytes());
        loop {
            control.check()?;
            // The pages go to their places, and the PART has no record of them: a reader would only count thousands of these.
            out.clear();
            let memory_is_over = saver.iterate(&mut out, CHUNK, Which::Memory)?;
            out.clear();
            let over = saver.iterate(&mut out, CHUNK, Which::Others)? && memory_is_over;
            wire.send_unanswered(&mut out)?;
            progress.tell();
            if over {
                break;
            }
        }
        saver.sync()?;
        let (took, written) = (begun.elapsed(), progress.bytes() - before);
        let pending = saver.pending();
        if fits(pending, written, took, control.parameters().downtime_limit) || pending > left / 10 * 9 {
            break;
        }
        left = pending;
    }
    out.clear();
    let mut watch = Watch::new();
    pause()?;
    let mut downtime = Downtime { pause: watch.lap(), ..Downtime::default() };
    saver.sync()?;
    downtime.sync = watch.lap();
    saver.complete(&mut out, Which::All)?;
    downtime.pages = watch.lap();
    saved.extend(saver.put_devices(out.bytes_mut(), (reader, SendPhase::Last))?);
    Element::Eof.write(out.bytes_mut());
    saver.describe(machine_type, &saved)?.write(out.bytes_mut());
    wire.send_unanswered(&mut out)?;
    downtime.devices = watch.lap();
    control.publish(|progress| progress.downtime = Some(downtime));
    progress.tell();
    Ok(())
}

/// True if the file takes `pending` bytes within half of `limit`, as fast as it took `written` in this time. The other half is for the
/// devices.
fn fits(pending: u64, written: u64, took: Duration, limit: Duration) -> bool {
    pending <= LITTLE || pending as f64 * took.as_secs_f64() <= written as f64 * limit.as_secs_f64() / 2.0
}

/// Tells how long each of several steps took.
struct Watch(Instant);

impl Watch {
    fn new() -> Self {
        Self(Instant::now())
    }

    /// Since the last lap.
    fn lap(&mut self) -> Duration {
        let before = std::mem::replace(&mut self.0, Instant::now());
        self.0 - before
    }
}

/// What is published of the file so far.
struct Progress<'a> {
    pages: std::sync::Arc<PageFigures>,
    control: &'a Control,
    begun: Instant,
    ram: &'a dyn GuestRam,
}

impl Progress<'_> {
    /// Bytes of pages written so far.
    fn bytes(&self) -> u64 {
        self.pages.moved().normal * crate::ram::PAGE_SIZE
    }

    fn round(&self, number: u32) {
        self.control.publish(|progress| progress.rounds = number);
        self.tell();
    }

    fn tell(&self) {
        let (moved, pending) = (self.pages.moved(), self.pages.pending_bytes());
        let (bytes, elapsed) = (self.bytes(), self.begun.elapsed());
        let ram_bytes = self.ram.blocks().iter().map(|block| block.len).sum();
        self.control.publish(|progress| {
            (progress.elapsed, progress.bytes, progress.ram_bytes) = (elapsed, bytes, ram_bytes);
            (progress.normal_pages, progress.zero_pages) = (moved.normal, moved.zero);
            progress.remaining_bytes = pending;
        });
    }
}

impl std::fmt::Debug for Saving<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saving").field("machine_type", &self.machine_type).finish_non_exhaustive()
    }
}
