//! Measures the time to restore a guest from a file, from the start of the process, and the guest's pause while it is
//! saved: minivmm, which maps the file, compared with QEMU, which reads it. Both files have the layout mapped-ram.
//!
//! The guest prints a character some thousand times a second: the first character on a new process's console shows that
//! the guest runs.

use std::ffi::OsStr;
use std::fmt::Write as _;
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
pub(crate) const MINIVMM: &str = "minivmm";
/// Guest RAM.
const MEMORY: &str = "4096M";
/// Number of pages that the guest has written and keeps rewriting: 200 MB.
const PAGES: u64 = 50_000;
/// The shortest tick of the guest: 28 µs at 2.3 GHz.
const SPAN: u64 = 1;
const WAIT: Duration = Duration::from_secs(60);

/// The monitor that saves and restores the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Monitor {
    Minivmm,
    Qemu,
}

/// A monitor as a process; ended when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // A process that has ended is only reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory with the guest's kernel, a link for minivmm, and the state file of each monitor.
struct Place<'a>(&'a Path);

/// A table with a line for each monitor; both save and restore in turn, `turns` times each.
pub(crate) fn table(turns: u64, directory: &Path) -> String {
    let place = Place(directory);
    std::fs::write(place.kernel(), tick::bzimage()).expect("a kernel");
    symlink(std::env::current_exe().expect("this program"), place.minivmm()).expect("a link to this program");
    let mut monitors = vec![Monitor::Minivmm];
    match qemu::version() {
        Some(_) => monitors.push(Monitor::Qemu),
        None => eprintln!("no QEMU is installed: the comparison is left out"),
    }
    let mut saves: Vec<_> = monitors.iter().map(|&monitor| (place.boot(monitor), Vec::new())).collect();
    // The first turn is not counted.
    for turn in 0..=turns {
        for (guest, pauses) in &mut saves {
            let pause = place.save(guest);
            pauses.extend((turn > 0).then_some(pause));
        }
    }
    let pauses: Vec<_> = saves.into_iter().map(|(_, pauses)| pauses).collect();
    let mut restores = vec![Vec::new(); monitors.len()];
    for turn in 0..=turns {
        for (&monitor, times) in monitors.iter().zip(&mut restores) {
            let time = place.restore(monitor);
            times.extend((turn > 0).then_some(time));
        }
    }
    let mut text = String::from(
        "| | restore, ms, best | restore, ms, median | pause of the save, ms, best | pause of the save, ms, median |\n\
         | --- | ---: | ---: | ---: | ---: |\n",
    );
    for ((monitor, mut restores), mut pauses) in monitors.into_iter().zip(restores).zip(pauses) {
        let best_and_median = |times: &mut Vec<Duration>| {
            times.sort();
            [times[0], times[times.len() / 2]].map(|time| time.as_secs_f64() * 1e3)
        };
        let ([restore, restore_median], [pause, pause_median]) =
            (best_and_median(&mut restores), best_and_median(&mut pauses));
        let name = if monitor == Monitor::Minivmm { "minivmm" } else { "QEMU" };
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {name} | {restore:.1} | {restore_median:.1} | {pause:.0} | {pause_median:.0} |");
    }
    text
}

impl Place<'_> {
    fn kernel(&self) -> PathBuf {
        self.0.join("kernel")
    }

    fn minivmm(&self) -> PathBuf {
        self.0.join(MINIVMM)
    }

    fn state(&self, monitor: Monitor) -> PathBuf {
        self.0.join(format!("{monitor:?}.state"))
    }

    /// The command line of a monitor for the guest's machine, to which further options can be added.
    fn command(&self, monitor: Monitor) -> Command {
        let append = tick::command_line(PAGES, SPAN);
        let mut command = match monitor {
            Monitor::Minivmm => {
                let mut command = Command::new(self.minivmm());
                command.args(["run", "--serial", "stdio", "--memory", MEMORY, "--append", &append, "--kernel"]);
                command
            }
            Monitor::Qemu => {
                let mut command = Command::new(qemu::PROGRAM);
                command.args(["-M", "microvm,acpi=on,pcie=off,ioapic2=off,auto-kernel-cmdline=off,accel=kvm"]);
                // Some KVMs that run this guest refuse the register that this flag selects.
                command.args(["-cpu", "host,-arch-capabilities", "-nodefaults", "-no-user-config", "-display", "none"]);
                command.args(["-global", "virtio-mmio.force-legacy=false"]);
                command.args(["-global", "migration.mapped-ram=on", "-chardev", "stdio,id=console,signal=off"]);
                command.args(["-serial", "chardev:console", "-m", MEMORY, "-append", &append, "-kernel"]);
                command
            }
        };
        command.arg(self.kernel()).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// A guest in `monitor` that has written all of its pages. It always boots in minivmm, because some KVMs cannot run
    /// QEMU's firmware.
    fn boot(&self, monitor: Monitor) -> Guest {
        let name = format!("{monitor:?}");
        let mut guest = Guest::start(self, (Monitor::Minivmm, &format!("boots-for-{name}")), None, PAGES);
        if monitor == Monitor::Qemu {
            let first = self.0.join("first");
            let uri = format!("file:{}", first.display());
            guest.migrate(json!({ "uri": uri, "to-qemu": true }));
            guest = Guest::start(self, (Monitor::Qemu, &name), Some(&first), 1);
        }
        guest.execute("stop", json!({}));
        guest
    }

    /// Saves the guest and returns its pause. The guest runs only for that, so that it does not slow the other monitor
    /// down.
    fn save(&self, guest: &mut Guest) -> Duration {
        let state = self.state(guest.monitor);
        let _ = std::fs::remove_file(&state);
        let uri = format!("file:{}", state.display());
        guest.execute("cont", json!({}));
        // Let the guest work first.
        thread::sleep(Duration::from_millis(300));
        let figures = match guest.monitor {
            Monitor::Minivmm => guest.migrate(json!({ "uri": uri, "keep-running": true })),
            Monitor::Qemu => guest.migrate(json!({ "uri": uri })),
        };
        guest.execute("stop", json!({}));
        Duration::from_millis(figures["downtime"].as_u64().expect("a downtime"))
    }

    /// The time from the start of a process to the first tick of its guest.
    fn restore(&self, monitor: Monitor) -> Duration {
        let mut command = self.command(monitor);
        let flag = if monitor == Monitor::Minivmm { "--incoming" } else { "-incoming" };
        command.arg(flag).arg(format!("file:{}", self.state(monitor).display()));
        let begun = Instant::now();
        let mut process = Process(command.spawn().expect("a monitor"));
        process.ticks(1);
        begun.elapsed()
    }
}

impl Process {
    /// Waits for `count` ticks of the monitor's guest; returns its console.
    fn ticks(&mut self, count: u64) -> ChildStdout {
        let mut console = self.0.stdout.take().expect("the console");
        let mut ticks = vec![0; count as usize];
        console.read_exact(&mut ticks).expect("the guest's ticks");
        assert!(tick::in_turn(&String::from_utf8_lossy(&ticks)), "the guest's memory is wrong");
        console
    }
}

/// A running guest that can be saved.
struct Guest {
    monitor: Monitor,
    client: Client,
    _process: Process,
}

impl Guest {
    /// Starts a guest in a new process of `monitor`, from this file or by booting, and waits for `ticks` ticks.
    fn start(place: &Place<'_>, (monitor, name): (Monitor, &str), from: Option<&Path>, ticks: u64) -> Self {
        let control = place.0.join(format!("{name}.qmp"));
        let mut command = place.command(monitor);
        match monitor {
            Monitor::Minivmm => command.args(["--control", &format!("unix:{}", control.display())]),
            Monitor::Qemu => command.args(["-qmp", &format!("unix:{},server=on,wait=off", control.display())]),
        };
        if let Some(file) = from {
            command.args(["-incoming", &format!("file:{}", file.display())]);
        }
        let mut process = Process(command.spawn().expect("a monitor"));
        let mut console = process.ticks(ticks);
        // Keep reading the console, so that the guest never waits for a reader.
        thread::spawn(move || std::io::copy(&mut console, &mut std::io::sink()));
        let client = Client::connect(&control).unwrap_or_else(|error| panic!("{monitor:?} does not answer: {error}"));
        Self { monitor, client, _process: process }
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let answer = self.client.execute(command, arguments);
        answer.unwrap_or_else(|error| panic!("{:?}: {command}: {error}", self.monitor))
    }

    /// Migrates with these arguments; returns the final figures.
    fn migrate(&mut self, how: Value) -> Value {
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
