//! Outgoing migration to a file: a thread that writes the guest's memory, stops the guest, writes the rest, and leaves the
//! guest stopped; or, for a snapshot, resumes it.
//!
//! Without a peer there are no answers. The guest's disks are released once the file is complete and on the disk. Running the
//! file's guest advances their records, and so does resuming here: the first of the two makes the other one stale. A guest
//! resumes by itself only if the guest in the file has copies of its exclusive resources.

use std::sync::Arc;
use std::time::Duration;

use vmstate::migrate::multifd::Compression;
use vmstate::migrate::snapshot::{self, Beside, FileThreads, Saving};
use vmstate::migrate::{Claim, Control, Machine, Parameters, Peer, Phase, SourcePhase};
use vmstate::ownership::{Ownership, Role};
use vmstate::ram::DirtyLog;
use vmstate::schema::json::Schema;
use vmstate::section::Sections;
use vmstate::{Error, ErrorKind, Result};

use super::channels::PageThreads;
use super::copied::CopiedDisks;
use super::ended::Ended;
use super::engine_machine::EngineMachine;
use super::snapshot_disks::SnapshotDisks;
use super::state_file::StateFile;
use super::write_back::failed;
use crate::config::Address;
use crate::devices::virtio::blk::node_name;
use crate::error::chain;
use crate::machine_map::MACHINE_TYPE;
use crate::migration::dirty_log::{MachineDirtyLog, StoppedLater};
use crate::migration::ram::MachineRam;
use crate::migration::sections::Parts;
use crate::sync::lock;
use crate::vm::published::{Hold, Published};
use crate::vm::request::{Refusal, Terms};

/// Longest time to stop the guest and to write its disk images back, most of which were written back before.
const PAUSE: Duration = Duration::from_secs(60);

/// Interval at which a switch-over that waits is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// State of the guest.
#[derive(Clone, Copy, Debug)]
enum GuestState {
    /// The guest runs, or is in its earlier state.
    Running,
    /// The guest is stopped before a switch-over that waits.
    Held,
    /// The guest is stopped, and its state is read.
    Stopped,
}

/// Waits until the switch-over may begin, and stops the guest.
fn stop_guest(
    machine: &mut EngineMachine,
    control: &Control,
    shared: &Published,
    guest: &mut GuestState,
) -> Result<()> {
    while !machine.may_switch_over()? {
        *guest = GuestState::Held;
        if control.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "cancelled"));
        }
        std::thread::sleep(CHECK_INTERVAL);
    }
    shared.update_migration(|info| info.phase = Phase::Source(SourcePhase::SwitchOver));
    // If the guest cannot be stopped, it runs on.
    *guest = GuestState::Running;
    machine.pause(PAUSE)?;
    *guest = GuestState::Stopped;
    Ok(())
}

/// Refuses options that need a new file, if `address` is none: a guest that keeps running, and a file for QEMU.
///
/// # Errors
/// The reason, and a remedy.
pub(super) fn check(address: &Address, terms: &Terms) -> std::result::Result<(), Refusal> {
    let why = match address {
        _ if !terms.keeps_running && !terms.to_qemu => return Ok(()),
        Address::File { .. } if terms.release.is_some() => {
            "target-schema is for an older minivmm, which reads neither a file for a QEMU nor a snapshot: leave one of them out"
        }
        Address::File { .. } => return Ok(()),
        _ if terms.to_qemu => {
            "to-qemu is for a new file: name one, as file:PATH; a QEMU that is connected to is known without it"
        }
        _ => "a guest keeps running behind a new file only: name one, as file:PATH",
    };
    Err(Refusal(why.into()))
}

/// Refuses a snapshot of a guest with an exclusive resource that is not among the `copied` disks.
///
/// # Errors
/// The reason, and a remedy.
pub(super) fn check_resources(ownership: &Ownership, copied: &CopiedDisks) -> std::result::Result<(), Refusal> {
    let copied = copied.roles();
    let (what, remedy) = match ownership.roles().into_iter().find(|role| !copied.contains(role)) {
        None => return Ok(()),
        Some(Role::Disk(index)) => (
            format!("writes to disk '{}'", node_name(index.into())),
            "copy all writable disks with the guest (copy-disk; minivmm snapshot save --copy-disk), or ",
        ),
        Some(Role::Lease) => ("uses what its lease stands for".into(), ""),
    };
    Err(Refusal(format!(
        "a guest that keeps running {what}, and the file would not fit that any more: {remedy}leave out keep-running (minivmm migrate \
         file:PATH), copy the disks while the guest is paused, and let it go on with cont"
    )))
}

/// Returns the number of threads that write or read the pages of a file, beside the migration's.
///
/// # Errors
/// The parameters do not fit a file.
pub(super) fn threads(parameters: &Parameters) -> std::result::Result<u8, Refusal> {
    match parameters.page_channels() {
        None => Ok(0),
        Some((channels, Compression::None)) => Ok(channels),
        // As QEMU (`migrate_mapped_ram`, migration/options.c), with a remedy.
        Some(_) => Err(Refusal(
            "Mapped-ram only available for non-compressed non-TLS multifd migration: set multifd-compression to none"
                .into(),
        )),
    }
}

/// State of the thread.
pub(super) struct Writing {
    pub(super) file: StateFile,
    /// Number of threads that write pages, beside this one.
    pub(super) threads: u8,
    /// Images of the guest's writable disks beside the file, if the guest resumes by itself once all of it is there.
    pub(super) disks: Option<SnapshotDisks>,
    /// Kind of reader. A QEMU writes no ownership record.
    pub(super) reader: Peer,
    /// Schema of the release that is to read the file, unless it is this one.
    pub(super) release: Option<Schema>,
    pub(super) control: Control,
    pub(super) parts: Parts,
    pub(super) ram: MachineRam,
    pub(super) log: MachineDirtyLog,
    pub(super) machine: EngineMachine,
    pub(super) shared: Arc<Published>,
}

impl Writing {
    pub(super) fn run(mut self) -> Ended {
        let written =
            self.stop_and_write().and_then(|()| if self.keeps_running() { Ok(()) } else { self.release_disks() });
        let (phase, error) = match written {
            Ok(()) => (SourcePhase::Completed, None),
            Err((phase, error)) => {
                if phase != SourcePhase::Undecided {
                    self.file.remove();
                }
                self.disks.iter_mut().for_each(SnapshotDisks::remove);
                (phase, Some(format!("{}: {}", self.file.path.display(), chain(&error))))
            }
        };
        match phase {
            SourcePhase::Failed if self.control.is_cancelled() => {
                Ended { phase: Phase::Source(SourcePhase::Cancelled), error: None, unrecorded: false }
            }
            _ => Ended { phase: Phase::Source(phase), error, unrecorded: self.reader == Peer::Qemu },
        }
    }

    /// Returns whether the guest resumes by itself after a success.
    fn keeps_running(&self) -> bool {
        self.disks.is_some()
    }

    /// Stops the guest and writes the file, which is complete then. The guest stays stopped unless it keeps running.
    ///
    /// # Errors
    /// The guest runs on.
    fn stop_and_write(&mut self) -> std::result::Result<(), (SourcePhase, Error)> {
        let running = |error| (SourcePhase::Failed, error);
        let mut sections = self.parts.sections().map_err(running)?;
        // An older release reads a stream only.
        let in_place = self.file.has_places() && self.release.is_none();
        sections.save_for(self.release.take());
        self.disks.as_mut().map_or(Ok(()), SnapshotDisks::begin).map_err(running)?;
        let what = "that a migration begins could not be recorded";
        self.machine.begin().map_err(|error| running(failed(what, error)))?;
        lock(&self.parts.state).preflight.stamp();
        let control = self.control.clone();
        self.machine.prepare(&|| !control.is_cancelled()).map_err(running)?;
        let mut guest = GuestState::Running;
        let written = match in_place {
            true => self.write_running(&mut sections, &mut guest),
            false => self.write_stopped(&mut sections, &mut guest),
        };
        let went_on = written.and_then(|()| match self.keeps_running() {
            // The file does not change any more: the guest need not stay stopped until the file is on the disk.
            true => self.machine.resume().map(|()| {
                guest = GuestState::Running;
                self.shared.update_migration(|info| {
                    (info.phase, info.hold) = (Phase::Source(SourcePhase::Rounds), Hold::None);
                });
            }),
            false => Ok(()),
        });
        // After the pause, since it takes as long as to walk all page tables.
        self.log.stop();
        let finished = went_on.and_then(|()| self.finish());
        finished.map_err(|error| match guest {
            GuestState::Running => running(error),
            GuestState::Held => self.go_on(error),
            GuestState::Stopped => {
                // A complete stream may have been read by another process.
                let _ = self.machine.advance();
                self.go_on(error)
            }
        })
    }

    fn finish(&mut self) -> Result<()> {
        let unwritten = |error| failed("the file could not be written to the disk", error);
        self.disks.as_ref().map_or(Ok(()), SnapshotDisks::finish)?;
        self.file.channel.sync().map_err(unwritten)?;
        // From here on a reader of the file may have the guest, or a copy of it.
        self.control.commit()?;
        // The file gets its name last, so that a file that exists has its images.
        self.disks.as_mut().map_or(Ok(()), SnapshotDisks::take_places)?;
        self.file.take_place().map_err(unwritten)
    }

    /// Writes while the guest runs: each page has its place in the file, and is written there again when the guest has changed
    /// it.
    fn write_running(&mut self, sections: &mut Sections<'_>, guest: &mut GuestState) -> Result<()> {
        let Self { file, threads, control, ram, log, machine, shared, reader, disks, .. } = self;
        shared.update_migration(|info| info.phase = Phase::Source(SourcePhase::Rounds));
        let files = (*threads > 0).then(FileThreads::new);
        let _pages = files.as_ref().map(|files| PageThreads::in_file(files, *threads, ram)).transpose()?;
        let saving = Saving {
            channel: &mut file.channel,
            machine_type: MACHINE_TYPE,
            sections,
            ram: &*ram,
            log: &mut StoppedLater(log),
            reader: *reader,
            threads: files,
            beside: disks.as_mut().map(|disks| disks as &mut dyn Beside),
        };
        snapshot::save_in_place(saving, control, &mut || stop_guest(machine, control, shared, guest))
    }

    /// Writes a stream while the guest is stopped.
    fn write_stopped(&mut self, sections: &mut Sections<'_>, guest: &mut GuestState) -> Result<()> {
        stop_guest(&mut self.machine, &self.control, &self.shared, guest)?;
        snapshot::save_with(&mut self.file.channel, MACHINE_TYPE, sections, &self.ram, &self.control)
    }

    /// Releases the guest's disks, so that a reader of the file can take them.
    ///
    /// # Errors
    /// The guest runs on if its disks are still here; otherwise it stays stopped, and it is unknown who has them.
    fn release_disks(&mut self) -> std::result::Result<(), (SourcePhase, Error)> {
        let Err(error) = self.machine.release() else { return Ok(()) };
        match self.machine.claim().and_then(|claim| self.machine.advance().map(|()| claim)) {
            Ok(Claim::Won | Claim::Undecidable) => Err(self.go_on(error)),
            _ => Err((SourcePhase::Undecided, error)),
        }
    }

    fn go_on(&mut self, error: Error) -> (SourcePhase, Error) {
        // If this is refused, the guest stays stopped here, and the driver says so.
        let _ = self.machine.resume();
        (SourcePhase::Failed, error)
    }
}
