//! The demo: one guest, two monitors, one migration between them, and whether the guest noticed.
//!
//! Runs directly where the CPU has hardware virtualization, else inside an emulated host, the very same way.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;
use vmstate_lab::bench::Guest;
use vmstate_lab::error::{Error, FileContext, Result};
use vmstate_lab::kernel::Kernel;
use vmstate_lab::l1::{self, Job, L1};
use vmstate_lab::vmm::Program;
use vmstate_lab::{guest, host, init, packages, qemu};

use crate::progress::Progress;
use crate::report::DemoReport;
use crate::{MINIVMM, linux, signals, tiny};

/// Longest the demo may take inside an emulated host.
const TIME: Duration = Duration::from_secs(180);
/// Where the job's report lies inside the emulated host.
const REPORT: &str = "report.json";

/// The guest that is migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// An unmodified distribution kernel; needs hardware virtualization, or QEMU to emulate it
    Linux,
    /// A bare-metal program of a few hundred bytes; runs on any /dev/kvm
    Tiny,
}

/// Flags of the demo.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Guest to migrate
    #[arg(long, value_enum, default_value_t = Kind::Linux)]
    guest: Kind,
    /// Linux kernel; without it the distribution's cloud kernel is fetched
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Number of the guest's vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u8,
    /// Write the report's numbers to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run QEMU in minivmm's place, for figures to compare with
    #[arg(long)]
    qemu: bool,
}

/// Runs the demo and prints its report.
///
/// Success only when the migration completed and every check holds; what the machine cannot give is named as skipped.
pub(crate) fn run(options: &Options) -> ExitCode {
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
    if options.guest == Kind::Tiny {
        host::has_kvm().map_err(Error::Failed)?;
        let program = monitor(options, scratch.path(), &own)?;
        return conclude(&tiny::migrate(scratch.path(), &own, &program)?, options);
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
    let program = monitor(options, scratch.path(), &own)?;
    let load = guest::Options { memory_mib: 64, rate: 5000, ..guest::Options::default() };
    let guest = Guest { memory_mib: 256, cpus: options.cpus, options: load, disk: true };
    conclude(&linux::migrate(scratch.path(), &own, program, &kernel, &guest)?, options)
}

/// What runs the guest: this very executable under minivmm's name, unless QEMU was asked for.
fn monitor(options: &Options, scratch: &Path, own: &Path) -> Result<Program> {
    if options.qemu {
        return Ok(Program::Qemu(qemu::any()?, "kvm"));
    }
    let minivmm = scratch.join(MINIVMM);
    symlink(own, &minivmm).doing("make", &minivmm)?;
    Ok(Program::Minivmm(minivmm))
}

fn conclude(report: &DemoReport, options: &Options) -> Result<bool> {
    print!("{report}");
    if let Some(file) = &options.json {
        fs::write(file, report.json().to_string() + "\n").doing("write", file)?;
    }
    Ok(report.holds())
}

/// The figures of a migration that completed.
pub(crate) fn completed(migration: Value) -> Result<Value> {
    if migration["status"] == "completed" {
        return Ok(migration);
    }
    let reason = migration["error-desc"].as_str().unwrap_or("no reason given");
    Err(Error::failed(format!("the migration {}: {reason}", migration["status"].as_str().unwrap_or_default())))
}

pub(crate) fn show_migration(progress: &mut Progress, info: &Value) {
    let ram = &info["ram"];
    let mib = |field: &str| ram[field].as_u64().unwrap_or(0) >> 20;
    let detail = format!("round {}, {} of {} MiB left", ram["dirty-sync-count"], mib("remaining"), mib("total"));
    progress.show("migrating", &detail);
}

/// The same command in an emulated host, with everything there that it looks for.
fn emulated(options: &Options, scratch: &Path, own: &Path, kernel: &Kernel) -> Result<bool> {
    let host = L1::new(own)?;
    let mut job = Job::new(kernel, TIME)?;
    job.argv = [l1::ROLES, "demo", "--kernel", l1::GUEST_KERNEL, "--cpus"].map(str::to_owned).to_vec();
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
