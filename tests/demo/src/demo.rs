//! The demo: one guest, which migrates along a route of monitors, and a check of whether the migrations disturbed it.
//!
//! The demo runs directly where the CPU has hardware virtualization, else in the same way inside an emulated host.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use minivmm::cli::report::page;
use serde_json::Value;
use vmstate_lab::bench::Guest;
use vmstate_lab::error::{Error, FileContext, Result};
use vmstate_lab::kernel::Kernel;
use vmstate_lab::l1::files;
use vmstate_lab::l1::{self, Booted, Job};
use vmstate_lab::network::Way;
use vmstate_lab::{guest, host, init, packages, qemu};

use crate::linux::Programs;
use crate::mode::{Means, Mode};
use crate::progress::Progress;
use crate::report::{DemoReport, Hop};
use crate::route::{Monitor, Route};
use crate::{MINIVMM, linux, picture, signals, tiny};

/// Time limit for the demo inside an emulated host, without its migrations.
const BOOT_TIME: Duration = Duration::from_secs(240);
/// Time limit for a migration, with the work and the verification after it.
const HOP_TIME: Duration = Duration::from_secs(180);
/// Names of the files that the job hands out of the emulated host.
const REPORT: &str = "report.json";
const PICTURE: &str = "route.svg";
const PAGE: &str = "report.html";

/// The guest that is migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// An unmodified distribution kernel; needs hardware virtualization, or QEMU to emulate it
    Linux,
    /// A bare-metal program of a few hundred bytes; runs on any /dev/kvm
    Tiny,
}

/// The network that the guest's card is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Card {
    /// A tap, which is a port of a bridge
    Tap,
    /// The same tap, with vhost-net moving its frames
    Vhost,
    /// passt, a process without privileges
    Passt,
}

impl Card {
    /// The value's name on the command line.
    fn word(self) -> &'static str {
        match self {
            Self::Tap => "tap",
            Self::Vhost => "vhost",
            Self::Passt => "passt",
        }
    }
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
    /// Number of the guest's vCPUs [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    /// How a Linux guest is connected to the network
    #[arg(long, value_enum, default_value_t = Card::Tap)]
    net: Card,
    /// Monitors that run the guest, one after the other: a list of `minivmm` and `qemu`, of which `qemu*3` is three in a row
    #[arg(long, value_name = "LIST", default_value = "minivmm,minivmm")]
    route: Route,
    /// The migrations.
    #[command(flatten)]
    means: Means,
    /// Write the report's numbers to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the route into this file, an SVG picture
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Write what happened in each migration to this file, an HTML page as that of `minivmm migrate --report`
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Runs the demo and prints its report.
///
/// Returns success only when every migration completed and every check holds; checks that the machine cannot run are
/// reported as skipped.
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
    options.check()?;
    let scratch = tempfile::Builder::new().prefix("vmstate-demo-").tempdir().doing("make", &std::env::temp_dir())?;
    let own = std::env::current_exe().doing("find", Path::new("our executable"))?;
    let qemu = || options.route.has(Monitor::Qemu).then(|| qemu::at_least(qemu::NEEDED)).transpose();
    if options.guest == Kind::Tiny {
        host::has_kvm().map_err(Error::Failed)?;
        let programs = Programs { minivmm: minivmm(scratch.path(), &own)?, roles: own, qemu: qemu()? };
        return conclude(&tiny::migrate(scratch.path(), &programs, &options.route, options.means)?, options);
    }
    let kernel = match &options.kernel {
        Some(image) => Kernel::open(image)?,
        None => packages::kernel()?,
    };
    packages::mkfs()?;
    let qemu = qemu()?;
    if let Err(reason) = host::runs_linux() {
        if std::env::var_os(l1::INSIDE).is_some() {
            return Err(Error::failed(format!("no KVM in the emulated host: {reason}")));
        }
        eprintln!("{reason}: the demo runs inside an emulated host (QEMU), several times slower");
        signals::remove_on_interrupt(scratch.path().to_owned());
        return emulated(options, scratch.path(), &own, &kernel, qemu.as_deref());
    }
    let programs = Programs { minivmm: minivmm(scratch.path(), &own)?, roles: own, qemu };
    let load = guest::Options { memory_mib: 64, rate: 5000, ..guest::Options::default() };
    let guest = Guest { memory_mib: 256, cpus: options.cpus(), options: load, disk: true };
    let (route, way) = (&options.route, options.way());
    conclude(&linux::migrate(scratch.path(), &programs, route, &kernel, &guest, way, options.means)?, options)
}

impl Options {
    fn cpus(&self) -> u8 {
        self.cpus.unwrap_or(1)
    }

    fn way(&self) -> Way {
        match self.net {
            Card::Tap => Way::Tap,
            Card::Vhost => Way::Vhost,
            Card::Passt => Way::Passt,
        }
    }

    /// The command that makes such a report again.
    fn command(&self) -> String {
        let tiny = if self.guest == Kind::Tiny { " --guest tiny" } else { "" };
        let cpus = self.cpus.filter(|&cpus| cpus != 1).map(|cpus| format!(" --cpus {cpus}")).unwrap_or_default();
        let net = match self.net {
            Card::Tap => String::new(),
            card => format!(" --net {}", card.word()),
        };
        let mode = match self.means.mode {
            Mode::Precopy => String::new(),
            mode => format!(" --mode {}", mode.word()),
        };
        let disk = if self.means.copy_disk { " --copy-disk" } else { "" };
        let preempt = if self.means.preempt { " --preempt" } else { "" };
        let limit = self.means.max_postcopy_bandwidth;
        let limit = limit.map(|bytes| format!(" --max-postcopy-bandwidth {bytes}")).unwrap_or_default();
        format!("cargo demo{tiny} --route {}{mode}{preempt}{limit}{disk}{cpus}{net}", self.route)
    }

    /// Refuses files whose directory is missing, and options that do not fit the guest, before a guest is started.
    fn check(&self) -> Result<()> {
        for file in [&self.json, &self.picture, &self.report].into_iter().flatten() {
            let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::read_dir(directory).doing("write into", directory)?;
        }
        if self.means.copy_disk && (self.route.has(Monitor::Qemu) || self.means.mode != Mode::Precopy) {
            return Err(Error::failed(
                "--copy-disk is between minivmms, to another process: leave `qemu` out of the --route, and --mode",
            ));
        }
        let is_postcopy = self.means.mode == Mode::Postcopy;
        for (flag, is_given) in [
            ("--preempt", self.means.preempt),
            ("--max-postcopy-bandwidth", self.means.max_postcopy_bandwidth.is_some()),
        ] {
            if is_given && !is_postcopy {
                return Err(Error::failed(format!("{flag} is for post-copy: add --mode postcopy")));
            }
        }
        if self.means.copy_disk && self.guest == Kind::Tiny {
            return Err(Error::failed("the tiny guest has no disk: leave out --copy-disk"));
        }
        if matches!(self.means.mode, Mode::Update | Mode::Snapshot) && self.route.has(Monitor::Qemu) {
            let mode = self.means.mode.word();
            let why = format!("--mode {mode} is between minivmms only: leave `qemu` out of the --route");
            return Err(Error::failed(why));
        }
        if self.guest == Kind::Linux {
            return Ok(());
        }
        if self.route.first == Monitor::Qemu {
            return Err(Error::failed("the tiny guest boots in minivmm only: begin the --route with `minivmm`"));
        }
        if self.kernel.is_some() || self.cpus.is_some() || self.net == Card::Passt {
            return Err(Error::failed(
                "the tiny guest is its own kernel with one vCPU and no card: leave out --kernel, --cpus and --net",
            ));
        }
        Ok(())
    }
}

/// A link to this executable with the name `minivmm`.
fn minivmm(scratch: &Path, own: &Path) -> Result<PathBuf> {
    let minivmm = scratch.join(MINIVMM);
    symlink(own, &minivmm).doing("make", &minivmm)?;
    Ok(minivmm)
}

fn conclude(report: &DemoReport, options: &Options) -> Result<bool> {
    let write = |file: &Path, content: String| fs::write(file, content).doing("write", file);
    if let Some(file) = &options.json {
        write(file, report.json().to_string() + "\n")?;
    }
    if let Some(file) = &options.picture {
        write(file, picture::draw(report, &options.command(), std::env::var_os(l1::INSIDE).is_some()))?;
    }
    if let Some(file) = &options.report {
        write(file, page(&report.hops.iter().map(Hop::record).collect::<Vec<_>>()))?;
    }
    Ok(report.holds())
}

/// The figures of a migration, if it completed.
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
    let mut detail = format!("round {}, {} of {} MiB left", ram["dirty-sync-count"], mib("remaining"), mib("total"));
    if let Some(left) = info["disk"]["remaining"].as_u64() {
        detail += &format!(", {} MiB of the disk", left >> 20);
    }
    progress.show("migrating", &detail);
}

/// Runs the same command in an emulated host that has all the files and programs the command needs.
fn emulated(options: &Options, scratch: &Path, own: &Path, kernel: &Kernel, qemu: Option<&Path>) -> Result<bool> {
    let hops = u32::try_from(options.route.then.len()).unwrap_or(u32::MAX);
    let mut argv = [l1::ROLES, "demo", "--kernel", files::GUEST_KERNEL].map(str::to_owned).to_vec();
    let mut flag = |name: &str, value: String| argv.extend([name.to_owned(), value]);
    flag("--cpus", options.cpus().to_string());
    flag("--route", options.route.to_string());
    flag("--net", options.net.word().into());
    flag("--mode", options.means.mode.word().into());
    let wanted = [
        ("--json", REPORT, &options.json),
        ("--picture", PICTURE, &options.picture),
        ("--report", PAGE, &options.report),
    ];
    for (name, is_given) in [("--copy-disk", options.means.copy_disk), ("--preempt", options.means.preempt)] {
        argv.extend(is_given.then(|| name.to_owned()));
    }
    if let Some(limit) = options.means.max_postcopy_bandwidth {
        argv.extend(["--max-postcopy-bandwidth".to_owned(), limit.to_string()]);
    }
    let mut flag = |name: &str, value: String| argv.extend([name.to_owned(), value]);
    for (name, inside, _) in wanted {
        flag(name, format!("{}/{inside}", init::OUT));
    }
    let mut inside = files::for_migrations(kernel)?;
    if let Some(qemu) = qemu {
        files::add_qemu(&mut inside, "qemu-system-x86_64", qemu)?;
    }
    if options.net == Card::Passt {
        inside.program("/bin/passt", &packages::passt()?)?;
    }
    let job = Job { argv, env: Vec::new(), time: BOOT_TIME + HOP_TIME.saturating_mul(hops) };
    let outcome = Booted::new(own, inside)?.run(scratch, job)?;
    for (_, inside, outside) in wanted {
        // A demo that failed before its report has printed the reason already.
        if let Some(file) = outside
            && let Some((_, content)) = outcome.artifacts.iter().find(|(name, _)| name == inside)
        {
            fs::write(file, content).doing("write", file)?;
        }
    }
    Ok(outcome.code == 0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(words: &str) -> std::result::Result<Options, String> {
        let line = Line::try_parse_from(format!("demo {words}").split_whitespace());
        let options = line.map_err(|error| error.to_string())?.options;
        options.check().map(|()| options).map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_route_is_between_two_minivmms() {
        assert_eq!(parse("").unwrap().route.to_string(), "minivmm,minivmm");
        let options = parse("--route qemu,minivmm,qemu --cpus 2").unwrap();
        assert_eq!((options.route.to_string().as_str(), options.cpus()), ("qemu,minivmm,qemu", 2));
        assert!(parse("--route qemu").unwrap_err().contains("a route has at least two monitors"));
        assert!(parse("--route qemu,xen").unwrap_err().contains("no monitor is called `xen`"));
        assert!(parse("--qemu").is_err());
    }

    #[test]
    fn a_guest_is_taken_over_in_place_or_by_a_file_between_minivmms_only() {
        for mode in ["update", "snapshot"] {
            assert!(parse(&format!("--mode {mode} --route minivmm*3 --net vhost")).is_ok());
            for route in ["qemu,minivmm", "minivmm,qemu"] {
                let refusal = parse(&format!("--mode {mode} --route {route}")).unwrap_err();
                assert!(refusal.ends_with("leave `qemu` out of the --route"), "{refusal}");
            }
        }
    }

    #[test]
    fn a_disk_is_copied_between_minivmms_to_another_process_only() {
        assert!(parse("--copy-disk --route minivmm*3").is_ok());
        for words in ["--copy-disk --route minivmm,qemu", "--copy-disk --mode update"] {
            assert!(parse(words).unwrap_err().starts_with("--copy-disk is between minivmms"), "{words}");
        }
        assert_eq!(parse("--copy-disk --guest tiny").unwrap_err(), "the tiny guest has no disk: leave out --copy-disk");
    }

    #[test]
    fn options_of_postcopy_are_refused_without_it() {
        assert!(parse("--mode postcopy --preempt --route qemu,minivmm").is_ok());
        for flag in ["--preempt", "--max-postcopy-bandwidth 9"] {
            assert!(parse(flag).unwrap_err().ends_with("is for post-copy: add --mode postcopy"), "{flag}");
        }
    }

    #[test]
    fn the_command_is_the_typed_one_without_files() {
        let command = |words| parse(words).unwrap().command();
        assert_eq!(command("--route qemu,minivmm --cpus 2 --json x"), "cargo demo --route qemu,minivmm --cpus 2");
        assert_eq!(command("--guest tiny"), "cargo demo --guest tiny --route minivmm,minivmm");
        assert_eq!(command("--mode update"), "cargo demo --route minivmm,minivmm --mode update");
        assert_eq!(
            command("--mode postcopy --max-postcopy-bandwidth 9 --preempt"),
            "cargo demo --route minivmm,minivmm --mode postcopy --preempt --max-postcopy-bandwidth 9"
        );
        assert_eq!(command("--copy-disk"), "cargo demo --route minivmm,minivmm --copy-disk");
    }

    #[test]
    fn a_file_in_a_missing_directory_is_refused_before_anything_runs() {
        assert!(parse("--picture route.svg --json /tmp/route.json --report report.html").is_ok());
        for flag in ["--json", "--picture", "--report"] {
            let refusal = parse(&format!("{flag} /nowhere/file")).unwrap_err();
            assert!(refusal.starts_with("cannot write into /nowhere: "), "{refusal}");
        }
    }

    #[test]
    fn options_that_the_tiny_guest_lacks_are_refused_with_a_sentence() {
        assert!(parse("--guest tiny --route minivmm,minivmm,minivmm").is_ok());
        assert!(parse("--guest tiny --route minivmm,qemu").is_ok());
        let qemu = parse("--guest tiny --route qemu,minivmm").unwrap_err();
        assert_eq!(qemu, "the tiny guest boots in minivmm only: begin the --route with `minivmm`");
        for words in ["--guest tiny --cpus 1", "--guest tiny --kernel vmlinuz", "--guest tiny --net passt"] {
            assert!(parse(words).unwrap_err().contains("leave out --kernel, --cpus and --net"), "{words}");
        }
    }
}
