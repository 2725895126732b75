//! Faults of QEMU's mode `cpr-transfer` before the main channel reaches the destination: of the channel that passes the descriptors, and of
//! the destination, which dies, ends or is silent; and what users do meanwhile. After each the guest goes on in the old process
//! with its memory and its console, unless the user ends that process, and in the end it is handed over. The faults of the
//! migration that follows are in the fault matrix (`tests/lab/src/faults/transfer.rs`).

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use minivmm::control::Client;
use nix::sys::signal::Signal;
use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};
use vmstate_lab::tiny;
use vmstate_lab::vmm::unix_channel;
use vmstate_lab::wait::until;

use super::transfer::{COUNTS, begin, end, start, watch};
use super::{Running, TIMEOUT};

/// A guest in the old process.
struct Source {
    place: tempfile::TempDir,
    process: Running,
    control: Client,
    console: PathBuf,
}

impl Source {
    /// `None` without KVM.
    fn new() -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let console = place.path().join("old");
        let options = ["--share-memory", "on", "--serial", &format!("file:{}", console.display())];
        let process = Running::start_kernel(&tiny::with_code(&COUNTS), &options, Stdio::null())?;
        let control = process.control();
        watch(&console);
        Some(Self { place, process, control, console })
    }

    /// A socket of this name at which the test waits in the place of the destination.
    fn listen(&self, name: &str) -> (PathBuf, UnixListener) {
        let path = self.place.path().join(name);
        let _ = std::fs::remove_file(&path);
        (path.clone(), UnixListener::bind(path).unwrap())
    }

    /// Starts a new process, which prints to the console `new`; its sockets are in the returned folder.
    fn destination(&self) -> (Running, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        let console = format!("file:{}", self.place.path().join("new").display());
        command.args(["run", "--memory", "64M", "--serial", &console]);
        (start(command, "--incoming", dir.path()), dir)
    }

    /// Checks that the hand-over has failed, and that the guest goes on here with its memory; returns why it failed.
    fn assert_stayed(&mut self, fault: &str) -> String {
        self.assert_ended(fault, "failed")
    }

    /// Like [`assert_stayed`](Self::assert_stayed), for a hand-over with this outcome.
    fn assert_ended(&mut self, fault: &str, status: &str) -> String {
        let figures = end(&mut self.control);
        assert_eq!(figures["status"], status, "{fault}: {figures}");
        watch(&self.console);
        figures["error-desc"].as_str().unwrap_or_default().to_owned()
    }

    /// Hands the guest over up to `moment`, at which nothing moves any more.
    fn hold(&mut self, moment: Moment) -> Held {
        match moment {
            Moment::Passed => {
                let (cpr, listener) = self.listen("cpr");
                begin(&mut self.control, &self.place.path().join("nobody"), &cpr);
                let mut channel = accept(&listener);
                channel.read_to_end(&mut Vec::new()).unwrap();
                Held { destination: None, _channel: channel }
            }
            Moment::BeforeMain => {
                let (process, dir) = self.destination();
                let (main, listener) = self.listen("main");
                begin(&mut self.control, &main, &dir.path().join("cpr"));
                Held { destination: Some(process), _channel: accept(&listener) }
            }
        }
    }

    /// Checks that the guest has never run in the new process.
    fn assert_never_ran_there(&self) {
        let new = std::fs::read_to_string(self.place.path().join("new")).unwrap_or_default();
        assert_eq!(new, "");
    }
}

/// A hand-over in which nothing moves; dropping it ends the new process.
struct Held {
    /// The new process, where there is one.
    destination: Option<Running>,
    /// The source's last connection.
    _channel: UnixStream,
}

impl Held {
    /// Waits until the new process has ended, and closes the connection.
    fn end(self) {
        if let Some(mut destination) = self.destination {
            until("end of the destination", || destination.child.try_wait().unwrap().is_some());
        }
    }
}

/// Moment of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The descriptors are passed, and their receiver does not wait for the migration yet.
    Passed,
    /// The destination has the descriptors, and waits for the main channel, which the source has connected to another process.
    BeforeMain,
}

const MOMENTS: [Moment; 2] = [Moment::Passed, Moment::BeforeMain];

fn accept(listener: &UnixListener) -> UnixStream {
    let (socket, _) = listener.accept().unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

#[test]
fn a_guest_stays_when_the_channel_of_its_descriptors_fails() {
    let Some(mut source) = Source::new() else { return };
    let nowhere = source.place.path().join("nobody");
    let connected = |source: &mut Source| {
        let (cpr, listener) = source.listen("cpr");
        begin(&mut source.control, &nowhere, &cpr);
        accept(&listener)
    };
    drop(connected(&mut source));
    source.assert_stayed("closed before the message");
    let mut cpr = connected(&mut source);
    cpr.read_exact(&mut [0; 20]).unwrap();
    drop(cpr);
    source.assert_stayed("closed in the middle of the message");
    let mut cpr = connected(&mut source);
    cpr.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
    let why = source.assert_stayed("an answer");
    assert!(why.contains("the receiver of the descriptors is no minivmm or QEMU"), "{why}");
    goes(source);
}

#[test]
fn a_destination_that_gets_no_descriptors_ends() {
    let Some(source) = Source::new() else { return };
    for (message, why) in [(&b"GET / HTTP/1.1\r\n\r\n"[..], "garbage"), (b"", "nothing")] {
        let (mut destination, dir) = source.destination();
        UnixStream::connect(dir.path().join("cpr")).unwrap().write_all(message).unwrap();
        let mut code = None;
        until("end of the destination", || {
            code = destination.child.try_wait().unwrap();
            code.is_some()
        });
        assert_eq!(code.unwrap().code(), Some(2), "{why}");
        watch(&source.console);
    }
    goes(source);
}

#[test]
fn a_guest_stays_when_its_hand_over_is_cancelled() {
    let Some(mut source) = Source::new() else { return };
    for moment in MOMENTS {
        let held = source.hold(moment);
        source.control.execute("migrate_cancel", json!({})).unwrap();
        source.assert_ended(&format!("{moment:?}"), "cancelled");
        source.assert_never_ran_there();
        drop(held);
    }
    goes(source);
}

/// Nobody accepts the connection, and the kernel has no room for it.
#[test]
fn a_connection_for_the_descriptors_that_nobody_accepts_can_be_cancelled() {
    let Some(mut source) = Source::new() else { return };
    let path = source.place.path().join("full");
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    for command in [
        json!({"channels": [unix_channel("main", &path), unix_channel("cpr", &path)]}),
        json!({"uri": format!("local:{}", path.display())}),
    ] {
        let mode = if command.get("uri").is_some() { "normal" } else { "cpr-transfer" };
        source.control.execute("migrate-set-parameters", json!({"mode": mode})).unwrap();
        source.control.execute("migrate", command).unwrap();
        source.control.execute("migrate_cancel", json!({})).unwrap();
        source.assert_ended("nobody accepts", "cancelled");
    }
    goes(source);
}

#[test]
fn a_guest_stays_when_its_destination_is_silent() {
    thread::scope(|scope| {
        for (moment, expected) in
            [(Moment::Passed, "does not wait for the migration within"), (Moment::BeforeMain, "is silent")]
        {
            scope.spawn(move || {
                let Some(mut source) = Source::new() else { return };
                let held = source.hold(moment);
                let why = source.assert_stayed(&format!("{moment:?}"));
                assert!(why.contains(expected), "{moment:?}: {why}");
                held.end();
                source.assert_never_ran_there();
                goes(source);
            });
        }
    });
}

#[test]
fn a_guest_stays_when_its_destination_ends() {
    let Some(mut source) = Source::new() else { return };
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let held = source.hold(Moment::BeforeMain);
        held.destination.as_ref().unwrap().signal(signal);
        held.end();
        source.assert_stayed(signal.as_str());
        source.assert_never_ran_there();
    }
    goes(source);
}

#[test]
fn a_guest_ends_with_its_process_when_the_user_ends_that() {
    for moment in MOMENTS {
        let Some(mut source) = Source::new() else { return };
        let held = source.hold(moment);
        source.control.execute("quit", json!({})).unwrap();
        let mut code = None;
        until("end of the source", || {
            code = source.process.child.try_wait().unwrap();
            code.is_some()
        });
        assert_eq!(code.unwrap().code(), Some(0), "{moment:?}");
        source.assert_never_ran_there();
        drop(held);
    }
}

/// Hands the guest over to a process that takes it.
fn goes(mut source: Source) {
    let (_destination, dir) = source.destination();
    begin(&mut source.control, &dir.path().join("main"), &dir.path().join("cpr"));
    let figures = end(&mut source.control);
    assert_eq!(figures["status"], "completed", "{figures}");
    watch(&source.place.path().join("new"));
}
