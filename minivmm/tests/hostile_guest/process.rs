//! `minivmm run` with a guest of a few instructions, observed from outside.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmstate_lab::tiny;

/// Bound for actions without a promised time, on a busy host.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(180);

/// Bound for actions that are promised within a second, with time for a busy host. A request that waits for a guest or a client
/// that acts without end would take for ever.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(30);

/// A running `minivmm` whose output is not read; dropping it kills the process.
pub(crate) struct Process {
    child: Child,
    directory: tempfile::TempDir,
}

impl Process {
    /// Runs `code` at the 64-bit entry point. Prints that the test is skipped and returns `None` without KVM.
    pub(crate) fn start(code: &[u8], flags: &[&str]) -> Option<Self> {
        match minivmm::kvm::open() {
            Ok(_) => Some(Self::spawn(code, flags)),
            Err(error) => {
                vmstate_lab::skip::skip(error);
                None
            }
        }
    }

    /// Starts a machine that waits for a guest, and that boots `code` if the guest resets here.
    pub(crate) fn awaiting(address: &str, code: &[u8], flags: &[&str]) -> Self {
        Self::spawn(code, &[&["--incoming", address], flags].concat())
    }

    fn spawn(code: &[u8], flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command.arg("run");
        Self::spawn_by(command, code, flags)
    }

    /// Starts the machine by `command`, which gets the arguments of `minivmm run`.
    pub(crate) fn spawn_by(mut command: Command, code: &[u8], flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("kernel");
        fs::write(&kernel, tiny::with_code(code)).unwrap();
        let child = command
            .args(["--memory", "16M", "--control"])
            .arg(format!("unix:{}/qmp", directory.path().display()))
            .arg("--kernel")
            .arg(kernel)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The smallest pipe of Linux: a page.
        fcntl(child.stdout.as_ref().unwrap(), FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        Self { child, directory }
    }

    pub(crate) fn id(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Ids of the threads called `name`, in no order.
    pub(crate) fn threads(&self, name: &str) -> Vec<u32> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let called = |task: &Path| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
        let tasks = fs::read_dir(tasks).unwrap().filter_map(io::Result::ok).map(|task| task.path());
        let names = tasks.filter(|task| called(task)).filter_map(|task| task.file_name()?.to_str()?.parse().ok());
        names.collect()
    }

    /// Waits until `count` machines were made: each has a first vCPU with a thread of its own.
    pub(crate) fn await_machines(&self, count: usize) {
        let mut vcpus = BTreeSet::new();
        until("machines", || {
            vcpus.extend(self.threads("vcpu0"));
            (vcpus.len() >= count).then_some(())
        });
    }

    /// An address at which no process listens.
    pub(crate) fn unused_address(&self) -> String {
        format!("unix:{}/incoming", self.directory.path().display())
    }

    /// Connects to the process's control socket.
    pub(crate) fn user(&self) -> User {
        let path = self.directory.path().join("qmp");
        let stream = until("control socket", || UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut user = User(BufReader::new(stream));
        assert!(user.next().get("QMP").is_some());
        user.ask("qmp_capabilities");
        user
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.id(), signal).unwrap();
    }

    /// Exit code; `None` if the process still runs, or was killed.
    pub(crate) fn end_within(&mut self, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of the control socket.
pub(crate) struct User(BufReader<UnixStream>);

impl User {
    /// Sends a command whose answer is not read.
    pub(crate) fn send(&mut self, command: &str) {
        self.0.get_mut().write_all(json!({"execute": command}).to_string().as_bytes()).unwrap();
    }

    /// Returns the answer to a command, and the time that it took.
    pub(crate) fn ask(&mut self, command: &str) -> (Value, Duration) {
        self.ask_with(command, &json!({}))
    }

    pub(crate) fn ask_with(&mut self, command: &str, arguments: &Value) -> (Value, Duration) {
        let asked = Instant::now();
        let message = json!({"execute": command, "arguments": arguments}).to_string();
        self.0.get_mut().write_all(message.as_bytes()).unwrap();
        loop {
            let answer = self.next();
            if answer.get("event").is_none() {
                return (answer, asked.elapsed());
            }
        }
    }

    /// Sets a downtime limit that even a busy host keeps, since these tests do not measure the downtime.
    pub(crate) fn pause_without_end(&mut self) {
        let limit = TIMEOUT.as_millis() as u64;
        let limits = json!({"pause-budget": limit, "downtime-limit": limit});
        let (answer, _) = self.ask_with("migrate-set-parameters", &limits);
        assert!(answer.get("return").is_some(), "{answer}");
    }

    pub(crate) fn await_migration(&mut self, status: &str) {
        until(status, || {
            let (answer, _) = self.ask("query-migrate");
            let now = answer["return"]["status"].as_str().unwrap_or_default();
            assert!(now == status || !["failed", "cancelled", "undecided"].contains(&now), "{answer}");
            (now == status).then_some(())
        });
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"))
    }
}

/// Polls until `look` returns a value.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
