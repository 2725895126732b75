//! The demo: one guest, two monitors, one migration between them, and whether the guest noticed.
//!
//! Runs directly where the CPU has hardware virtualization, else inside an emulated host, the very same way.

mod direct;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::bench::Guest;
use crate::demo::report::Report;
use crate::error::{Error, FileContext, Result};
use crate::guest;
use crate::host;
use crate::kernel::{GUEST_MODULES, Kernel};
use crate::l1::{self, Job, L1};
use crate::packages;
use crate::signals;
use crate::tree::{Tree, find_program};
use crate::vmm::Program;

/// Longest the demo may take inside an emulated host.
const TIME: Duration = Duration::from_secs(180);
const L1_MEMORY_MIB: u32 = 2048;
/// Where the job's report lies inside the emulated host.
const REPORT: &str = "report.json";

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
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
        Self { kernel: None, cpus: 1, json: None, qemu: false }
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
    let kernel = match &options.kernel {
        Some(image) => Kernel::open(image)?,
        None => packages::kernel()?,
    };
    packages::tool("mkfs.ext4", "e2fsprogs")?;
    let own = std::env::current_exe().doing("find", Path::new("our executable"))?;
    if let Err(reason) = host::runs_linux() {
        if std::env::var_os(l1::INSIDE).is_some() {
            return Err(Error::failed(format!("no KVM in the emulated host: {reason}")));
        }
        eprintln!("{reason}: the demo runs inside an emulated host (QEMU), several times slower");
        signals::remove_on_interrupt(scratch.path().to_owned());
        return emulated(options, scratch.path(), &own, &kernel);
    }
    let program = if options.qemu { Program::Qemu(packages::qemu()?, "kvm") } else { Program::Minivmm(own.clone()) };
    let guest = Guest {
        memory_mib: 256,
        cpus: options.cpus,
        options: guest::Options { memory_mib: 64, rate: 5000, shell: false },
        disk: true,
    };
    let report = direct::migrate(scratch.path(), &own, program, &kernel, &guest)?;
    print!("{report}");
    if let Some(file) = &options.json {
        fs::write(file, report.json().to_string() + "\n").doing("write", file)?;
    }
    Ok(report.holds())
}

/// The same command in an emulated host, with everything there that it looks for.
fn emulated(options: &Options, scratch: &Path, own: &Path, kernel: &Kernel) -> Result<bool> {
    let qemu = packages::qemu()?;
    let mut files = Tree::new();
    files.program("/bin/minivmm", own)?;
    let image = Path::new("/boot").join(format!("vmlinuz-{}", kernel.version));
    files.host(&image, &kernel.image);
    kernel.add_modules(&mut files, GUEST_MODULES);
    files.program("/sbin/mkfs.ext4", &packages::tool("mkfs.ext4", "e2fsprogs")?)?;
    files.host("/etc/mke2fs.conf", "/etc/mke2fs.conf");
    if let Some(busybox) = find_program("busybox") {
        files.program("/bin/busybox", &busybox)?;
    }
    let mut argv: Vec<String> = ["/bin/minivmm", "demo", "--kernel"].map(str::to_owned).to_vec();
    argv.extend([image.display().to_string(), "--cpus".into(), options.cpus.to_string()]);
    argv.extend(["--json".into(), format!("{}/{REPORT}", crate::init::OUT)]);
    if options.qemu {
        argv.push("--qemu".into());
        add_qemu(&mut files, &qemu)?;
    }
    let host = L1 { qemu, kernel: packages::kernel()?, roles: own.to_owned(), memory_mib: L1_MEMORY_MIB };
    let outcome = host.run(scratch, Job { argv, env: vec!["PATH=/bin:/sbin".into()], files, time: TIME })?;
    if let Some(file) = &options.json {
        let numbers = outcome.artifacts.iter().find(|(name, _)| name == REPORT);
        let (_, numbers) = numbers.ok_or_else(|| Error::failed("the emulated host returned no report"))?;
        fs::write(file, numbers).doing("write", file)?;
    }
    Ok(outcome.code == 0)
}

/// QEMU, and the firmware that its microvm boots a kernel with.
pub(crate) fn add_qemu(files: &mut Tree, qemu: &Path) -> Result<()> {
    files.program("/bin/qemu-system-x86_64", qemu)?;
    for directory in ["/usr/share/qemu", "/usr/share/seabios"] {
        for file in ["bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin"] {
            let path = Path::new(directory).join(file);
            if path.is_file() {
                files.host(Path::new("/usr/share/qemu").join(file), path);
            }
        }
    }
    Ok(())
}
