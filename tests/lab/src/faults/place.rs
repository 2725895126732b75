//! A source and a destination, the wire between them and the disk image that they share.

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

/// The pause may take this long, and its budget is four times as long.
const DOWNTIME_LIMIT: Duration = Duration::from_millis(1000);

/// What is different about a place.
#[derive(Clone, Debug, Default)]
pub struct Oddities {
    /// The wire stops before this mark.
    pub hold: Option<Mark>,
    /// What the wire exchanges.
    pub alteration: Option<Alteration>,
    /// What is odd about the page channels.
    pub habits: Habits,
    /// What becomes of the message that hands the guest over in place.
    pub message: Message,
    /// The source goes on in post-copy, over another wire than before.
    pub resumes: bool,
    /// The destination has a copy of the image at another path.
    pub image_copied: bool,
    /// The destination has twice the memory.
    pub memory_doubled: bool,
    /// The file that takes the destination's console has no room.
    pub console_full: bool,
}

/// Two processes; ended with the value, with all their files.
#[derive(Debug)]
pub struct Place {
    /// The guest.
    pub subject: Subject,
    /// Who has the guest at first.
    pub source: Side,
    /// Who waits for it.
    pub destination: Side,
    /// What is between them.
    pub wire: Proxy,
    /// The source's image.
    pub image: PathBuf,
    /// Connections of others to the destination.
    pub strangers: Vec<UnixStream>,
    /// Length of the source's console before this migration.
    before: usize,
    ground: Ground,
    directory: tempfile::TempDir,
    /// Wires that have been made.
    wires: u32,
}

impl Place {
    /// A destination for a guest that runs at `source`.
    ///
    /// # Errors
    /// What does not start.
    pub fn new(ground: &Ground, mut source: Side, oddities: &Oddities) -> Result<Self> {
        let directory = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        let image = ground.config.disk.clone().ok_or("the matrix needs a guest with a disk")?;
        // In post-copy no guest goes over with all of its memory, however idle it is.
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
            // With whatever stands beside its bytes, as a host's tools for images do.
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

    /// True if the guest goes to a new process on its host, and its memory stays where it is.
    pub fn is_in_place(&self) -> bool {
        self.ground.memory == Memory::InPlace
    }

    /// A wire without faults in place of the one that there was. To a new process, where a guest goes in place.
    ///
    /// # Errors
    /// When its socket cannot be made, or the process does not start.
    pub fn new_wire(&mut self) -> Result<()> {
        if self.is_in_place() {
            self.destination = Side::incoming(&self.ground, |_| ())?;
        }
        self.replace_wire(&Oddities::default())
    }

    /// In post-copy, where both sides wait for another connection: makes one, which stops before `hold`.
    ///
    /// # Errors
    /// When its socket cannot be made, and the refusal of the source.
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

    /// Lets the guest stand this long before the source takes it back by itself.
    ///
    /// # Errors
    /// The refusal.
    pub fn pause_for(&mut self, budget: Duration) -> Result<()> {
        let budget = json!({ "pause-budget": budget.as_millis() as u64 });
        self.source.execute("migrate-set-parameters", budget).map(drop)
    }

    /// Begins the migration.
    ///
    /// # Errors
    /// The refusal.
    pub fn migrate(&mut self) -> Result<()> {
        let uri = self.wire.uri();
        let begun = match self.ground.memory {
            Memory::Late => self.source.vmm.start_postcopy(&uri),
            _ => self.source.vmm.start_migration(&uri),
        };
        begun.map_err(|error| error.to_string())
    }

    /// What the guest wrote since, at the source and at the destination.
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
