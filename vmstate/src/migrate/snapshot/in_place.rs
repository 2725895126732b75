//! Saves a running guest to a file in which each page has its place: copied in rounds while the guest runs, and completed while
//! it is paused.

use std::time::{Duration, Instant};

use super::beside::{Beside, Copying};
use super::{CHUNK, Still};
use crate::channel::Channel;
use crate::codec::{Limits, Outbox, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::Control;
use crate::migrate::release::check_release;
use crate::migrate::save::{Saver, SendPhase, Which};
use crate::migrate::wire::Link;
use crate::migrate::{Downtime, Peer};
use crate::ram::mapped::FileThreads;
use crate::ram::{DirtyLog, GuestRam, PageFigures, RamSection};
use crate::section::Sections;
use crate::stream::{Element, MAPPED_RAM, put_configuration, put_header};

/// The most rounds: a guest that dirties memory faster than the file is written is paused after them.
const MOST_ROUNDS: u32 = 30;
/// The guest is paused when at most this many bytes are left, whatever the downtime limit: they are not worth another round.
const LITTLE: u64 = 1 << 20;

/// The guest that is saved, and its destination.
pub struct Saving<'a, 's> {
    /// The file. The stream begins at its position; [`Channel::file`] must return it.
    pub channel: &'a mut dyn Channel,
    /// Machine type, as `microvm`.
    pub machine_type: &'a str,
    /// The machine's devices.
    pub sections: &'a mut Sections<'s>,
    /// The guest's memory.
    pub ram: &'a dyn GuestRam,
    /// The dirty log.
    pub log: &'a mut dyn DirtyLog,
    /// The program that will read the file: for a QEMU, sections that QEMU lacks are left out.
    pub reader: Peer,
    /// The threads that write pages, on each of which a worker runs; `None`: the calling thread writes them. For one snapshot.
    pub threads: Option<FileThreads>,
    /// State that is copied beside the file, such as the content of disks.
    pub beside: Option<&'a mut dyn Beside>,
}

/// Writes a guest in QEMU's mapped-ram layout: each page has one place in the file, and a later write of the page goes to the
/// same place. So the file is no longer than the guest's memory however long the guest runs meanwhile, and can be
/// [mapped](GuestRam::map) when it is read. The guest is copied in rounds; once the pages that it dirties in a round fit
/// [`downtime_limit`](super::super::Parameters::downtime_limit), or rounds make no progress, `pause` is called, after which the
/// guest must not run until this function returns. State [`beside`](Saving::beside) the file is copied with the pages, within the
/// bandwidth limit, which does not apply to pages of a file.
///
/// The caller must ensure that the file is on the disk. The guest's pause until then is the
/// [`downtime`](super::super::Progress::downtime).
///
/// # Errors
/// As for [`save_with`](super::save_with); `Misuse` if the channel is not a file, or memory is shared; errors of `pause`.
pub fn save_in_place(saving: Saving<'_, '_>, control: &Control, pause: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let Saving { channel, machine_type, sections, ram, log, reader, threads, beside } = saving;
    let _over = Over(threads.clone());
    sections.check_migratable()?;
    check_release(sections)?;
    let no_file =
        || Error::new(ErrorKind::Misuse, "pages have fixed places only in a file, and this channel is not one");
    let section = RamSection::outgoing(ram, log).in_place(channel.file().ok_or_else(no_file)?.try_clone()?, threads);
    let progress = Progress { pages: section.figures(), control, begun: Instant::now(), ram };
    let mut beside = Copying::new(beside);
    let mut wire = Link::new(channel, ram, &Still, control, Strictness::Strict, Limits::default(), 0);
    let mut out = Outbox::new();
    put_header(out.bytes_mut());
    put_configuration(out.bytes_mut(), machine_type, Some(MAPPED_RAM));
    let mut saver = Saver::new(sections, Box::new(section), &Still);
    let mut saved = saver.put_devices(out.bytes_mut(), (reader, SendPhase::Early))?;
    saver.start(&mut out, reader)?;
    wire.send_unanswered(&mut out)?;
    saver.sync()?;
    beside.sync()?;
    let mut left = u64::MAX;
    for number in 1..=MOST_ROUNDS {
        progress.round(number, &beside);
        let (begun, waited, before) = (Instant::now(), beside.waited(), progress.bytes(&beside));
        loop {
            control.check()?;
            // The pages go to their places, and the PART has no record of them: readers would only count thousands of empty
            // PARTs.
            out.clear();
            let memory_is_over = saver.iterate(&mut out, CHUNK, Which::Memory)?;
            out.clear();
            let over = saver.iterate(&mut out, CHUNK, Which::Others)? && memory_is_over;
            wire.send_unanswered(&mut out)?;
            let over = beside.iterate(control, over)? && over;
            progress.publish(&beside);
            if over {
                break;
            }
        }
        saver.sync()?;
        beside.sync()?;
        // The pause has no bandwidth limit.
        let took = begun.elapsed().saturating_sub(beside.waited() - waited);
        let written = progress.bytes(&beside) - before;
        let pending = saver.pending().saturating_add(beside.pending());
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
    beside.sync()?;
    downtime.sync = watch.lap();
    saver.complete(&mut out, Which::All)?;
    beside.complete()?;
    downtime.pages = watch.lap();
    saved.extend(saver.put_devices(out.bytes_mut(), (reader, SendPhase::Last))?);
    Element::Eof.write(out.bytes_mut());
    saver.describe(machine_type, &saved)?.write(out.bytes_mut());
    wire.send_unanswered(&mut out)?;
    downtime.devices = watch.lap();
    control.publish(|progress| progress.downtime = Some(downtime));
    progress.publish(&beside);
    Ok(())
}

/// True if `pending` bytes are written within half of `limit`, at the speed at which `written` bytes took the time `took`. The
/// other half is for the devices.
fn fits(pending: u64, written: u64, took: Duration, limit: Duration) -> bool {
    pending <= LITTLE || pending as f64 * took.as_secs_f64() <= written as f64 * limit.as_secs_f64() / 2.0
}

/// Ends the threads of the file when dropped.
struct Over(Option<FileThreads>);

impl Drop for Over {
    fn drop(&mut self) {
        if let Some(threads) = &self.0 {
            threads.close();
        }
    }
}

/// Measures the durations of successive steps.
struct Watch(Instant);

impl Watch {
    fn new() -> Self {
        Self(Instant::now())
    }

    /// The time since the previous lap.
    fn lap(&mut self) -> Duration {
        let before = std::mem::replace(&mut self.0, Instant::now());
        self.0 - before
    }
}

/// Publishes the progress of the file.
struct Progress<'a> {
    pages: std::sync::Arc<PageFigures>,
    control: &'a Control,
    begun: Instant,
    ram: &'a dyn GuestRam,
}

impl Progress<'_> {
    /// Bytes of pages, and of state beside the file, written so far.
    fn bytes(&self, beside: &Copying<'_>) -> u64 {
        self.pages.moved().normal * crate::ram::PAGE_SIZE + beside.copied()
    }

    fn round(&self, number: u32, beside: &Copying<'_>) {
        self.control.publish(|progress| progress.rounds = number);
        self.publish(beside);
    }

    fn publish(&self, beside: &Copying<'_>) {
        let (moved, pending) = (self.pages.moved(), self.pages.pending_bytes());
        let (bytes, elapsed) = (self.bytes(beside), self.begun.elapsed());
        let ram_bytes = self.ram.blocks().iter().map(|block| block.len).sum();
        self.control.publish(|progress| {
            (progress.elapsed, progress.bytes, progress.ram_bytes) = (elapsed, bytes, ram_bytes);
            (progress.normal_pages, progress.zero_pages) = (moved.normal, moved.zero);
            (progress.remaining_bytes, progress.remaining_section_bytes) = (pending, beside.pending());
        });
    }
}

impl std::fmt::Debug for Saving<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saving").field("machine_type", &self.machine_type).finish_non_exhaustive()
    }
}
