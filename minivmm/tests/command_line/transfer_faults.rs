//! Faults of QEMU's mode `cpr-transfer` until the commit: of the channel that passes the guest's memory, and of the destination,
//! which dies, ends or is silent; and what users do meanwhile. After each the guest goes on in the old process with its memory and
//! its console, unless the user ends that process, and in the end it is handed over.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use minivmm::control::Client;
use nix::sys::signal::Signal;
use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};
use vmstate_lab::tiny;
use vmstate_lab::wait::until;

use super::transfer::{COUNTS, begin, end, start, unix, watch};
use super::{Running, TIMEOUT};

/// Bytes of the main channel after which the destination dies: during the handshake, among the sections of RAM, and among those
/// of the devices. The test compares them with the length of a whole stream.
const DEATHS: [u64; 4] = [1, 100, 1000, 4000];

/// The destination's `PONG 5` on the return path: everything is loaded.
const READY: &[u8] = b"\0\x02\0\x04\0\0\0\x05";

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
        let (reached, at_moment) = channel();
        let (release, released) = channel::<()>();
        let fault = move || {
            reached.send(()).unwrap();
            // An error: the sender is dropped.
            let _ = released.recv();
        };
        let (destination, relay);
        if moment == Moment::Passed {
            let (cpr, listener) = self.listen("cpr");
            begin(&mut self.control, &self.place.path().join("nobody"), &cpr);
            let mut receiver = accept(&listener);
            destination = None;
            relay = thread::spawn(move || {
                receiver.read_to_end(&mut Vec::new()).unwrap();
                fault();
            });
        } else {
            let (process, dir) = self.destination();
            let (main, listener) = self.listen("main");
            begin(&mut self.control, &main, &dir.path().join("cpr"));
            let source = accept(&listener);
            destination = Some(process);
            let there = dir.path().join("main");
            relay = thread::spawn(move || {
                let _dir = dir;
                if moment == Moment::BeforeMain {
                    return fault();
                }
                pass(&source, &UnixStream::connect(there).unwrap(), moment, fault);
            });
        }
        at_moment.recv_timeout(TIMEOUT).unwrap();
        Held { destination, release, relay }
    }

    /// Checks that the guest has never run in the new process.
    fn assert_never_ran_there(&self) {
        let new = std::fs::read_to_string(self.place.path().join("new")).unwrap_or_default();
        assert_eq!(new, "");
    }

    /// Hands the guest over through a relay of the main channel, which ends the destination at `death`; returns the number of
    /// bytes that the source has sent, and the destination if it is alive.
    fn relay(&mut self, death: Moment) -> (u64, Option<Running>) {
        let (destination, dir) = self.destination();
        let (main, listener) = self.listen("main");
        begin(&mut self.control, &main, &dir.path().join("cpr"));
        let source = accept(&listener);
        if death == Moment::BeforeMain {
            drop(destination);
            return (0, None);
        }
        let there = UnixStream::connect(dir.path().join("main")).unwrap();
        let destination = Mutex::new(Some(destination));
        let sent = pass(&source, &there, death, || drop(destination.lock().unwrap().take()));
        (sent, destination.into_inner().unwrap())
    }
}

/// A hand-over in which nothing moves.
struct Held {
    /// The new process, where there is one.
    destination: Option<Running>,
    release: Sender<()>,
    relay: JoinHandle<()>,
}

impl Held {
    /// Closes the connections, and waits until the new process has ended.
    fn end(self) {
        drop(self.release);
        self.relay.join().unwrap();
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
    /// The descriptors are there; the destination has no main channel yet.
    BeforeMain,
    /// This many bytes of the main channel have arrived.
    After(u64),
    /// Everything is loaded, and the answer that says so is lost.
    Ready,
    /// Never.
    None,
}

fn accept(listener: &UnixListener) -> UnixStream {
    let (socket, _) = listener.accept().unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// Relays both directions until the sockets are closed. At `moment` the relay calls `fault`, and then closes them. Returns the number
/// of bytes that the source has sent.
fn pass(source: &UnixStream, there: &UnixStream, moment: Moment, fault: impl Fn() + Send) -> u64 {
    let close = || [source, there].into_iter().for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
    let fault = &Mutex::new(fault);
    let fails = || {
        (fault.lock().unwrap())();
        close();
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            copy(there, source, |bytes, _| match moment {
                Moment::Ready if bytes.windows(READY.len()).any(|window| window == READY) => {
                    fails();
                    0
                }
                _ => bytes.len(),
            });
            let _ = source.shutdown(Shutdown::Write);
        });
        let sent = copy(source, there, |bytes, before| match moment {
            Moment::After(limit) if before + bytes.len() as u64 >= limit => (limit - before) as usize,
            _ => bytes.len(),
        });
        if let Moment::After(_) = moment {
            fails();
        }
        let _ = there.shutdown(Shutdown::Write);
        sent
    })
}

/// Copies bytes, of each piece as many as `passes` says from its bytes and the number of bytes before; fewer than all end the
/// copy. Returns the number of bytes copied.
fn copy(mut from: &UnixStream, mut to: &UnixStream, passes: impl Fn(&[u8], u64) -> usize) -> u64 {
    let (mut buffer, mut copied) = (vec![0; 1 << 16], 0);
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let passed = passes(&buffer[..len], copied);
        if to.write_all(&buffer[..passed]).is_err() {
            break;
        }
        copied += passed as u64;
        if passed < len {
            break;
        }
    }
    copied
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
    let mut message = Vec::new();
    cpr.read_to_end(&mut message).unwrap();
    assert!(message.starts_with(b"QCPR\0\0\0\x01"));
    drop(cpr);
    source.assert_stayed("closed after the message, and nobody waits for the migration");
    let mut cpr = connected(&mut source);
    cpr.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
    let why = source.assert_stayed("an answer");
    assert!(why.contains("the receiver of the descriptors is no minivmm or QEMU"), "{why}");
    goes(source);
}

#[test]
fn a_destination_that_gets_no_descriptors_ends() {
    let Some(source) = Source::new() else { return };
    for (message, why) in
        [(&b"GET / HTTP/1.1\r\n\r\n"[..], "garbage"), (b"QCPR\0\0\0\x01\x01\0\0\0\x05ra", "a part"), (b"", "nothing")]
    {
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
fn a_guest_stays_when_its_destination_dies_before_the_commit() {
    let Some(mut source) = Source::new() else { return };
    for death in [Moment::BeforeMain, Moment::Ready].into_iter().chain(DEATHS.map(Moment::After)) {
        source.relay(death);
        source.assert_stayed(&format!("{death:?}"));
    }
    let sent = goes(source);
    assert!(DEATHS.iter().all(|death| *death < sent), "a whole stream has {sent} bytes");
}

/// Moments from the first message to the last answer before the commit. After 4000 bytes the guest is paused.
const MOMENTS: [Moment; 6] =
    [Moment::Passed, Moment::BeforeMain, Moment::After(1), Moment::After(100), Moment::After(4000), Moment::Ready];

#[test]
fn a_guest_stays_when_its_hand_over_is_cancelled() {
    let Some(mut source) = Source::new() else { return };
    for moment in MOMENTS {
        let held = source.hold(moment);
        source.control.execute("migrate_cancel", json!({})).unwrap();
        source.assert_ended(&format!("{moment:?}"), "cancelled");
        held.end();
        source.assert_never_ran_there();
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
        json!({"channels": [unix("main", &path), unix("cpr", &path)]}),
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
        for moment in [Moment::Passed, Moment::BeforeMain, Moment::After(100), Moment::After(4000), Moment::Ready] {
            scope.spawn(move || {
                let Some(mut source) = Source::new() else { return };
                let held = source.hold(moment);
                let why = source.assert_stayed(&format!("{moment:?}"));
                let expected = match moment {
                    Moment::Passed => "does not wait for the migration within",
                    Moment::After(4000) | Moment::Ready => "the guest is paused for",
                    _ => "is silent",
                };
                assert!(why.contains(expected), "{moment:?}: {why}");
                held.end();
                source.assert_never_ran_there();
                goes(source);
            });
        }
    });
}

#[test]
fn a_guest_stays_when_a_user_ends_its_destination() {
    let Some(mut source) = Source::new() else { return };
    for moment in MOMENTS.into_iter().filter(|moment| *moment != Moment::Passed) {
        let mut held = source.hold(moment);
        let mut destination = held.destination.take().unwrap();
        destination.signal(Signal::SIGTERM);
        until("end of the destination", || destination.child.try_wait().unwrap().is_some());
        held.end();
        source.assert_stayed(&format!("{moment:?}"));
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
        held.end();
        source.assert_never_ran_there();
    }
}

/// Hands the guest over to a process that takes it; returns the number of bytes that were sent for that.
fn goes(mut source: Source) -> u64 {
    let (sent, destination) = source.relay(Moment::None);
    let figures = end(&mut source.control);
    assert_eq!(figures["status"], "completed", "{figures}");
    watch(&source.place.path().join("new"));
    drop(destination);
    drop(source.process);
    sent
}
