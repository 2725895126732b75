//! A source and a destination as processes, the wire between them and the disk image that they share.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use serde_json::{Value, json};
use vmstate::ownership::{Access, Resource};
use vmstate_lab::qmp::Qmp;
use vmstate_lab::tiny;
use vmstate_lab::vmm::{Config, Program, Vmm};

use crate::wire::{Alteration, Mark, Proxy};

/// What goes wrong is told in a sentence.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Pages that the guest rewrites in each pass.
const PAGES: u64 = 64;
const MEMORY_MIB: u32 = 16;
/// The pause may take this long, and its budget is four times as long.
const DOWNTIME_LIMIT: Duration = Duration::from_millis(1000);
const IMAGE_BYTES: usize = 64 << 10;

/// What is different about a place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Oddities {
    /// The wire stops before this mark.
    pub(crate) hold: Option<Mark>,
    /// What the wire exchanges.
    pub(crate) alteration: Option<Alteration>,
    /// The destination has a copy of the image at another path.
    pub(crate) image_copied: bool,
    /// Guest RAM of the destination, in MiB.
    pub(crate) destination_memory_mib: Option<u32>,
    /// The file that takes the destination's console has no room.
    pub(crate) console_full: bool,
}

/// Two processes; ended with the value, with all their files.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) source: Side,
    pub(crate) destination: Side,
    pub(crate) wire: Proxy,
    /// The source's image.
    pub(crate) image: PathBuf,
    directory: tempfile::TempDir,
}

/// One process.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) vmm: Vmm,
    pub(crate) process: u32,
    control: PathBuf,
    /// Exit code, once it has ended; `None` in it if a signal ended it.
    ended: Option<Option<i32>>,
}

/// True, or the skip is said aloud.
pub(crate) fn kvm_is_here() -> bool {
    minivmm::kvm::open().map_err(vmstate_lab::skip::skip).is_ok()
}

impl Place {
    /// Starts both; the guest has made some passes then.
    pub(crate) fn new(oddities: Oddities) -> Result<Self> {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("kernel"), tiny::bzimage()).unwrap();
        fs::write(at("image"), [0; IMAGE_BYTES]).unwrap();
        let config = |name: &str| Config {
            kernel: at("kernel"),
            initrd: None,
            append: tiny::command_line_with_disk(PAGES, 0x40),
            memory_mib: MEMORY_MIB,
            cpus: 1,
            disk: Some(at("image")),
            tap: None,
            control: at(name),
            incoming: None,
            more: Vec::new(),
        };
        let mut source = Side::start(&config("source"))?;
        source.await_pass(3)?;
        let limits = json!({ "downtime-limit": DOWNTIME_LIMIT.as_millis() as u64, "max-bandwidth": 0 });
        source.vmm.qmp.execute("migrate-set-parameters", limits).map_err(|error| error.to_string())?;
        let mut config = config("destination");
        config.incoming = Some(format!("unix:{}", at("door").display()));
        config.memory_mib = oddities.destination_memory_mib.unwrap_or(MEMORY_MIB);
        if oddities.image_copied {
            // With whatever stands beside its bytes, as a host's tools for images do.
            copy_with_attributes(&at("image"), &at("copy"));
            config.disk = Some(at("copy"));
        }
        if oddities.console_full {
            config.more.extend(["--serial", "file:/dev/full"].map(str::to_owned));
        }
        let destination = Side::start(&config)?;
        let wire = Proxy::start(&at("wire"), &at("door"), oddities.hold, oddities.alteration);
        Ok(Self { source, destination, wire, image: at("image"), directory })
    }

    /// A wire without faults in place of the one that there was.
    pub(crate) fn new_wire(&mut self) {
        let at = |name: &str| self.directory.path().join(name);
        self.wire = Proxy::start(&at("second wire"), &at("door"), None, None);
    }

    /// Begins the migration.
    pub(crate) fn migrate(&mut self) -> Result<()> {
        self.source.vmm.start_migration(&self.wire.uri()).map_err(|error| error.to_string())
    }

    /// How often a guest was started on the image, or taken over with it.
    pub(crate) fn generation(&self) -> Result<u64> {
        let image = File::open(&self.image).map_err(|error| error.to_string())?;
        let record = Resource::image(image, &self.image, Access::Exclusive).record();
        let record = record.map_err(|error| error.to_string())?;
        record.map(|record| record.generation).ok_or_else(|| "the image has no record".into())
    }

    /// The pass that the disk tells of; 0 before the first.
    pub(crate) fn pass_on_disk(&self) -> u64 {
        let mut bytes = [0; 8];
        File::open(&self.image).and_then(|file| file.read_exact_at(&mut bytes, 0)).unwrap();
        let found = u64::from_le_bytes(bytes);
        (0..1 << 20).find(|pass| tiny::expected_on_disk(*pass) == found).expect("the sector holds a pass's number")
    }
}

fn copy_with_attributes(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("--preserve=all").args([from, to]).status();
    assert!(copied.is_ok_and(|status| status.success()), "cp makes a copy of the image");
}

impl Side {
    fn start(config: &Config) -> Result<Self> {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_minivmm"));
        let launcher = program.clone();
        let mut vmm = Vmm::spawn(&launcher, &Program::Minivmm(program), config).map_err(|error| error.to_string())?;
        let process = vmm.process().child().id();
        Ok(Self { vmm, process, control: config.control.clone(), ended: None })
    }

    /// Ends the process as a crash would.
    pub(crate) fn kill(&mut self) {
        self.vmm.process().kill();
        self.ended = Some(None);
    }

    /// Its exit code, once it has ended by itself and all is read that it wrote.
    pub(crate) fn exit_code(&mut self) -> Option<Option<i32>> {
        if self.ended.is_none() && self.vmm.process().ended().is_some() {
            self.ended = self.vmm.wait_end(Instant::now() + PATIENCE).ok().map(|status| status.code());
        }
        self.ended
    }

    /// Run state, status of the migration, and its error.
    pub(crate) fn answers(&mut self) -> Result<(String, String, String)> {
        let run_state = self.vmm.status().map_err(|error| error.to_string())?;
        let migration = self.vmm.qmp.execute("query-migrate", Value::Null).map_err(|error| error.to_string())?;
        let text = |name: &str| migration[name].as_str().unwrap_or_default().to_owned();
        Ok((run_state, text("status"), text("error-desc")))
    }

    /// Gives a command over a connection of its own, for its answer may be long in coming.
    pub(crate) fn ask(&self, command: &'static str, arguments: Value) -> JoinHandle<Result<()>> {
        let control = self.control.clone();
        std::thread::spawn(move || {
            let mut qmp =
                Qmp::connect(&control, Instant::now() + Duration::from_secs(5)).map_err(|error| error.to_string())?;
            qmp.execute(command, arguments).map(drop).map_err(|error| error.to_string())
        })
    }

    /// Number of the last pass on the console.
    pub(crate) fn last_pass(&self) -> u64 {
        tiny::passes(&self.vmm.console()).last().copied().unwrap_or(0)
    }

    fn await_pass(&mut self, pass: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.last_pass() < pass {
            if Instant::now() > deadline {
                return Err(format!("no pass {pass}: {:?} {}", self.vmm.console(), self.vmm.errors()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// True if this process holds a lock for writing on `image`, as the kernel tells of its open files.
    pub(crate) fn holds(&self, image: &Path) -> bool {
        let Ok(inode) = fs::metadata(image).map(|metadata| metadata.ino()) else { return false };
        let Ok(files) = fs::read_dir(format!("/proc/{}/fdinfo", self.process)) else { return false };
        // "lock:	1: OFDLCK ADVISORY  WRITE -1 00:2c:1234 0 EOF"
        let names_it = |line: &str| {
            line.contains("WRITE") && line.split_whitespace().any(|word| word.ends_with(&format!(":{inode}")))
        };
        files.flatten().any(|file| {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            text.lines().any(|line| line.starts_with("lock:") && names_it(line))
        })
    }
}

/// A process that is neither source nor destination, and has the image open.
#[derive(Debug)]
pub(crate) struct ThirdParty {
    image: File,
}

impl ThirdParty {
    pub(crate) fn new(image: &Path) -> Self {
        Self { image: File::options().read(true).write(true).open(image).unwrap() }
    }

    /// Takes the lock that minivmm takes, until the value is dropped.
    pub(crate) fn take(image: &Path) -> Result<Self> {
        let party = Self::new(image);
        let taken = fcntl(&party.image, FcntlArg::F_OFD_SETLK(&whole_file()));
        taken.map_err(|errno| format!("the image is held: {errno}"))?;
        Ok(party)
    }

    /// True while someone else has it: as quick as a question to the kernel can be.
    pub(crate) fn finds_it_locked(&self) -> bool {
        let mut lock = whole_file();
        fcntl(&self.image, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && lock.l_type != nix::libc::F_UNLCK as i16
    }
}

fn whole_file() -> nix::libc::flock {
    nix::libc::flock {
        l_type: nix::libc::F_WRLCK as _,
        l_whence: nix::libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Waits for `condition`.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        if Instant::now() > deadline {
            return Err(format!("not within {PATIENCE:?}: {what}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
