//! A source and a destination, the relay between them and the disk image that they share.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::Result;
use super::beside::Habits;
use super::descriptors::Message;
use super::marks::Mark;
use super::side::Side;
use super::subject::{Ground, Memory, Subject};
use super::wire::{Alteration, Proxy};
use crate::process::run;

/// Downtime limit; the pause's budget is four times as long.
const DOWNTIME_LIMIT: Duration = Duration::from_millis(1000);

/// Deviations of a place from the default.
#[derive(Clone, Debug, Default)]
pub struct Oddities {
    /// The mark before which the relay stops.
    pub hold: Option<Mark>,
    /// A change of bytes in the relay.
    pub alteration: Option<Alteration>,
    /// Deviations of the page channels.
    pub habits: Habits,
    /// How the relay treats the message of a hand-over in place.
    pub message: Message,
    /// The source resumes in post-copy, over another relay than before.
    pub resumes: bool,
    /// The destination has a copy of the image at another path.
    pub image_copied: bool,
    /// The destination has twice the memory.
    pub memory_doubled: bool,
    /// The file of the destination's console has no room.
    pub console_full: bool,
}

/// Two processes, ended when dropped, with all their files.
#[derive(Debug)]
pub struct Place {
    /// The guest.
    pub subject: Subject,
    /// The side that has the guest at first.
    pub source: Side,
    /// The side that waits for the guest.
    pub destination: Side,
    /// The relay between both.
    pub wire: Proxy,
    /// The source's image.
    pub image: PathBuf,
    /// Connections of other processes to the destination.
    pub strangers: Vec<UnixStream>,
    /// Length of the source's console before this migration.
    before: usize,
    ground: Ground,
    directory: tempfile::TempDir,
    /// Number of relays made.
    wires: u32,
}

impl Place {
    /// Starts a destination for a guest that runs at `source`.
    ///
    /// # Errors
    /// The error of a process that does not start.
    pub fn new(ground: &Ground, mut source: Side, oddities: &Oddities) -> Result<Self> {
        let directory = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        let image = ground.config.disk.clone().ok_or("the matrix needs a guest with a disk")?;
        // With a limit of zero no guest is migrated completely before post-copy, however idle it is.
        let limit = if ground.memory == Memory::Late { Duration::ZERO } else { DOWNTIME_LIMIT };
        let mut limits = json!({ "downtime-limit": limit.as_millis() as u64, "max-bandwidth": 0 });
        if ground.memory == Memory::Late {
            limits["pause-budget"] = json!(4 * DOWNTIME_LIMIT.as_millis() as u64);
        }
        source.execute("migrate-set-parameters", limits)?;
        if let Memory::Beside(channels) = ground.memory {
            source.vmm.set_channels(channels, "none").map_err(|error| error.to_string())?;
        }
        let copy = directory.path().join("copy");
        if oddities.image_copied {
            // Copies the image's attributes as well, as a host's tools for images do.
            run(Command::new("cp").arg("--preserve=all").args([&image, &copy])).map_err(|error| error.to_string())?;
        }
        let destination = Side::incoming(ground, |config| {
            config.memory_mib <<= u32::from(oddities.memory_doubled);
            if oddities.image_copied {
                config.disk = Some(copy);
            }
            if oddities.console_full {
                config.more.extend(["--serial", "file:/dev/full"].map(str::to_owned));
            }
        })?;
        let before = source.vmm.console().rfind('\n').map_or(0, |end| end + 1);
        let wire = wire(&directory.path().join("wire"), ground, &destination, oddities)?;
        let (subject, ground) = (ground.subject, ground.clone());
        Ok(Self {
            subject,
            source,
            destination,
            wire,
            image,
            strangers: Vec::new(),
            before,
            ground,
            directory,
            wires: 1,
        })
    }

    /// Whether the guest is handed over to a new process on its host without a copy of its memory.
    pub fn is_in_place(&self) -> bool {
        self.ground.memory == Memory::InPlace
    }

    /// Replaces the relay by one without faults; for a guest that is handed over in place, to a new process.
    ///
    /// # Errors
    /// When its socket cannot be made, or the process does not start.
    pub fn new_wire(&mut self) -> Result<()> {
        if self.is_in_place() {
            self.destination = Side::incoming(&self.ground, |_| ())?;
        }
        self.replace_wire(&Oddities::default())
    }

    /// Makes another connection in post-copy, for which both sides wait; the relay stops before `hold`.
    ///
    /// # Errors
    /// When the relay's socket cannot be made, or the source refuses.
    pub fn resume(&mut self, hold: Option<Mark>) -> Result<()> {
        self.replace_wire(&Oddities { hold, resumes: true, ..Oddities::default() })?;
        let again = json!({ "uri": self.wire.uri(), "resume": true });
        self.source.execute("migrate", again).map(drop)
    }

    fn replace_wire(&mut self, oddities: &Oddities) -> Result<()> {
        self.wires += 1;
        let here = self.directory.path().join(format!("wire {}", self.wires));
        self.wire = wire(&here, &self.ground, &self.destination, oddities)?;
        Ok(())
    }

    /// Sets the pause budget of the source.
    ///
    /// # Errors
    /// The source's refusal.
    pub fn pause_for(&mut self, budget: Duration) -> Result<()> {
        let budget = json!({ "pause-budget": budget.as_millis() as u64 });
        self.source.execute("migrate-set-parameters", budget).map(drop)
    }

    /// Starts the migration.
    ///
    /// # Errors
    /// The source's refusal.
    pub fn migrate(&mut self) -> Result<()> {
        let uri = self.wire.uri();
        let begun = match self.ground.memory {
            Memory::Late => self.source.vmm.start_postcopy(&uri),
            _ => self.source.vmm.start_migration(&uri),
        };
        begun.map_err(|error| error.to_string())
    }

    /// The guest's output since then, at the source and at the destination.
    pub fn consoles(&self) -> (String, String) {
        (self.source.vmm.console().split_off(self.before), self.destination.vmm.console())
    }
}

fn wire(here: &Path, ground: &Ground, destination: &Side, oddities: &Oddities) -> Result<Proxy> {
    let Oddities { hold, alteration, habits, message, resumes, .. } = *oddities;
    let message = (ground.memory == Memory::InPlace).then_some(message);
    let started = Proxy::start(here, &destination.door(), hold, alteration, habits, message, resumes);
    started.map_err(|error| format!("{}: {error}", here.display()))
}
