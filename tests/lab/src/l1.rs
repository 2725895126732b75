//! The emulated host (L1): QEMU's TCG with nested SVM boots a distribution kernel whose `/dev/kvm` runs real guests.
//!
//! docs/lab.md says why each switch is there. A fresh L1 serves one job. It may hang as a whole, rarely and through no
//! fault of the job: only then, when its closing line is missing, is the job repeated.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cpio;
use crate::error::{Error, FileContext, Result};
use crate::init;
use crate::kernel::{GUEST_MODULES, HOST_MODULES, Kernel};
use crate::packages;
use crate::process::Process;
use crate::qemu;
use crate::terminal;
use crate::tree::Tree;

/// Set for a job: it runs in an emulated host already.
pub const INSIDE: &str = "VMSTATE_LAB_L1";
const MEMORY_MIB: u32 = 2048;
const REPEATS: u32 = 2;
const BOOT: Duration = Duration::from_secs(90);
const SILENCE: Duration = Duration::from_secs(60);
const ARTIFACTS_MAX: u64 = 512 << 20;

/// Where the kernel for guests lies inside.
pub const GUEST_KERNEL: &str = "/boot/vmlinuz";
/// Where an executable with our roles lies inside: the first process.
pub const ROLES: &str = "/init";

/// What an emulated host is made of.
#[derive(Debug)]
pub struct L1 {
    /// `qemu-system-x86_64`
    pub qemu: PathBuf,
    /// Its kernel.
    pub kernel: Kernel,
    /// An executable with our roles: its first process, and our launcher.
    pub roles: PathBuf,
    /// Its memory in MiB.
    pub memory_mib: u32,
}

/// What an emulated host does.
#[derive(Debug)]
pub struct Job {
    /// Program and arguments, as paths inside.
    pub argv: Vec<String>,
    /// `NAME=VALUE`
    pub env: Vec<String>,
    /// Files inside, the program among them.
    pub files: Tree,
    /// After which the job is ended; a result all the same.
    pub time: Duration,
}

/// How a job ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code of the program.
    pub code: i32,
    /// The files it left in `/out`.
    pub artifacts: Vec<(String, Vec<u8>)>,
}

impl Job {
    /// A job with all that a migration takes besides the monitor: the guest's kernel with its modules, and the tools.
    ///
    /// # Errors
    /// When something of that is missing on this machine.
    pub fn new(guest: &Kernel, time: Duration) -> Result<Self> {
        let mut files = Tree::new();
        files.host(GUEST_KERNEL, &guest.image);
        guest.add_modules(&mut files, GUEST_MODULES);
        files.program("/sbin/mkfs.ext4", &packages::mkfs()?)?;
        files.host("/etc/mke2fs.conf", "/etc/mke2fs.conf");
        files.program("/bin/busybox", &packages::busybox()?)?;
        Ok(Self { argv: Vec::new(), env: vec!["PATH=/bin:/sbin".into()], files, time })
    }

    /// Adds QEMU, and the firmware that its microvm boots a kernel with.
    ///
    /// # Errors
    /// When QEMU cannot be read.
    pub fn add_qemu(&mut self, qemu: &Path) -> Result<()> {
        self.add_qemu_as("qemu-system-x86_64", qemu)
    }

    /// As [`Job::add_qemu`], by another name.
    ///
    /// # Errors
    /// When QEMU cannot be read.
    pub fn add_qemu_as(&mut self, name: &str, qemu: &Path) -> Result<()> {
        self.files.program(Path::new("/bin").join(name), qemu)?;
        for directory in qemu::FIRMWARE {
            for file in ["bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin"] {
                let path = Path::new(directory).join(file);
                if path.is_file() {
                    self.files.host(Path::new(qemu::FIRMWARE[0]).join(file), path);
                }
            }
        }
        Ok(())
    }
}

impl L1 {
    /// An emulated host with the distribution's QEMU and kernel.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn new(roles: &Path) -> Result<Self> {
        Ok(Self { qemu: qemu::any()?, kernel: packages::kernel()?, roles: roles.to_owned(), memory_mib: MEMORY_MIB })
    }

    /// Runs a job in a fresh emulated host; its output goes to our standard output as it comes. Files of
    /// the run lie in `scratch`.
    ///
    /// # Errors
    /// When the host cannot be started, or hung as often as a job is repeated.
    pub fn run(&self, scratch: &Path, mut job: Job) -> Result<Outcome> {
        let initrd = scratch.join("host.initrd");
        job.files.program(ROLES, &self.roles)?;
        job.files.directory(init::OUT);
        job.env.push(format!("{INSIDE}=1"));
        // The job's terminal is a serial port that ends where our standard error does, or does not.
        job.env.push(if terminal::rewrites_lines() { "TERM=linux" } else { "TERM=dumb" }.to_owned());
        let description = json!({ "argv": job.argv, "env": job.env, "seconds": job.time.as_secs() });
        job.files.bytes(init::JOB, description.to_string());
        self.kernel.add_modules(&mut job.files, HOST_MODULES);
        job.files.write(&initrd)?;
        for attempt in 0..=REPEATS {
            match self.attempt(scratch, &initrd, job.time)? {
                Ok(outcome) => return Ok(outcome),
                Err(hang) if attempt < REPEATS => {
                    eprintln!("lab: the emulated host hung ({hang}); the job is repeated")
                }
                Err(hang) => eprintln!("lab: the emulated host hung ({hang})"),
            }
        }
        Err(Error::failed(format!("the emulated host hung {} times", REPEATS + 1)))
    }

    /// One attempt; the inner error says how the host hung.
    fn attempt(&self, directory: &Path, initrd: &Path, time: Duration) -> Result<std::result::Result<Outcome, String>> {
        let (console, disk) = (directory.join("console"), directory.join("artifacts"));
        let image = File::create(&disk).doing("create", &disk)?;
        image.set_len(ARTIFACTS_MAX).doing("size", &disk)?;
        // TCG lacks some of EPYC's features and says so each time: shown only when the host does not come up.
        let errors = directory.join("errors");
        let complaints = File::create(&errors).doing("create", &errors)?;
        let mut qemu = Process::spawn(Some(&self.roles), &self.qemu, |command| {
            let file = |path: &Path| path.display().to_string();
            command.args(["-accel", "tcg,thread=multi", "-M", "pc", "-cpu", "EPYC,+svm,+npt", "-smp", "1"]);
            command.args(["-m", &self.memory_mib.to_string(), "-nodefaults", "-no-user-config", "-no-reboot"]);
            command.args(["-display", "none", "-serial", &format!("file:{}", file(&console))]);
            command.args(["-chardev", "stdio,id=job,signal=off", "-serial", "chardev:job"]);
            command.args(["-drive", &format!("file={},if=virtio,format=raw,cache=unsafe", file(&disk))]);
            command.args(["-kernel", &file(&self.kernel.image), "-initrd", &file(initrd), "-append"]);
            command.arg(format!(
                "console=ttyS0 panic=-1 nokaslr mitigations=off quiet tsc=reliable nohz=off highres=off \
                 random.trust_cpu=on no_timer_check rdinit={ROLES} -- {}",
                init::ROLE
            ));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(complaints);
        })?;
        let hang = watch(&mut qemu, &console, Instant::now() + BOOT + time);
        qemu.kill();
        let text = String::from_utf8_lossy(&fs::read(&console).doing("read", &console)?).into_owned();
        let closing = text.rsplit_once(init::CLOSING).and_then(|(_, rest)| rest.lines().next());
        let Some(code) = closing.and_then(|code| code.trim().parse().ok()) else {
            let last = text.trim_end().trim_end_matches('.').lines().next_back().unwrap_or_default();
            let errors = fs::read_to_string(&errors).unwrap_or_default();
            if let (None, Some(reason)) = (hang, errors.lines().rfind(|line| !line.contains("TCG doesn't support"))) {
                return Err(Error::failed(format!("the emulated host does not start: {reason}")));
            }
            return Ok(Err(format!("{}; last line of its console: {last:?}", hang.unwrap_or("it ended by itself"))));
        };
        for line in text.lines().filter(|line| line.contains("lab: ") && !line.contains(init::CLOSING)) {
            eprintln!("{}", line.trim_start_matches('.'));
        }
        let archive = io::BufReader::new(File::open(&disk).doing("open", &disk)?);
        Ok(Ok(Outcome { code, artifacts: cpio::read(archive).doing("read", &disk)? }))
    }
}

/// Passes the job's output on until QEMU ends; `Some` when it had to be given up.
fn watch(qemu: &mut Process, console: &Path, deadline: Instant) -> Option<&'static str> {
    let (sender, output) = channel();
    let mut stdout = qemu.child().stdout.take()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(size @ 1..) = stdout.read(&mut buffer) {
            if sender.send(buffer[..size].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut text = Vec::new();
    let (mut size, mut grown) = (0, Instant::now());
    loop {
        match output.recv_timeout(Duration::from_millis(200)) {
            Ok(bytes) => {
                // Not through a lock on stdout: the test harness captures what `print!` writes.
                text.extend(bytes);
                // A character may come in two halves.
                let whole = std::str::from_utf8(&text)
                    .map_or_else(|e| e.error_len().map_or(e.valid_up_to(), |_| text.len()), str::len);
                print!("{}", String::from_utf8_lossy(&text[..whole]));
                let _ = io::stdout().flush();
                text.drain(..whole);
            }
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        let written = fs::metadata(console).map_or(0, |meta| meta.len());
        if written != size {
            (size, grown) = (written, now);
        }
        if now > deadline {
            return Some("deadline passed");
        }
        if now - grown > SILENCE {
            return Some("its console fell silent");
        }
    }
}
