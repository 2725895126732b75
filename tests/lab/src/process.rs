//! Child processes. A child that still runs is killed when dropped, and by the kernel when this process dies.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};

use crate::error::{Error, FileContext, Result};

/// First argument that makes our executable a launcher, which starts another program and ends it with its parent.
pub const ROLE: &str = "lab-exec";

/// A child process, killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `program` with the arguments and standard streams that `prepare` sets. It is started through `launcher`,
    /// an executable with our roles, because only the child itself can tie its life to its parent's (PR_SET_PDEATHSIG).
    /// Without a launcher the child survives if we are killed.
    ///
    /// # Errors
    /// When the launcher, or the program without one, cannot be started.
    pub fn spawn(launcher: Option<&Path>, program: &Path, prepare: impl FnOnce(&mut Command)) -> Result<Self> {
        let started = launcher.unwrap_or(program);
        let mut command = Command::new(started);
        if launcher.is_some() {
            command.arg(ROLE).arg(std::process::id().to_string()).arg(program);
        }
        prepare(&mut command);
        let child = command.spawn().doing("start", started)?;
        Ok(Self::named(child, program))
    }

    /// Starts `command`, without a launcher.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_owned();
        let child = command.spawn().doing("start", Path::new(&program))?;
        Ok(Self::named(child, Path::new(&program)))
    }

    fn named(child: Child, program: &Path) -> Self {
        Self { child, name: program.file_name().unwrap_or_default().to_string_lossy().into_owned() }
    }

    /// The child's process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its streams.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// The exit status, if the child has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the child's end.
    ///
    /// # Errors
    /// When the child still runs at `deadline`.
    pub fn wait(&mut self, deadline: Instant) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(Error::failed(format!("{} did not end in time", self.name)));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills the child, as a crash would.
    pub fn kill(&mut self) {
        // Both fail only when the child has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The standard output of a command that ends by itself; its exit code is ignored.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().doing("run", Path::new(command.get_program()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that ends by itself; the error contains the last line of its output.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().doing("run", Path::new(command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    let words: Vec<_> =
        [command.get_program()].into_iter().chain(command.get_args()).map(|w| w.to_string_lossy()).collect();
    let reason = String::from_utf8_lossy(&output.stderr);
    let last = reason.trim().lines().next_back().unwrap_or_default();
    Err(Error::failed(format!("`{}` failed: {last}", words.join(" "))))
}

/// The launcher: `lab-exec PARENT PROGRAM ARG…` ties this process's life to its parent's, then executes the program.
pub(crate) fn exec(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let parent = arguments.next().and_then(|id| id.to_str()?.parse::<i32>().ok());
    let Some(program) = arguments.next() else { return ExitCode::from(2) };
    let tied = set_pdeathsig(Signal::SIGKILL);
    // The parent may have died before the tie was made.
    if tied.is_err() || Some(nix::unistd::getppid().as_raw()) != parent {
        return ExitCode::from(2);
    }
    // A parent that waits for signals has blocked them, and a blocked signal stays so across exec.
    let unblocked = SigSet::all().thread_unblock();
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("cannot start {}: {error} {unblocked:?}", program.display());
    ExitCode::from(2)
}
