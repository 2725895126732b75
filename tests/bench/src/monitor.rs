//! Guests in processes of minivmm and of QEMU, which save them to files.
//!
//! The guest prints a character some thousand times a second: the first character on a new process's console shows that
//! the guest runs.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use minivmm::control::Client;
use serde_json::{Value, json};
use vmstate_lab::tiny::tick;

use crate::qemu;

/// Called by this name, the benchmark acts as minivmm.
const MINIVMM: &str = "minivmm";
/// The shortest tick of the guest: 28 µs at 2.3 GHz.
const SPAN: u64 = 1;
const WAIT: Duration = Duration::from_secs(60);

/// A program that runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Monitor {
    Minivmm,
    Qemu,
}

/// A monitor as a process; ended when dropped.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // A process that has ended is only reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory with the guest's kernel and a link for minivmm.
pub(crate) struct Place<'a> {
    directory: &'a Path,
    memory_mib: u64,
    /// Number of pages that the guest has written and keeps rewriting.
    pages: u64,
}

impl Monitor {
    /// minivmm, and QEMU where it is installed.
    pub(crate) fn all() -> Vec<Self> {
        let mut monitors = vec![Self::Minivmm];
        match qemu::version() {
            Some(_) => monitors.push(Self::Qemu),
            None => eprintln!("no QEMU is installed: the comparison is left out"),
        }
        monitors
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Minivmm => "minivmm",
            Self::Qemu => "QEMU",
        }
    }
}

impl<'a> Place<'a> {
    /// For guests with `memory_mib` MiB of RAM, of which they write `pages` pages.
    pub(crate) fn new(directory: &'a Path, memory_mib: u64, pages: u64) -> Self {
        let place = Self { directory, memory_mib, pages };
        std::fs::write(place.kernel(), tick::bzimage()).expect("a kernel");
        symlink(std::env::current_exe().expect("this program"), place.minivmm()).expect("a link to this program");
        place
    }

    fn kernel(&self) -> PathBuf {
        self.directory.join("kernel")
    }

    fn minivmm(&self) -> PathBuf {
        self.directory.join(MINIVMM)
    }

    /// The command line of a monitor for the guest's machine, to which further options can be added.
    pub(crate) fn command(&self, monitor: Monitor) -> Command {
        let (memory, append) = (format!("{}M", self.memory_mib), tick::command_line(self.pages, SPAN));
        let mut command = match monitor {
            Monitor::Minivmm => {
                let mut command = Command::new(self.minivmm());
                command.args(["run", "--serial", "stdio", "--memory", &memory, "--append", &append, "--kernel"]);
                command
            }
            Monitor::Qemu => {
                let mut command = Command::new(qemu::PROGRAM);
                command.args(["-M", "microvm,acpi=on,pcie=off,ioapic2=off,auto-kernel-cmdline=off,accel=kvm"]);
                // Some KVMs that run this guest refuse the register that this flag selects.
                command.args(["-cpu", "host,-arch-capabilities", "-nodefaults", "-no-user-config", "-display", "none"]);
                command.args(["-global", "virtio-mmio.force-legacy=false"]);
                command.args(["-global", "migration.mapped-ram=on", "-chardev", "stdio,id=console,signal=off"]);
                command.args(["-serial", "chardev:console", "-m", &memory, "-append", &append, "-kernel"]);
                command
            }
        };
        command.arg(self.kernel()).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// A guest in `monitor` that has written all of its pages. It always boots in minivmm, because some KVMs cannot run
    /// QEMU's firmware.
    pub(crate) fn boot(&self, monitor: Monitor) -> Guest {
        let name = format!("{monitor:?}");
        let mut guest = Guest::start(self, (Monitor::Minivmm, &format!("boots-for-{name}")), None, self.pages);
        if monitor == Monitor::Qemu {
            let first = self.directory.join("first");
            let uri = format!("file:{}", first.display());
            guest.migrate(json!({ "uri": uri, "to-qemu": true }));
            guest = Guest::start(self, (Monitor::Qemu, &name), Some(&first), 1);
        }
        guest.execute("stop", json!({}));
        guest
    }
}

impl Process {
    pub(crate) fn start(mut command: Command) -> Self {
        Self(command.spawn().expect("a monitor"))
    }

    /// Waits for `count` ticks of the monitor's guest; returns its console.
    pub(crate) fn ticks(&mut self, count: u64) -> ChildStdout {
        let mut console = self.0.stdout.take().expect("the console");
        let mut ticks = vec![0; count as usize];
        console.read_exact(&mut ticks).expect("the guest's ticks");
        assert!(tick::in_turn(&String::from_utf8_lossy(&ticks)), "the guest's memory is wrong");
        console
    }
}

/// A running guest that can be saved.
pub(crate) struct Guest {
    pub(crate) monitor: Monitor,
    client: Client,
    _process: Process,
}

impl Guest {
    /// Starts a guest in a new process of `monitor`, from this file or by booting, and waits for `ticks` ticks.
    fn start(place: &Place<'_>, (monitor, name): (Monitor, &str), from: Option<&Path>, ticks: u64) -> Self {
        let control = place.directory.join(format!("{name}.qmp"));
        let mut command = place.command(monitor);
        match monitor {
            Monitor::Minivmm => command.args(["--control", &format!("unix:{}", control.display())]),
            Monitor::Qemu => command.args(["-qmp", &format!("unix:{},server=on,wait=off", control.display())]),
        };
        if let Some(file) = from {
            command.args(["-incoming", &format!("file:{}", file.display())]);
        }
        let mut process = Process::start(command);
        let mut console = process.ticks(ticks);
        // Keep reading the console, so that the guest never waits for a reader.
        thread::spawn(move || std::io::copy(&mut console, &mut std::io::sink()));
        let client = Client::connect(&control).unwrap_or_else(|error| panic!("{monitor:?} does not answer: {error}"));
        Self { monitor, client, _process: process }
    }

    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let answer = self.client.execute(command, arguments);
        answer.unwrap_or_else(|error| panic!("{:?}: {command}: {error}", self.monitor))
    }

    /// Migrates with these arguments; returns the final figures.
    pub(crate) fn migrate(&mut self, how: Value) -> Value {
        self.execute("migrate", how);
        let begun = Instant::now();
        loop {
            let figures = self.execute("query-migrate", json!({}));
            match figures["status"].as_str() {
                Some("completed") => return figures,
                Some("failed") => panic!("{:?} does not save its guest: {figures}", self.monitor),
                _ => assert!(begun.elapsed() < WAIT, "{:?} does not end the migration: {figures}", self.monitor),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether this program was called as minivmm.
pub(crate) fn is_minivmm() -> bool {
    let name = std::env::args_os().next().map(PathBuf::from);
    name.as_deref().and_then(Path::file_name) == Some(OsStr::new(MINIVMM))
}
