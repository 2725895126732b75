//! One QEMU that runs an emulated host: booted or resumed from a saved one, and followed until it ends.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::cpio;
use crate::error::{Error, FileContext, Result};
use crate::init;
use crate::kernel::Kernel;
use crate::process::Process;

const MEMORY_MIB: u32 = 2048;
const SILENCE: Duration = Duration::from_secs(60);
const ARTIFACTS_MAX: u64 = 512 << 20;

/// Path of the executable with our roles inside: the first process.
pub const ROLES: &str = "/init";

/// The programs and files that an emulated host is started with.
#[derive(Debug)]
pub(super) struct L1 {
    /// `qemu-system-x86_64`.
    pub(super) qemu: PathBuf,
    pub(super) kernel: Kernel,
    /// An executable with our roles: the host's first process, and our launcher.
    pub(super) roles: PathBuf,
}

/// A file without a name in any directory, so that it is gone once this process ends, however it ends.
#[derive(Debug)]
pub(super) struct Nameless(File);

impl Nameless {
    pub(super) fn new() -> Result<Self> {
        tempfile::tempfile().doing("make a file in", &std::env::temp_dir()).map(Self)
    }

    /// The path by which a child of this process opens the file.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

const CONSOLE: &str = "console";
const DISK: &str = "artifacts";
const ERRORS: &str = "errors";

/// The result of an attempt; the inner error is the reason why the host hung.
pub(super) type Attempt<T> = std::result::Result<T, String>;

/// One QEMU and its files.
pub(super) struct Host {
    pub(super) qemu: Process,
    directory: PathBuf,
}

impl Host {
    /// Boots, or resumes what was `saved`.
    pub(super) fn start(l1: &L1, initrd: &Nameless, directory: &Path, saved: Option<&Nameless>) -> Result<Self> {
        let path = |name: &str| directory.join(name).display().to_string();
        let disk = directory.join(DISK);
        let image = File::create(&disk).doing("create", &disk)?;
        image.set_len(ARTIFACTS_MAX).doing("size", &disk)?;
        // The socket of an earlier attempt would keep QEMU from listening.
        let _ = fs::remove_file(directory.join("control"));
        // TCG lacks some of EPYC's features and prints a warning for each: its output is shown only when the host does
        // not start.
        let errors = directory.join(ERRORS);
        let complaints = File::create(&errors).doing("create", &errors)?;
        let qemu = Process::spawn(Some(&l1.roles), &l1.qemu, |command| {
            command.args(["-accel", "tcg,thread=multi", "-M", "pc", "-cpu", "EPYC,+svm,+npt", "-smp", "1"]);
            command.args(["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-no-user-config", "-no-reboot"]);
            command.args(["-display", "none", "-serial", &format!("file:{}", path(CONSOLE))]);
            command.args(["-chardev", "stdio,id=job,signal=off", "-serial", "chardev:job"]);
            command.args(["-qmp", &format!("unix:{},server=on,wait=off", path("control"))]);
            command.args(["-drive", &format!("file={},if=virtio,format=raw,cache=unsafe", path(DISK))]);
            command.arg("-kernel").arg(&l1.kernel.image).arg("-initrd").arg(initrd.path()).arg("-append");
            command.arg(format!(
                "console=ttyS0 panic=-1 nokaslr mitigations=off quiet tsc=reliable nohz=off highres=off \
                 random.trust_cpu=on no_timer_check rdinit={ROLES} -- {}",
                init::ROLE
            ));
            if let Some(saved) = saved {
                command.args(["-incoming", &format!("exec:cat '{}'", saved.path().display())]);
            }
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(complaints);
        })?;
        Ok(Self { qemu, directory: directory.to_owned() })
    }

    pub(super) fn control(&self) -> PathBuf {
        self.directory.join("control")
    }

    /// The text of the console so far; its file exists once QEMU has opened it.
    pub(super) fn console(&self) -> Result<String> {
        let path = self.directory.join(CONSOLE);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => Ok(String::from_utf8_lossy(&read.doing("read", &path)?).into_owned()),
        }
    }

    /// The attempt's result for a host that hung; an error if QEMU did not even start.
    pub(super) fn hung<T>(&mut self, how: &str) -> Result<Attempt<T>> {
        let ended_by_itself = self.qemu.ended().is_some();
        self.qemu.kill();
        let text = self.console()?;
        let last = text.trim_end().trim_end_matches('.').lines().next_back().unwrap_or_default();
        let errors = fs::read_to_string(self.directory.join(ERRORS)).unwrap_or_default();
        let reason = errors.lines().rfind(|line| !line.contains("TCG doesn't support"));
        match reason.filter(|_| ended_by_itself) {
            Some(reason) => Err(Error::failed(format!("the emulated host does not start: {reason}"))),
            None => Ok(Err(format!("{how}; last line of its console: {last:?}"))),
        }
    }

    /// The files that the job has left.
    pub(super) fn artifacts(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let disk = self.directory.join(DISK);
        let archive = io::BufReader::new(File::open(&disk).doing("open", &disk)?);
        cpio::read(archive).doing("read", &disk)
    }

    /// Copies the job's output to standard output until QEMU ends; `Some` is the reason why the host had to be given
    /// up.
    pub(super) fn watch(&mut self, deadline: Instant) -> Option<&'static str> {
        let (sender, output) = channel();
        let mut stdout = self.qemu.child().stdout.take()?;
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
                    // Not through a lock on stdout: the test harness captures only what `print!` writes.
                    text.extend(bytes);
                    // A read may end inside a character.
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
            let written = fs::metadata(self.directory.join(CONSOLE)).map_or(0, |meta| meta.len());
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
}
