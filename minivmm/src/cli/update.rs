//! `minivmm migrate --local`: starts a new minivmm on this host, has the machine hand its guest over to it, and ends the machine's process.
//!
//! Until the new process has confirmed that it runs the guest, ending that process is all that a failure needs.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use nix::libc;
use serde_json::json;

use super::machine::MachineArgs;
use super::migrate::Outcome;
use super::progress;
use crate::config::Address;
use crate::control::{ClientError, aside};

/// How long the new process may take until it waits for the guest.
const READY: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(2);

/// Flags of `minivmm migrate` for a new process on this host.
#[derive(Args, Clone, Debug, Default)]
pub struct UpdateArgs {
    /// Start a new minivmm on this host with the machine's own options, hand the guest over to it without copying its memory, and end the
    /// machine's process. The machine has --share-memory on
    #[arg(long, conflicts_with = "to")]
    local: bool,
    /// The new minivmm, if it is not the one that this command belongs to
    #[arg(long, value_name = "PATH", requires = "local")]
    program: Option<PathBuf>,
    /// Options of minivmm run for the new process, in place of the machine's own
    #[arg(last = true, value_name = "OPTION", requires = "local")]
    options: Vec<OsString>,
}

impl UpdateArgs {
    /// Does it; `migrate` has the machine go to an address.
    ///
    /// # Errors
    /// The machine cannot be reached or refuses, or the new process does not start: the guest is where it was.
    pub(super) fn carry_out(
        &self,
        machine: &MachineArgs,
        migrate: impl FnOnce(&Address) -> Result<Outcome, ClientError>,
    ) -> Result<Outcome, ClientError> {
        let mut old = machine.connect()?;
        let control = machine.control.canonicalize()?;
        let mut at = control.clone().into_os_string();
        at.push(".update");
        let at = PathBuf::from(at);
        let mut new = self.start(old.peer()?, &at)?;
        let outcome = await_ready(&mut new, &at).and_then(|()| migrate(&Address::Local(at.clone())));
        match &outcome {
            Ok(Outcome::Completed) => {
                // Before the old process ends, which removes its socket's file but no other's: there is one at any time.
                // One that was given no control socket has none.
                let _ = fs::rename(aside(&control), &control);
                old.execute("quit", json!({}))?;
                old.await_end();
                progress::print(&format!("the guest runs in process {}", new.id()));
            }
            // The guest is where it was, or nothing was begun.
            Ok(Outcome::Stayed(_)) | Err(ClientError::Refused(_) | ClientError::Address { .. }) => {
                let _ = new.kill();
                let _ = new.wait();
                let _ = fs::remove_file(&at);
            }
            // It may have the guest.
            _ => progress::print(&format!("the new process has the number {}", new.id())),
        }
        outcome
    }

    /// The new process, which waits at `at` for the guest of the process `old`; it prints where that one does.
    fn start(&self, old: i32, at: &Path) -> Result<Child, ClientError> {
        let program = self.program.clone().map_or_else(std::env::current_exe, Ok)?;
        let options = match self.options.is_empty() {
            true => options_of(old)?,
            false => self.options.clone(),
        };
        let mut incoming = OsString::from("--incoming=local:");
        incoming.push(at);
        let output = |number: u8| -> Stdio {
            let mut options = OpenOptions::new();
            let file = options.append(true).custom_flags(libc::O_NOCTTY).open(format!("/proc/{old}/fd/{number}"));
            // A socket, as systemd's journal has, cannot be opened again.
            file.map_or_else(|_| Stdio::inherit(), Stdio::from)
        };
        let mut command = Command::new(&program);
        command.arg("run").args(options).arg(incoming).current_dir(format!("/proc/{old}/cwd"));
        // A group of its own: an interrupt of this command is none for the machine.
        command.stdin(Stdio::null()).stdout(output(1)).stderr(output(2)).process_group(0);
        command.spawn().map_err(|error| refused(format!("{}: {error}", program.display())))
    }
}

/// Those that the process `old` was started with, but for where its guest came from.
fn options_of(old: i32) -> Result<Vec<OsString>, ClientError> {
    let line = fs::read(format!("/proc/{old}/cmdline"))
        .map_err(|error| refused(format!("the options of process {old} cannot be read: {error}; {GIVE}")))?;
    inherited(&line).map_err(refused)
}

const GIVE: &str = "give the new process its options: minivmm migrate --local -- OPTION...";

/// Of a command line as proc(5) has it.
fn inherited(line: &[u8]) -> Result<Vec<OsString>, String> {
    let mut words = line.strip_suffix(&[0]).unwrap_or(line).split(|&byte| byte == 0).skip(1);
    if words.next() != Some(b"run") {
        return Err(format!("the process that made the control socket is no minivmm run; {GIVE}"));
    }
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        let has = |what: &[u8]| {
            word.starts_with(what) || word.windows(what.len() + 1).any(|part| part == [b"=", what].concat())
        };
        if word == b"--incoming" {
            words.next();
            continue;
        }
        if word.starts_with(b"--incoming=") {
            continue;
        }
        if has(b"fd:") {
            let what = OsStr::from_bytes(word).display();
            return Err(format!("{what}: a descriptor that one process was passed is not there for another; {GIVE}"));
        }
        if word == b"--metrics" || word.starts_with(b"--metrics=") {
            return Err(format!("--metrics: two processes cannot listen at one address; {GIVE}"));
        }
        options.push(OsString::from_vec(word.to_vec()));
    }
    Ok(options)
}

fn refused(why: String) -> ClientError {
    ClientError::Address { address: "--local".into(), why }
}

/// Until the new process waits for the guest.
fn await_ready(new: &mut Child, at: &Path) -> Result<(), ClientError> {
    let until = Instant::now() + READY;
    while !at.exists() {
        if let Some(status) = new.try_wait()? {
            let what =
                "the guest is where it was, and what the new process said is where the machine's standard error goes";
            return Err(refused(format!("the new process ended ({status}) before it waited for the guest; {what}")));
        }
        if Instant::now() >= until {
            return Err(refused(format!("the new process does not wait for the guest after {READY:?}")));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Vec<OsString>, String> {
        inherited(&words.iter().flat_map(|word| [word.as_bytes(), &[0]].concat()).collect::<Vec<_>>())
    }

    #[test]
    fn the_options_are_the_machines_but_for_where_its_guest_came_from() {
        let line =
            ["minivmm", "run", "--config", "vm.toml", "--incoming", "unix:x", "--incoming=tcp:y", "--append", ""];
        assert_eq!(of(&line).unwrap(), ["--config", "vm.toml", "--append", ""]);
    }

    #[test]
    fn what_another_process_cannot_have_is_refused() {
        for (line, why) in [
            (&["minivmm", "run", "--disk", "fd:3"][..], "fd:3: a descriptor"),
            (&["minivmm", "run", "--net=tap=fd:3"], "--net=tap=fd:3: a descriptor"),
            (&["minivmm", "run", "--metrics=unix:m"], "--metrics: two processes"),
            (&["/sbin/init"], "the process that made the control socket is no minivmm run"),
        ] {
            let refused = of(line).unwrap_err();
            assert!(refused.starts_with(why) && refused.ends_with(GIVE), "{refused}");
        }
    }
}
