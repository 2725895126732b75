//! A source and a destination, the relay between them and the disk image that they share.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::Result;
use super::descriptors::{Message, Passing, cpr_socket};
use super::marks::Mark;
use super::page_channels::PageChannelOptions;
use super::relay::{Alteration, Relay};
use super::setup::{Memory, Setup, TestGuest};
use super::side::Side;
use crate::process::run;

/// Downtime limit; the pause's budget is four times as long.
const DOWNTIME_LIMIT: Duration = Duration::from_millis(1000);
/// Bandwidth of a migration with its disk, in bytes a second: the source reads the disk while the relay stops.
const DISK_BANDWIDTH: u64 = 16 << 20;

/// Deviations of a testbed from the default.
#[derive(Clone, Debug, Default)]
pub struct TestbedOptions {
    /// The mark before which the relay stops.
    pub hold: Option<Mark>,
    /// A change of bytes in the relay.
    pub alteration: Option<Alteration>,
    /// Deviations of the page channels.
    pub page_channels: PageChannelOptions,
    /// How the relay treats the message with the descriptors of a guest whose memory is not sent.
    pub message: Message,
    /// The source resumes in post-copy, over another relay than before.
    pub resumes: bool,
    /// The destination has a copy of the image at another path.
    pub image_copied: bool,
    /// The image for the content of the disk exists before the migration.
    pub copy_exists: bool,
    /// The destination has twice the memory.
    pub memory_doubled: bool,
    /// The file of the destination's console has no room.
    pub console_full: bool,
}

/// Two processes, ended when dropped, with all their files.
#[derive(Debug)]
pub struct Testbed {
    /// The guest.
    pub test_guest: TestGuest,
    /// The side that has the guest at first.
    pub source: Side,
    /// The side that waits for the guest.
    pub destination: Side,
    /// The relay between both.
    pub relay: Relay,
    /// The source's image.
    pub image: PathBuf,
    /// Connections of other processes to the destination.
    pub other_connections: Vec<UnixStream>,
    /// Length of the source's console before this migration.
    before: usize,
    setup: Setup,
    directory: tempfile::TempDir,
    /// Number of relays made.
    relays: u32,
}

impl Testbed {
    /// Starts a destination for a guest that runs at `source`.
    ///
    /// # Errors
    /// The error of a process that does not start.
    pub fn new(setup: &Setup, mut source: Side, options: &TestbedOptions) -> Result<Self> {
        let directory = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        let image = setup.config.disk.clone().ok_or("the matrix needs a guest with a disk")?;
        // With a limit of zero no guest is migrated completely before post-copy, however idle it is.
        let limit = if setup.memory == Memory::Postcopy { Duration::ZERO } else { DOWNTIME_LIMIT };
        let mut limits = json!({ "downtime-limit": limit.as_millis() as u64, "max-bandwidth": 0 });
        if setup.memory == Memory::Postcopy {
            limits["pause-budget"] = json!(4 * DOWNTIME_LIMIT.as_millis() as u64);
        }
        if setup.copied_to.is_some() {
            limits["max-bandwidth"] = json!(DISK_BANDWIDTH);
        }
        source.execute("migrate-set-parameters", limits)?;
        if let Memory::PageChannels(channels) = setup.memory {
            source.vmm.set_channels(channels, "none").map_err(|error| error.to_string())?;
        }
        let copy = directory.path().join("copy");
        if options.image_copied {
            // Copies the image's attributes as well, as a host's tools for images do.
            run(Command::new("cp").arg("--preserve=all").args([&image, &copy])).map_err(|error| error.to_string())?;
        }
        let disk = setup.copied_to.as_ref().map(|copy| disk_for_copy(copy, &image, options.copy_exists)).transpose()?;
        let destination = Side::incoming(setup, |config| {
            if let Some(disk) = disk {
                config.disk = None;
                config.more.extend(["--disk".into(), disk]);
            }
            config.memory_mib <<= u32::from(options.memory_doubled);
            if options.image_copied {
                config.disk = Some(copy);
            }
            if options.console_full {
                config.more.extend(["--serial", "file:/dev/full"].map(str::to_owned));
            }
        })?;
        let before = source.vmm.console().rfind('\n').map_or(0, |end| end + 1);
        let relay = relay(&directory.path().join("relay"), setup, &destination, options)?;
        let (test_guest, setup) = (setup.test_guest, setup.clone());
        Ok(Self {
            test_guest,
            source,
            destination,
            relay,
            image,
            other_connections: Vec::new(),
            before,
            setup,
            directory,
            relays: 1,
        })
    }

    /// Whether the guest is handed over to a new process on its host without a copy of its memory.
    pub fn is_in_place(&self) -> bool {
        self.setup.memory.stays()
    }

    /// Replaces the relay by one without faults; for a guest that is handed over in place, to a new process.
    ///
    /// # Errors
    /// When its socket cannot be made, or the process does not start.
    pub fn new_relay(&mut self) -> Result<()> {
        if self.is_in_place() {
            self.destination = Side::incoming(&self.setup, |_| ())?;
        }
        self.replace_relay(&TestbedOptions::default())
    }

    /// Makes another connection in post-copy, for which both sides wait; the relay stops before `hold`.
    ///
    /// # Errors
    /// When the relay's socket cannot be made, or the source refuses.
    pub fn resume(&mut self, hold: Option<Mark>) -> Result<()> {
        self.replace_relay(&TestbedOptions { hold, resumes: true, ..TestbedOptions::default() })?;
        let again = json!({ "uri": self.relay.uri(), "resume": true });
        self.source.execute("migrate", again).map(drop)
    }

    fn replace_relay(&mut self, options: &TestbedOptions) -> Result<()> {
        self.relays += 1;
        let here = self.directory.path().join(format!("relay {}", self.relays));
        self.relay = relay(&here, &self.setup, &self.destination, options)?;
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

    /// The image on which the guest runs at the destination.
    pub fn destination_image(&self) -> &Path {
        self.setup.copied_to.as_deref().unwrap_or(&self.image)
    }

    /// Starts the migration.
    ///
    /// # Errors
    /// The source's refusal.
    pub fn migrate(&mut self) -> Result<()> {
        let uri = self.relay.uri();
        let source = &mut self.source.vmm;
        let begun = match self.setup.memory {
            Memory::Postcopy => source.allow_postcopy().and_then(|()| source.start_postcopy(&uri)),
            Memory::Transfer => source.start_transfer(self.relay.address(), &cpr_socket(self.relay.address())),
            _ if self.setup.copied_to.is_some() => {
                let copies = json!({ "uri": uri, "copy-disk": true });
                return self.source.execute("migrate", copies).map(drop);
            }
            _ => source.start_migration(&uri),
        };
        begun.map_err(|error| error.to_string())
    }

    /// The guest's output since then, at the source and at the destination.
    pub fn consoles(&self) -> (String, String) {
        (self.source.vmm.console().split_off(self.before), self.destination.vmm.console())
    }
}

/// The destination's disk for the content of `image`: a new file, or one that `exists`.
fn disk_for_copy(copy: &Path, image: &Path, exists: bool) -> Result<String> {
    let failed = |error| format!("{}: {error}", copy.display());
    let bytes = std::fs::metadata(image).map_err(failed)?.len();
    if !exists {
        return Ok(format!("{},create={bytes}", copy.display()));
    }
    std::fs::File::create(copy).and_then(|file| file.set_len(bytes)).map_err(failed)?;
    Ok(copy.display().to_string())
}

fn relay(here: &Path, setup: &Setup, destination: &Side, options: &TestbedOptions) -> Result<Relay> {
    let TestbedOptions { hold, alteration, page_channels, message, resumes, .. } = *options;
    let passing = match setup.memory {
        Memory::InPlace => Some(Passing::OnMain(message)),
        Memory::Transfer => Some(Passing::OnItsOwn(message)),
        _ => None,
    };
    let started = Relay::start(here, &destination.incoming_socket(), hold, alteration, page_channels, passing, resumes);
    started.map_err(|error| format!("{}: {error}", here.display()))
}
