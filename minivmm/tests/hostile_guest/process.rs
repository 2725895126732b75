//! `minivmm run` with a guest of a few instructions, as a process that is looked at from outside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use vmstate_lab::tiny;

/// How long the host may need for what is not promised within a time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running `minivmm`, whose output nobody reads; killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Process {
    /// Runs `code` at the 64-bit entry point. `None` after saying that the test is skipped.
    pub(crate) fn start(code: &[u8], flags: &[&str]) -> Option<Self> {
        if let Err(error) = minivmm::kvm::open() {
            vmstate_lab::skip::skip(error);
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("kernel");
        fs::write(&kernel, with_code(code)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_minivmm"))
            .args(["run", "--memory", "16M", "--kernel"])
            .arg(kernel)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The least that Linux gives a pipe: a page.
        fcntl(child.stdout.as_ref().unwrap(), FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        Some(Self { child, _directory: directory })
    }

    /// Ids of its threads that are called `name`, in no order.
    pub(crate) fn threads(&self, name: &str) -> Vec<u32> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let called = |task: &Path| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
        let tasks = fs::read_dir(tasks).unwrap().filter_map(io::Result::ok).map(|task| task.path());
        let names = tasks.filter(|task| called(task)).filter_map(|task| task.file_name()?.to_str()?.parse().ok());
        names.collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The tiny guest's image with other code at its 64-bit entry point, which is 512 bytes behind its setup code.
fn with_code(code: &[u8]) -> Vec<u8> {
    let mut image = tiny::bzimage();
    image[1024 + 512..][..code.len()].copy_from_slice(code);
    image
}

/// Looks until there is what is looked for.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
