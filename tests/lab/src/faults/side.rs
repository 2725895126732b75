//! Source or destination: a process with its files and sockets.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::unistd::Pid;
use serde_json::Value;

use super::descriptors::cpr_socket;
use super::setup::{Memory, Setup, TestGuest};
use super::{Result, TIMEOUT, until};
use crate::qmp::Qmp;
use crate::vmm::{Config, Program, Started, Vmm, unix_channel};

/// Number of passes after which the guest counts as started.
const FIRST_PASSES: usize = 3;

/// File name of the socket at which the process waits for a migration.
const INCOMING: &str = "incoming";

/// The byte of an image that a QEMU which writes to the image has locked: `RAW_PL_PERM_BASE` and the number of
/// `BLK_PERM_WRITE` (block/file-posix.c, include/block/block-common.h).
const WRITES: u64 = 101;

/// One process; ended when dropped.
#[derive(Debug)]
pub struct Side {
    /// The monitor.
    pub vmm: Vmm,
    /// Its process id.
    pub process: u32,
    test_guest: TestGuest,
    directory: tempfile::TempDir,
    /// The exit code, once the process has ended; the inner `None` is an end by a signal.
    ended: Option<Option<i32>>,
}

impl Side {
    /// Boots the guest.
    ///
    /// # Errors
    /// When the guest does not start.
    pub fn boot(setup: &Setup) -> Result<Self> {
        let side = Self::start(setup, &setup.program, |_| ())?;
        until("the guest boots", || Ok((setup.test_guest.passes)(&side.vmm.console()).len() >= FIRST_PASSES))
            .map_err(|why| format!("{why}: {:?} {}", side.vmm.console(), side.vmm.errors()))?;
        Ok(side)
    }

    /// Starts a process that waits for a migration; `change` modifies its configuration.
    ///
    /// # Errors
    /// The output of a process that does not start.
    pub fn incoming(setup: &Setup, change: impl FnOnce(&mut Config)) -> Result<Self> {
        Self::start(setup, &setup.peer, |config| {
            let incoming_socket = config.control.with_file_name(INCOMING);
            let scheme = if setup.memory == Memory::InPlace { "local" } else { "unix" };
            config.incoming = Some(format!("{scheme}:{}", incoming_socket.display()));
            if setup.memory == Memory::Transfer {
                let cpr = unix_channel("cpr", &cpr_socket(&incoming_socket)).to_string();
                config.more.extend(["--incoming".into(), cpr]);
            }
            change(config);
        })
    }

    /// Starts a process with the guest in the file `state`, on this disk.
    ///
    /// # Errors
    /// The output of a process that does not start.
    pub fn restore(setup: &Setup, state: &Path, disk: Option<&Path>) -> Result<Self> {
        Self::start(setup, &setup.program, |config| {
            config.incoming = Some(format!("file:{}", state.display()));
            config.disk = disk.map(Path::to_owned);
        })
    }

    fn start(setup: &Setup, program: &Program, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let directory = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        let mut config = setup.config.clone();
        config.control = directory.path().join("control");
        change(&mut config);
        let started = Started::spawn(setup.launcher.as_deref(), program, &config);
        // The control socket of a process without a machine appears once it has the guest's memory.
        let first = match setup.memory {
            Memory::InPlace => Some(directory.path().join(INCOMING)),
            Memory::Transfer => Some(cpr_socket(&directory.path().join(INCOMING))),
            _ => None,
        };
        let vmm = match first.filter(|_| config.incoming.is_some()) {
            Some(socket) => started.and_then(|started| started.await_socket(&socket)).map(Started::unconnected),
            None => started.and_then(Started::connect),
        };
        let mut vmm = vmm.map_err(|error| error.to_string())?;
        let process = vmm.process().child().id();
        Ok(Self { vmm, process, test_guest: setup.test_guest, directory, ended: None })
    }

    /// The socket at which the process waits for a migration.
    pub fn incoming_socket(&self) -> PathBuf {
        self.directory.path().join(INCOMING)
    }

    /// Kills the process, as a crash would.
    pub fn kill(&mut self) {
        self.vmm.process().kill();
        self.ended = Some(None);
    }

    /// The exit code, once the process has ended by itself and all of its output is read.
    pub fn exit_code(&mut self) -> Option<Option<i32>> {
        if self.ended.is_none() && self.vmm.process().ended().is_some() {
            self.ended = self.vmm.wait_end(Instant::now() + TIMEOUT).ok().map(|status| status.code());
        }
        self.ended
    }

    /// The run state, the status of the migration, and its error.
    ///
    /// # Errors
    /// When the process does not answer.
    pub fn state(&mut self) -> Result<(String, String, String)> {
        let run_state = self.vmm.status().map_err(|error| error.to_string())?;
        let migration = self.execute("query-migrate", Value::Null)?;
        let text = |name: &str| migration[name].as_str().unwrap_or_default().to_owned();
        Ok((run_state, text("status"), text("error-desc")))
    }

    /// Executes a command and waits for the answer.
    ///
    /// # Errors
    /// The refusal, or that no answer came.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.vmm.qmp.execute(command, arguments).map_err(|error| error.to_string())
    }

    /// Executes a command over a connection of its own, because the answer may take long.
    pub fn ask(&self, command: &'static str, arguments: Value) -> JoinHandle<Result<()>> {
        let control = self.directory.path().join("control");
        std::thread::spawn(move || {
            let mut qmp = Qmp::connect(&control, Instant::now() + TIMEOUT).map_err(|error| error.to_string())?;
            qmp.execute(command, arguments).map(drop).map_err(|error| error.to_string())
        })
    }

    /// Number of the last pass on the console since the guest's last boot; 0 before the first pass.
    pub fn last_pass(&self) -> u64 {
        let console = self.vmm.console();
        let since = console.rsplit(self.test_guest.banner).next().unwrap_or_default();
        (self.test_guest.passes)(since).last().copied().unwrap_or(0)
    }

    /// The thread of this name; `None` while there is none. A reset starts the guest's vCPUs again.
    pub fn thread(&self, name: &str) -> Option<Pid> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.process)).ok()?.flatten();
        let named = |thread: &fs::DirEntry| fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        let thread = threads.into_iter().find(|thread| named(thread).trim_end() == name)?;
        thread.file_name().to_str()?.parse().ok().map(Pid::from_raw)
    }

    /// Whether this process holds a write lock on `image`, by the kernel's list of its open files. QEMU has a read lock
    /// on a byte that stands for writing.
    pub fn holds(&self, image: &Path) -> bool {
        let Ok(inode) = fs::metadata(image).map(|metadata| metadata.ino()) else { return false };
        let Ok(files) = fs::read_dir(format!("/proc/{}/fdinfo", self.process)) else { return false };
        // "lock:	1: OFDLCK ADVISORY  WRITE -1 00:2c:1234 0 EOF", "lock:	2: OFDLCK ADVISORY  READ -1 00:2c:1234 100 101"
        let names_it = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let [.., kind, _, file, first, last] = words[..] else { return false };
            let number = |word: &str| word.parse::<u64>();
            let has_the_byte =
                (number(first).is_ok_and(|first| first <= WRITES), number(last).is_ok_and(|last| last >= WRITES));
            (kind == "WRITE" || has_the_byte == (true, true)) && file.ends_with(&format!(":{inode}"))
        };
        files.flatten().any(|file| {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            text.lines().any(|line| line.starts_with("lock:") && names_it(line))
        })
    }
}
