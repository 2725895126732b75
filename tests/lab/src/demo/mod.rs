//! The demo: one guest, two monitors, one migration between them, and whether the guest noticed.
//!
//! Runs directly where the CPU has hardware virtualization, else inside an emulated host, the very same way.

mod findings;
mod linux;
mod report;
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::bench::Guest;
use crate::demo::report::Report;
use crate::error::{Error, FileContext, Result};
use crate::guest;
use crate::host;
use crate::init;
use crate::kernel::Kernel;
use crate::l1::{self, Job, L1};
use crate::packages;
use crate::progress::Progress;
use crate::qemu;
use crate::signals;
use crate::vmm::Program;

/// Longest the demo may take inside an emulated host.
const TIME: Duration = Duration::from_secs(180);
/// Where the job's report lies inside the emulated host.
const REPORT: &str = "report.json";

/// The guest that is migrated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A distribution's Linux.
    #[default]
    Linux,
    /// A bare-metal program of a few hundred bytes.
    Tiny,
}

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which guest.
    pub guest: Kind,
    /// Guest kernel; the distribution's when `None`.
    pub kernel: Option<PathBuf>,
    /// vCPUs of the guest.
    pub cpus: u8,
    /// Where the numbers go as JSON.
    pub json: Option<PathBuf>,
    /// QEMU in minivmm's place, for comparison.
    pub qemu: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { guest: Kind::Linux, kernel: None, cpus: 1, json: None, qemu: false }
    }
}

/// Runs the demo and prints its report. The running executable must play our [roles](crate::roles), and be minivmm
/// unless QEMU was asked for.
///
/// Success only when the migration completed and every check holds; what the machine cannot give is named as skipped.
pub fn run(options: &Options) -> ExitCode {
    match perform(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn perform(options: &Options) -> Result<bool> {
    let scratch = tempfile::Builder::new().prefix("vmstate-demo-").tempdir().doing("make", &std::env::temp_dir())?;
    let own = std::env::current_exe().doing("find", Path::new("our executable"))?;
    let minivmm = Program::Minivmm(own.clone());
    if options.guest == Kind::Tiny {
        host::has_kvm().map_err(Error::Failed)?;
        return conclude(&tiny::migrate(scratch.path(), &own, &minivmm)?, options);
    }
    let kernel = match &options.kernel {
        Some(image) => Kernel::open(image)?,
        None => packages::kernel()?,
    };
    packages::mkfs()?;
    if let Err(reason) = host::runs_linux() {
        if std::env::var_os(l1::INSIDE).is_some() {
            return Err(Error::failed(format!("no KVM in the emulated host: {reason}")));
        }
        eprintln!("{reason}: the demo runs inside an emulated host (QEMU), several times slower");
        signals::remove_on_interrupt(scratch.path().to_owned());
        return emulated(options, scratch.path(), &own, &kernel);
    }
    let program = if options.qemu { Program::Qemu(qemu::any()?, "kvm") } else { minivmm };
    let load = guest::Options { memory_mib: 64, rate: 5000, ..guest::Options::default() };
    let guest = Guest { memory_mib: 256, cpus: options.cpus, options: load, disk: true };
    conclude(&linux::migrate(scratch.path(), &own, program, &kernel, &guest)?, options)
}

fn conclude(report: &Report, options: &Options) -> Result<bool> {
    print!("{report}");
    if let Some(file) = &options.json {
        fs::write(file, report.json().to_string() + "\n").doing("write", file)?;
    }
    Ok(report.holds())
}

/// The figures of a migration that completed.
fn completed(migration: Value) -> Result<Value> {
    if migration["status"] == "completed" {
        return Ok(migration);
    }
    let reason = migration["error-desc"].as_str().unwrap_or("no reason given");
    Err(Error::failed(format!("the migration {}: {reason}", migration["status"].as_str().unwrap_or_default())))
}

fn show_migration(progress: &mut Progress, info: &Value) {
    let ram = &info["ram"];
    let mib = |field: &str| ram[field].as_u64().unwrap_or(0) >> 20;
    let detail = format!("round {}, {} of {} MiB left", ram["dirty-sync-count"], mib("remaining"), mib("total"));
    progress.show("migrating", &detail);
}

/// The same command in an emulated host, with everything there that it looks for.
fn emulated(options: &Options, scratch: &Path, own: &Path, kernel: &Kernel) -> Result<bool> {
    let host = L1::new(own)?;
    let mut job = Job::new(own, kernel, TIME)?;
    job.argv = [l1::MINIVMM, "demo", "--kernel", l1::GUEST_KERNEL, "--cpus"].map(str::to_owned).to_vec();
    job.argv.extend([options.cpus.to_string(), "--json".into(), format!("{}/{REPORT}", init::OUT)]);
    if options.qemu {
        job.argv.push("--qemu".into());
        job.add_qemu(&host.qemu)?;
    }
    let outcome = host.run(scratch, job)?;
    if let Some(file) = &options.json {
        let numbers = outcome.artifacts.iter().find(|(name, _)| name == REPORT);
        let (_, numbers) = numbers.ok_or_else(|| Error::failed("the emulated host returned no report"))?;
        fs::write(file, numbers).doing("write", file)?;
    }
    Ok(outcome.code == 0)
}
