//! `minivmm migrate --local`: starts a new minivmm on this host, has the machine hand its guest over to it, and ends the machine's process.
//!
//! Until the new process has confirmed that it runs the guest, any failure is handled by ending the new process.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
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
use crate::error::print_message;

/// How long the new process may take until it waits for the guest.
const READY: Duration = Duration::from_secs(10);
const CHECK_INTERVAL: Duration = Duration::from_millis(2);

/// Flags of `minivmm migrate` for a new process on this host.
#[derive(Args, Clone, Debug, Default)]
pub struct UpdateArgs {
    /// Start a new minivmm on this host with the machine's own options, hand the guest over to it without copying its memory,
    /// and end the machine's process. The machine needs --share-memory on
    #[arg(long, conflicts_with = "to")]
    local: bool,
    /// The new minivmm [default: the program of this command]
    #[arg(long, value_name = "PATH", requires = "local")]
    program: Option<PathBuf>,
    /// Options of minivmm run for the new process, in place of the machine's own
    #[arg(last = true, value_name = "OPTION", requires = "local")]
    options: Vec<OsString>,
}

impl UpdateArgs {
    /// Replaces the machine's process; `migrate` migrates the machine to an address.
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
        let process = old.peer()?;
        let mut new = self.start(process, &at)?;
        let outcome = await_ready(&mut new, &at).and_then(|()| migrate(&Address::Local(at.clone())));
        match &outcome {
            Ok(Outcome::Completed) => {
                // Before the old process ends: it removes only its own socket's file, so that at any time there is a socket.
                take_name(&control).unwrap_or_else(print_message);
                match old.execute("quit", json!({})) {
                    Err(ClientError::Refused(why)) => {
                        print_message(format_args!(
                            "process {process}, which had the guest, does not end: {why}; end it: kill {process}"
                        ));
                    }
                    // A machine that ends may close the connection before it answers.
                    _ => old.await_end(),
                }
                progress::print(&format!("the guest runs in process {}", new.id()));
            }
            // The guest is where it was, or nothing was begun: the new process is not needed.
            Ok(Outcome::Stayed(_)) | Err(ClientError::Refused(_) | ClientError::Address { .. }) => {
                let _ = new.kill();
                let _ = new.wait();
                let _ = fs::remove_file(&at);
            }
            // The new process may have the guest.
            _ => progress::print(&format!("the new process has the number {}", new.id())),
        }
        outcome
    }

    /// Starts the new process, which waits at `at` for the guest of the process `old`. It runs in the folder of `old` and has
    /// the same outputs; if another process made the control socket, it has the folder and outputs of this command.
    fn start(&self, old: i32, at: &Path) -> Result<Child, ClientError> {
        let program = self.program.clone().map_or_else(std::env::current_exe, Ok)?;
        let line = fs::read(format!("/proc/{old}/cmdline"))
            .map_err(|error| format!("the command line of process {old} cannot be read: {error}; {}", give("")));
        let machine = line.and_then(|line| options_of(old, &line));
        let options = match (&machine, self.options.is_empty()) {
            (Ok(options), true) => inherited(options).map_err(refused)?,
            (Err(why), true) => return Err(refused(why.clone())),
            (_, false) => self.options.clone(),
        };
        let mut incoming = OsString::from("--incoming=local:");
        incoming.push(at);
        let mut command = Command::new(&program);
        command.arg("run").args(options).arg(incoming);
        if machine.is_ok() {
            let output = |number: u8| -> Stdio {
                let mut options = OpenOptions::new();
                let file = options.append(true).custom_flags(libc::O_NOCTTY).open(format!("/proc/{old}/fd/{number}"));
                // A socket, as systemd's journal has, cannot be opened again.
                file.map_or_else(|_| Stdio::inherit(), Stdio::from)
            };
            command.current_dir(format!("/proc/{old}/cwd")).stdout(output(1)).stderr(output(2));
        }
        // A process group of its own, so that Ctrl-C for this command does not end the machine.
        command.stdin(Stdio::null()).process_group(0);
        command.spawn().map_err(|error| refused(format!("{}: {error}", program.display())))
    }
}

/// Renames the new process's control socket to the name of the old one's.
fn take_name(control: &Path) -> Result<(), String> {
    let aside = aside(control);
    match fs::rename(&aside, control) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let (aside, control) = (aside.display(), control.display());
            Err(format!(
                "the new process, which runs the guest, listens at {aside}, and its socket cannot be renamed to {control}: {error}; \
                 rename it, as the user who may: mv {aside} {control}"
            ))
        }
        // A process that was given another control socket or none has no socket to rename.
        _ => Ok(()),
    }
}

/// Tells the user to give the options instead of the machine's own.
fn give(how: &str) -> String {
    format!("give the new process its options yourself{how}: minivmm migrate --local -- OPTION...")
}

/// The options of the `minivmm run` with this process id, whose command line is `line` as proc(5) has it.
fn options_of(process: i32, line: &[u8]) -> Result<Vec<OsString>, String> {
    let mut words = line.strip_suffix(&[0]).unwrap_or(line).split(|&byte| byte == 0).map(OsStr::from_bytes);
    let (program, command) = (words.next().unwrap_or_default(), words.next());
    if command.is_none_or(|command| command != "run") {
        let program = program.display();
        return Err(format!(
            "the machine's options are unknown: process {process} ({program}) made its control socket and passed it on; {}",
            give("")
        ));
    }
    Ok(words.map(OsStr::to_owned).collect())
}

/// The machine's options for the new process: all but those that say where the guest came from.
fn inherited(options: &[OsString]) -> Result<Vec<OsString>, String> {
    let mut left = options.iter();
    let (mut inherited, mut flag) = (Vec::new(), OsStr::new(""));
    while let Some(option) = left.next() {
        let word = option.as_bytes();
        if word == b"--incoming" {
            left.next();
            continue;
        }
        if word.starts_with(b"--incoming=") {
            continue;
        }
        let is_flag = word.starts_with(b"--");
        if is_flag {
            flag = option;
        }
        if word.starts_with(b"fd:") || word.windows(4).any(|part| part == b"=fd:") {
            let flag = if is_flag { String::new() } else { format!("{} ", flag.display()) };
            return Err(format!(
                "{flag}{}: this descriptor was passed to the machine's process, and the new process does not have it; {}",
                option.display(),
                give(", with a path in place of fd:")
            ));
        }
        inherited.push(option.clone());
    }
    Ok(inherited)
}

fn refused(why: String) -> ClientError {
    ClientError::Address { address: "--local".into(), why }
}

/// True once a socket at `at` listens: its file is there before.
fn listens(at: &Path) -> io::Result<bool> {
    // "Num RefCount Protocol Flags Type St Inode Path", where these flags are `__SO_ACCEPTCON` (proc(5)).
    let sockets = fs::read("/proc/net/unix")?;
    let path = [b" ", at.as_os_str().as_bytes()].concat();
    let is_one = |line: &[u8]| line.ends_with(&path) && line.windows(10).any(|flags| flags == b" 00010000 ");
    Ok(sockets.split(|&byte| byte == b'\n').any(is_one))
}

/// Waits until the new process waits for the guest.
fn await_ready(new: &mut Child, at: &Path) -> Result<(), ClientError> {
    let until = Instant::now() + READY;
    while !listens(at)? {
        if let Some(status) = new.try_wait()? {
            return Err(refused(format!(
                "the new process ended ({status}) before it waited for the guest, and the guest is where it was; why is said on the \
                 machine's standard error, or here where that cannot be opened"
            )));
        }
        if Instant::now() >= until {
            return Err(refused(format!(
                "the new process does not wait for the guest after {READY:?}, and was ended; the guest is where it was"
            )));
        }
        thread::sleep(CHECK_INTERVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};

    use super::*;

    fn of(words: &[&str]) -> Result<Vec<OsString>, String> {
        let line: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), &[0]].concat()).collect();
        inherited(&options_of(7, &line)?)
    }

    #[test]
    fn the_options_are_the_machines_but_for_where_its_guest_came_from() {
        let line =
            ["minivmm", "run", "--config", "vm.toml", "--incoming", "unix:x", "--incoming=tcp:y", "--append", ""];
        assert_eq!(of(&line).unwrap(), ["--config", "vm.toml", "--append", ""]);
    }

    #[test]
    fn what_another_process_cannot_have_is_refused() {
        for (line, why, way_out) in [
            (&["minivmm", "run", "--disk", "fd:3"][..], "--disk fd:3: this descriptor", "with a path in place of fd:"),
            (&["minivmm", "run", "--net=tap=fd:3"], "--net=tap=fd:3: this descriptor", "with a path in place of fd:"),
            (&["minivmm", "run", "--net", "tap=fd:t,uso=off"], "--net tap=fd:t,uso=off: this", "in place of fd:"),
            (&["/sbin/init"], "the machine's options are unknown: process 7 (/sbin/init) made", "-- OPTION..."),
            (&[], "the machine's options are unknown: process 7 () made", "-- OPTION..."),
        ] {
            let refused = of(line).unwrap_err();
            assert!(
                refused.starts_with(why) && refused.contains(way_out) && refused.ends_with("-- OPTION..."),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_socket_listens_once_it_does() {
        let place = tempfile::tempdir().unwrap();
        let at = place.path().join("update");
        assert!(!listens(&at).unwrap());
        let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(&at).unwrap()).unwrap();
        assert!(at.exists() && !listens(&at).unwrap());
        nix::sys::socket::listen(&socket, Backlog::new(1).unwrap()).unwrap();
        assert!(listens(&at).unwrap());
        assert!(!listens(&place.path().join("date")).unwrap());
    }

    #[test]
    fn a_socket_that_cannot_be_renamed_is_reported_with_a_remedy() {
        let place = tempfile::tempdir().unwrap();
        let control = place.path().join("qmp");
        take_name(&control).unwrap();
        fs::write(place.path().join("qmp.new"), "").unwrap();
        fs::create_dir(&control).unwrap();
        let why = take_name(&control).unwrap_err();
        let command = format!("mv {0}.new {0}", control.display());
        assert!(why.contains("Is a directory") && why.ends_with(&command), "{why}");
        fs::remove_dir(&control).unwrap();
        take_name(&control).unwrap();
        assert!(control.exists() && !place.path().join("qmp.new").exists());
    }
}
