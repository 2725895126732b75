//! An outgoing migration to a file: a thread that has the guest stop, writes its state, and leaves it standing.
//!
//! Nobody answers, so nothing is asked. The guest's disks are let go of once the file is whole and on the disk. Who runs the
//! file's guest moves their records on, and so does who goes on here: the first of the two makes the other one stale.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use vmstate::migrate::{Claim, Control, Machine, Phase, SourcePhase, snapshot};
use vmstate::schema::json::Schema;
use vmstate::section::Sections;
use vmstate::{Error, ErrorKind, Result};

use super::ended::Ended;
use super::seam::Seam;
use super::state_file::StateFile;
use super::write_back::failed;
use crate::boot::layout::MACHINE_TYPE;
use crate::error::chain;
use crate::migration::ram::MachineRam;
use crate::migration::sections::Parts;
use crate::vm::published::Published;

/// How long the guest may take to stand still, and its disk images to be written back. Most of them was written back before.
const PAUSE: Duration = Duration::from_secs(60);

/// How often it is asked whether a switch-over that waits may begin.
const LOOK: Duration = Duration::from_millis(20);

/// What the thread works with.
pub(super) struct Writing {
    pub(super) file: StateFile,
    /// Of the release that is to read it, unless it is this one.
    pub(super) release: Option<Schema>,
    pub(super) control: Control,
    pub(super) parts: Parts,
    pub(super) ram: MachineRam,
    pub(super) seam: Seam,
    pub(super) shared: Arc<Published>,
}

impl Writing {
    pub(super) fn run(mut self) -> Ended {
        let written = self.stop_and_write().and_then(|()| self.let_go());
        let (phase, error) = match written {
            Ok(()) => (SourcePhase::Completed, None),
            Err((phase, error)) => {
                self.file.remove();
                (phase, Some(format!("{}: {}", self.file.path.display(), chain(&error))))
            }
        };
        match phase {
            SourcePhase::Failed if self.control.is_cancelled() => {
                Ended { phase: Phase::Source(SourcePhase::Cancelled), error: None, unrecorded: false }
            }
            _ => Ended { phase: Phase::Source(phase), error, unrecorded: false },
        }
    }

    /// The guest stands then, and the file is whole.
    ///
    /// # Errors
    /// The guest runs on.
    fn stop_and_write(&mut self) -> std::result::Result<(), (SourcePhase, Error)> {
        let running = |error| (SourcePhase::Failed, error);
        let mut sections = self.parts.sections().map_err(running)?;
        sections.save_for(self.release.take());
        let what = "that a migration begins could not be recorded";
        self.seam.begin().map_err(|error| running(failed(what, error)))?;
        self.parts.state.lock().unwrap_or_else(PoisonError::into_inner).preflight.stamp();
        let control = self.control.clone();
        self.seam.prepare(&|| !control.is_cancelled()).map_err(running)?;
        while !self.seam.may_switch_over().map_err(running)? {
            if control.is_cancelled() {
                return Err(self.go_on(Error::new(ErrorKind::Cancelled, "cancelled")));
            }
            std::thread::sleep(LOOK);
        }
        self.shared.update_migration(|info| info.phase = Phase::Source(SourcePhase::SwitchOver));
        self.seam.pause(PAUSE).map_err(running)?;
        self.write(&mut sections).map_err(|error| {
            // A stream that is whole may have been seen by somebody.
            let _ = self.seam.advance();
            self.go_on(error)
        })
    }

    fn write(&mut self, sections: &mut Sections<'_>) -> Result<()> {
        let channel = &mut self.file.channel;
        snapshot::save_with(channel, MACHINE_TYPE, sections, &self.ram, &self.control)?;
        channel.sync().map_err(|error| failed("the file could not be written to the disk", error))?;
        // Whoever reads the file may have the guest from here on.
        self.control.commit()
    }

    /// Gives up the guest's disks, so that who reads the file can take them.
    ///
    /// # Errors
    /// The guest runs on if its disks are still here; else it stands, and nobody can tell who has them.
    fn let_go(&mut self) -> std::result::Result<(), (SourcePhase, Error)> {
        let Err(error) = self.seam.release() else { return Ok(()) };
        match self.seam.claim().and_then(|claim| self.seam.advance().map(|()| claim)) {
            Ok(Claim::Won | Claim::Undecidable) => Err(self.go_on(error)),
            _ => Err((SourcePhase::Undecided, error)),
        }
    }

    fn go_on(&mut self, error: Error) -> (SourcePhase, Error) {
        // Refused, the guest stands here, and the driver says so.
        let _ = self.seam.resume();
        (SourcePhase::Failed, error)
    }
}
