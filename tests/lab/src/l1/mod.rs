//! The emulated host (L1): QEMU's TCG with nested SVM boots a distribution kernel whose `/dev/kvm` runs real guests.
//!
//! docs/lab.md gives the reason for each switch. An L1 boots once and is saved while it waits for its job; each job
//! runs in a copy of its own. An L1 may hang as a whole, rarely and not because of the job: only then, when the closing
//! line is missing, the job is repeated.

pub mod files;
mod host;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, FileContext, Result};
use crate::init;
use crate::kernel::HOST_MODULES;
use crate::packages;
use crate::qemu;
use crate::qmp::Qmp;
use crate::terminal;
use crate::tree::Tree;
use host::{Attempt, Host, L1, Nameless};

pub use host::ROLES;

/// Environment variable that is set for a job: the process runs in an emulated host already.
pub const INSIDE: &str = "VMSTATE_LAB_L1";
const REPEATS: u32 = 2;
const BOOT: Duration = Duration::from_secs(90);
/// Bandwidth for saving the host: QEMU's default of 128 MiB/s is meant for networks.
const BYTES_PER_SECOND: u64 = 64 << 30;

/// An emulated host that has booted and waits for its job.
#[derive(Debug)]
pub struct Booted {
    l1: L1,
    initrd: Nameless,
    /// The host's state as saved by QEMU.
    saved: Nameless,
}

/// One job of an emulated host.
#[derive(Debug)]
pub struct Job {
    /// Program and arguments, as paths inside.
    pub argv: Vec<String>,
    /// Environment, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Time limit of the job; a job that exceeds it ends with a result as well.
    pub time: Duration,
}

/// How a job ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code of the program.
    pub code: i32,
    /// The files that the job left in `/out`.
    pub artifacts: Vec<(String, Vec<u8>)>,
}

impl Booted {
    /// Boots an emulated host with the distribution's QEMU and kernel, and with these files inside. `roles` is an
    /// executable with our roles.
    ///
    /// # Errors
    /// When a program or file is missing, the host does not start, or it hung in every attempt.
    pub fn new(roles: &Path, mut files: Tree) -> Result<Self> {
        let l1 = L1 { qemu: qemu::any()?, kernel: packages::kernel()?, roles: roles.to_owned() };
        files.program(ROLES, roles)?;
        files.directory(init::OUT);
        l1.kernel.add_modules(&mut files, HOST_MODULES);
        let booted = Self { l1, initrd: Nameless::new()?, saved: Nameless::new()? };
        files.write(&booted.initrd.path())?;
        repeatedly("its start", || booted.boot())?;
        Ok(booted)
    }

    fn boot(&self) -> Result<Attempt<()>> {
        let scratch = tempfile::tempdir().doing("make", &std::env::temp_dir())?;
        let mut host = Host::start(&self.l1, &self.initrd, scratch.path(), None)?;
        let deadline = Instant::now() + BOOT;
        while !host.console()?.contains(init::READY) {
            if host.qemu.ended().is_some() || Instant::now() > deadline {
                return host.hung("it does not boot");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut qmp = Qmp::connect(&host.control(), deadline)?;
        qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": BYTES_PER_SECOND }))?;
        qmp.execute("migrate", json!({ "uri": format!("exec:cat > '{}'", self.saved.path().display()) }))?;
        loop {
            let info = qmp.execute("query-migrate", Value::Null)?;
            match info["status"].as_str() {
                Some("completed") => return Ok(Ok(())),
                Some("failed") => return Err(Error::failed(format!("the emulated host cannot be saved: {info}"))),
                _ if Instant::now() > deadline => return host.hung("saving it takes too long"),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Runs a job in a copy of the host and copies its output to our standard output as it comes. The run's files are
    /// in `scratch`.
    ///
    /// # Errors
    /// When the host cannot be started, or hung in every attempt.
    pub fn run(&self, scratch: &Path, mut job: Job) -> Result<Outcome> {
        job.env.push("PATH=/bin:/sbin".into());
        job.env.push(format!("{INSIDE}=1"));
        // The job's serial port leads to our standard error, which is a terminal or not.
        job.env.push(if terminal::rewrites_lines() { "TERM=linux" } else { "TERM=dumb" }.to_owned());
        repeatedly("the job", || self.attempt(scratch, &job))
    }

    fn attempt(&self, scratch: &Path, job: &Job) -> Result<Attempt<Outcome>> {
        let mut host = Host::start(&self.l1, &self.initrd, scratch, Some(&self.saved))?;
        let deadline = Instant::now() + BOOT + job.time;
        // Wait until the host runs: input before that is overwritten by the serial port's saved state.
        let mut qmp = match Qmp::connect(&host.control(), deadline) {
            Ok(qmp) => qmp,
            Err(error) => return host.hung(&error.to_string()),
        };
        while qmp.execute("query-status", Value::Null)?["status"] != "running" {
            if Instant::now() > deadline {
                return host.hung("it does not resume");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let description = json!({ "argv": job.argv, "env": job.env, "seconds": job.time.as_secs() });
        if let Some(port) = &mut host.qemu.child().stdin {
            writeln!(port, "{description}").doing("tell the job to", &self.l1.qemu)?;
        }
        let hang = host.watch(deadline);
        host.qemu.kill();
        let text = host.console()?;
        let closing = text.rsplit_once(init::CLOSING).and_then(|(_, rest)| rest.lines().next());
        let Some(code) = closing.and_then(|code| code.trim().parse().ok()) else {
            return host.hung(hang.unwrap_or("it ended by itself"));
        };
        for line in text.lines().filter(|line| line.contains("lab: ") && !line.contains(init::CLOSING)) {
            eprintln!("{}", line.trim_start_matches('.'));
        }
        Ok(Ok(Outcome { code, artifacts: host.artifacts()? }))
    }
}

/// Repeats an attempt in which the host hung.
fn repeatedly<T>(what: &str, attempt: impl Fn() -> Result<Attempt<T>>) -> Result<T> {
    for repeat in 0..=REPEATS {
        match attempt()? {
            Ok(value) => return Ok(value),
            Err(hang) if repeat < REPEATS => eprintln!("lab: the emulated host hung ({hang}); {what} is repeated"),
            Err(hang) => eprintln!("lab: the emulated host hung ({hang})"),
        }
    }
    Err(Error::failed(format!("the emulated host hung {} times", REPEATS + 1)))
}
