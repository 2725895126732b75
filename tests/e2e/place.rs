//! Runs a case where KVM runs Linux, with the programs that the case needs.

use std::env;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use vmstate_lab::error::{Error, Result};
use vmstate_lab::kernel::Kernel;
use vmstate_lab::l1::files::{self, GUEST_KERNEL};
use vmstate_lab::l1::{self, Booted, Job};
use vmstate_lab::vmm::Program;
use vmstate_lab::{host, init, packages, qemu, skip};

use crate::world::World;
use crate::{forecast, matrix};

/// Environment variable: with `qemu`, the cases run with QEMU in minivmm's place; a failure then is the case's fault.
const MONITOR: &str = "VMSTATE_E2E_MONITOR";
const TIME: Duration = Duration::from_secs(240);
/// Time limit for these cases, which have several migrations each: a migration takes two seconds on an idle machine and
/// a minute on a busy one.
const TIME_WITH_QEMU: Duration = Duration::from_secs(600);
/// Path of minivmm in an emulated host.
const MINIVMM: &str = "/bin/minivmm";
/// Path of this executable in an emulated host.
const OWN: &str = "/bin/e2e";

/// Runs the case `name`, which is the test's path, on a KVM that runs Linux.
///
/// # Panics
/// When the case fails.
pub(crate) fn case(name: &str, body: impl FnOnce(&mut World) -> Result<()>) {
    case_within(name, TIME, body);
}

/// As [`case`], with another time limit.
///
/// # Panics
/// When the case fails.
pub(crate) fn case_within(name: &str, time: Duration, body: impl FnOnce(&mut World) -> Result<()>) {
    report(name, run(name, time, &[], body));
}

/// As [`case`], in parts that each run in a host of their own; inside, the environment variable `variable` names the
/// part. All parts are run, even after a failure.
///
/// # Panics
/// When a part fails.
pub(crate) fn case_in_parts(
    name: &str,
    variable: &str,
    parts: &[String],
    time: Duration,
    body: impl Fn(&World, &str) -> Result<()>,
) {
    let mut failures = Vec::new();
    for part in parts {
        let environment = format!("{variable}={part}");
        if let Err(error) = run(name, time, &[environment], |world| body(world, part)) {
            failures.push(format!("{part}: {error}"));
        }
    }
    let outcome = if failures.is_empty() { Ok(()) } else { Err(Error::failed(failures.join("\n"))) };
    report(name, outcome);
}

/// As [`case`], with a QEMU, also in an emulated host, of a version whose streams minivmm can load.
///
/// # Panics
/// When the case fails.
pub(crate) fn case_with_qemu(name: &str, body: impl FnOnce(&mut World) -> Result<()>) {
    match qemu::at_least(qemu::NEEDED) {
        Ok(_) => {
            let faults = env::var(matrix::FAULTS).map(|faults| format!("{}={faults}", matrix::FAULTS));
            report(name, run(name, TIME_WITH_QEMU, &Vec::from_iter(faults), body));
        }
        Err(error) => skip::skip(error),
    }
}

/// As [`case_with_qemu`], with a QEMU of version [`qemu::OLDEST`] in addition, which is a package of Debian 12. On a
/// machine that cannot download the package the case passes, with a notice.
///
/// # Panics
/// When the case fails.
pub(crate) fn case_with_oldest_qemu(name: &str, body: impl FnOnce(&mut World, Program) -> Result<()>) {
    match qemu::oldest() {
        Ok(oldest) => case_with_qemu(name, |world| body(world, Program::Qemu(oldest, "kvm"))),
        Err(error) => eprintln!("not run: {name}: {error}"),
    }
}

fn report(name: &str, outcome: Result<()>) {
    if let Err(error) = outcome {
        panic!("{name}: {error}");
    }
}

fn run(name: &str, time: Duration, environment: &[String], body: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    let _turn = Turn::take();
    match host::runs_linux() {
        Ok(()) => World::new().and_then(|mut world| body(&mut world)),
        Err(reason) if env::var_os(l1::INSIDE).is_some() => Err(Error::failed(reason)),
        Err(_) => match booted() {
            Ok(host) => emulated(name, host, time, environment),
            Err(error) => {
                skip::skip(format!("no emulated host: {error}"));
                Ok(())
            }
        },
    }
}

/// A booted emulated host with the programs under test, QEMU, and this executable, which runs one case inside. Each
/// case gets a copy of the host.
fn booted() -> std::result::Result<&'static Booted, &'static Error> {
    static BOOTED: OnceLock<Result<Booted>> = OnceLock::new();
    let boot = || {
        let mut files = files::for_migrations(&packages::kernel()?)?;
        files.program(MINIVMM, minivmm())?;
        let own = env::current_exe().map_err(|error| Error::failed(error.to_string()))?;
        files.program(OWN, &own)?;
        if let Ok(passt) = packages::passt() {
            files.program("/bin/passt", &passt)?;
        }
        // The distribution's cp, because busybox's does not copy extended attributes.
        files.program("/bin/cp", Path::new("/bin/cp"))?;
        // bash and ip of the distribution: busybox's `ip` has no namespaces, and its shell prefers busybox's own
        // programs.
        files.program("/bin/bash", Path::new("/bin/bash"))?;
        files.program("/sbin/ip", &packages::tool("ip", "iproute2")?)?;
        files::add_qemu(&mut files, "qemu-system-x86_64", &qemu::any()?)?;
        if let Ok(oldest) = qemu::oldest() {
            files::add_qemu(&mut files, &qemu::program(qemu::OLDEST), &oldest)?;
        }
        Booted::new(lab(), files)
    };
    BOOTED.get_or_init(boot).as_ref()
}

fn emulated(name: &str, host: &Booted, time: Duration, environment: &[String]) -> Result<()> {
    let scratch = scratch()?;
    let argv = [OWN, "--exact", name, "--nocapture", "--test-threads=1"].map(str::to_owned).to_vec();
    let mut job = Job { argv, env: environment.to_vec(), time };
    job.env.push("RUST_BACKTRACE=0".into());
    for name in [MONITOR, forecast::EACH] {
        if let Ok(value) = env::var(name) {
            job.env.push(format!("{name}={value}"));
        }
    }
    let outcome = host.run(scratch.path(), job)?;
    for (file, content) in outcome.artifacts {
        keep(&file, &content)?;
    }
    if outcome.code == 0 {
        Ok(())
    } else {
        Err(Error::failed(format!("exit code {} in the emulated host", outcome.code)))
    }
}

/// The right to run a case. There are as many as processors, since each case keeps one processor busy.
struct Turn;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

impl Turn {
    fn take() -> Self {
        let most = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        while *running >= most {
            running = ENDED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

/// Keeps a file of a case as an artifact, for people and for other tests.
pub(crate) fn keep(file: &str, content: &[u8]) -> Result<()> {
    let directory =
        if env::var_os(l1::INSIDE).is_some() { PathBuf::from(init::OUT) } else { target().join("lab-artifacts") };
    let path = directory.join(file);
    let written = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, content));
    written.map_err(|error| Error::failed(format!("{}: {error}", path.display())))
}

/// The program minivmm, the product; the lab's program contains minivmm as well, but is not used for it.
pub(crate) fn minivmm() -> &'static Path {
    &programs().0
}

/// The lab's program, which starts the monitors and is the first process of emulated hosts and guests.
pub(crate) fn lab() -> &'static Path {
    &programs().1
}

/// minivmm and the lab's program, built with optimisation because an emulated host is slow.
fn programs() -> &'static (PathBuf, PathBuf) {
    static BUILT: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    BUILT.get_or_init(|| {
        if env::var_os(l1::INSIDE).is_some() {
            return (MINIVMM.into(), l1::ROLES.into());
        }
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let packages = ["-p", "minivmm", "--bin", "minivmm", "-p", "vmstate-demo", "--bin", "lab"];
        let mut build = Command::new(cargo);
        // Leave out the variables that cargo sets for this test's package: ring's build script depends on them, so ring
        // and all its users would be built again after each build outside of a test.
        let of_this_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_this_package)) {
            build.env_remove(name);
        }
        build.args(["build", "--release", "--locked", "--quiet"]).args(packages).arg("--target-dir").arg(target());
        assert!(build.status().is_ok_and(|status| status.success()), "minivmm and the lab's program do not build");
        (target().join("release/minivmm"), target().join("release/lab"))
    })
}

/// The monitor under test.
pub(crate) fn monitor() -> Result<Program> {
    if env::var_os(MONITOR).is_some_and(|value| value == "qemu") {
        return Ok(Program::Qemu(qemu::any()?, "kvm"));
    }
    Ok(Program::Minivmm(minivmm().to_owned()))
}

/// The kernel of the guests.
pub(crate) fn kernel() -> Result<Kernel> {
    if env::var_os(l1::INSIDE).is_some() { Kernel::open(Path::new(GUEST_KERNEL)) } else { packages::kernel() }
}

/// A directory that is removed when dropped.
pub(crate) fn scratch() -> Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(|error| Error::failed(format!("no temporary directory: {error}")))
}

/// Cargo's target directory: this executable is in `TARGET/PROFILE/deps`.
fn target() -> PathBuf {
    let own = env::current_exe().unwrap_or_default();
    own.ancestors().nth(3).map(Path::to_owned).unwrap_or_else(|| PathBuf::from("target"))
}
