//! A live update: a new process replaces the machine's process under a running guest.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use minivmm::config::Address;
use minivmm::control::Client;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use vmstate_lab::tiny;
use vmstate_lab::vmm::unix_channel;

use super::{Running, TIMEOUT, minivmm};

/// The new process; dropping it ends the process, even if the test fails.
struct Successor(Pid);

impl Successor {
    /// Reads the process id from the command's output.
    fn of(output: &Output) -> Self {
        let said = String::from_utf8_lossy(&output.stderr);
        let number = said.split("the guest runs in process ").nth(1).and_then(|rest| rest.trim().parse().ok());
        assert!(output.status.success(), "{said}");
        Self(Pid::from_raw(number.unwrap_or_else(|| panic!("{said}"))))
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

/// The guest shows that it continued: its pass numbers go on, and its memory was right. Twice, as the second process has to be
/// replaceable, too.
#[test]
fn a_guest_runs_on_in_a_new_process_behind_the_same_socket() {
    let place = tempfile::tempdir().unwrap();
    let console = place.path().join("console");
    let serial = format!("file:{}", console.display());
    let Some(mut machine) = Running::start(&["--serial", &serial, "--share-memory", "on"], Stdio::null()) else {
        return;
    };
    machine.control();
    let socket = machine.directory.path().join("qmp");
    let control = format!("unix:{}", socket.display());
    let status = || Client::connect(&socket).unwrap().execute("query-status", json!({})).unwrap()["status"].clone();

    // A program that never waits for a guest.
    let why = minivmm(&["migrate", "--control", &control, "--local", "--program", "/bin/false"]);
    let said = String::from_utf8(why.stderr).unwrap();
    assert_eq!(why.status.code(), Some(2), "{said}");
    assert!(said.contains("before it waited for the guest, and the guest is where it was"), "{said}");
    // A machine with another memory size.
    let why = minivmm(&["migrate", "--control", &control, "--local", "--", "--memory", "32M", "--serial", &serial]);
    let said = String::from_utf8(why.stderr).unwrap();
    assert_eq!((why.status.code(), status()), (Some(1), json!("running")), "{said}");

    let first = Successor::of(&minivmm(&["migrate", "--control", &control, "--local"]));
    assert!(machine.child.wait().unwrap().success());
    assert_eq!(status(), "running");
    let second = Successor::of(&minivmm(&["migrate", "--control", &control, "--local"]));
    assert_ne!(first.0, second.0);
    assert_eq!(status(), "running");
    Client::connect(&socket).unwrap().execute("quit", json!({})).unwrap();
    let directory = machine.directory.path().to_owned();
    // The pipe ends when its last holder closes it.
    let mut said = String::new();
    machine.child.stderr.as_mut().unwrap().read_to_string(&mut said).unwrap();
    let output = std::fs::read_to_string(console).unwrap();
    let passes = tiny::passes(&output);
    assert!(passes.iter().zip(1..).all(|(&pass, number)| pass == number) && !passes.is_empty(), "{output}");
    assert!(!output.contains('E'), "{output}");
    let left: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["tiny"]);
}

/// The guest runs on where it was if its memory is this process's own.
#[test]
fn a_machine_with_private_memory_is_refused_with_the_way_out() {
    let Some(machine) = Running::start(&[], Stdio::null()) else { return };
    machine.control();
    let socket = machine.directory.path().join("qmp");
    let output = minivmm(&["migrate", "--control", &format!("unix:{}", socket.display()), "--local"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("started with --share-memory on; to another process of this host, migrate it"), "{said}");
    let status = Client::connect(&socket).unwrap().execute("query-status", json!({})).unwrap();
    assert_eq!(status["status"], "running");
}

/// Returns the page of metrics at this address; `None` if the server has disconnected the client, as it does on a busy host.
fn scrape(address: &Address) -> Option<String> {
    fn page(mut stream: impl Read + Write) -> std::io::Result<String> {
        let mut page = String::new();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
        stream.read_to_string(&mut page)?;
        Ok(page)
    }
    match address {
        Address::Unix(path) => page(UnixStream::connect(path).unwrap()).ok(),
        Address::Tcp(peer) => page(TcpStream::connect(peer).unwrap()).ok(),
        _ => unreachable!(),
    }
}

/// A monitoring system finds the guest at the same address after each update, and also after one that failed.
#[test]
fn metrics_are_served_at_the_same_address() {
    let place = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [Address::Unix(place.path().join("metrics")), Address::Tcp(free.to_string())] {
        let written = address.to_string();
        let own = ["--share-memory", "on", "--metrics", &written];
        let Some(mut machine) = Running::start(&own, Stdio::null()) else { return };
        machine.control();
        let socket = machine.directory.path().join("qmp");
        let control = format!("unix:{}", socket.display());
        let runs = || {
            let deadline = Instant::now() + TIMEOUT;
            let is_there = |page: String| page.contains("\nminivmm_guest_running 1\n");
            while !scrape(&address).is_some_and(is_there) {
                assert!(Instant::now() < deadline, "{:?}", scrape(&address));
            }
        };
        runs();
        let another_memory = ["--", "--memory", "32M", "--metrics", &written];
        let refused = minivmm(&[&["migrate", "--control", &control, "--local"], &another_memory[..]].concat());
        assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
        runs();
        let _first = Successor::of(&minivmm(&["migrate", "--control", &control, "--local"]));
        assert!(machine.child.wait().unwrap().success());
        runs();
        let second = Successor::of(&minivmm(&["migrate", "--control", &control, "--local"]));
        runs();
        Client::connect(&socket).unwrap().execute("quit", json!({})).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        while kill(second.0, None).is_ok() {
            assert!(Instant::now() < deadline, "the last process does not end");
            thread::sleep(Duration::from_millis(10));
        }
        if let Address::Unix(path) = &address {
            assert!(!path.exists(), "the last process leaves its socket's file");
        }
    }
}

/// Writes each byte of COM1 back.
const ECHOES: [u8; 17] = [
    0x66, 0xba, 0xfd, 0x03, // mov $0x3fd, %dx
    0xec, // in %dx, %al
    0xa8, 0x01, // test $1, %al
    0x74, 0xf7, // jz the first instruction
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xec, // in %dx, %al
    0xee, // out %al, %dx
    0xeb, 0xef, // jmp the first instruction
];

/// Bytes that a client writes: more than the console and the port keep.
const BYTES: usize = 96 << 10;

/// The byte at a place of the client's sequence, no control character of a console.
fn byte(at: usize) -> u8 {
    b'0' + (at * 7 + at / 64) as u8 % 75
}

/// A client writes a sequence to the guest's console, which echoes it, and reads it back, through two updates. It does not read
/// at first, so that bytes are under way in both directions at each update.
fn echoes_through_updates(machine: &mut Running, mut to_guest: File, mut from_guest: File) {
    machine.control();
    let control = format!("unix:{}/qmp", machine.directory.path().display());
    let writer = thread::spawn(move || {
        for at in (0..BYTES).step_by(64) {
            to_guest.write_all(&(at..at + 64).map(byte).collect::<Vec<_>>()).unwrap();
        }
        // The client stays connected.
        to_guest
    });
    // Long enough for the guest to have echoed more than a pipe takes.
    thread::sleep(Duration::from_secs(1));
    let first = Successor::of(&minivmm(&["migrate", "--control", &control, "--local"]));
    assert!(machine.child.wait().unwrap().success());
    let (sender, read) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok(length @ 1..) = from_guest.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut got = Vec::new();
    let until = |got: &mut Vec<u8>, len| {
        while got.len() < len {
            got.extend(read.recv_timeout(TIMEOUT).unwrap_or_else(|error| panic!("{error} after {} bytes", got.len())));
        }
    };
    until(&mut got, BYTES / 4);
    let _second = Successor::of(&minivmm(&["migrate", "--control", &control, "--local"]));
    until(&mut got, BYTES);
    let wrong = got.iter().enumerate().find(|(at, got)| **got != byte(*at));
    assert_eq!((got.len(), wrong), (BYTES, None));
    drop(writer.join().unwrap());
    drop(first);
}

fn echoing(serial: &str, stdin: Stdio) -> Option<Running> {
    Running::start_kernel(&tiny::with_code(&ECHOES), &["--serial", serial, "--share-memory", "on"], stdin)
}

/// The client holds the pseudo-terminal open all the time.
#[test]
fn a_client_of_a_pseudo_terminal_loses_no_byte() {
    let Some(mut machine) = echoing("pty", Stdio::null()) else { return };
    let mut line = String::new();
    BufReader::new(machine.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let path = line.trim().strip_prefix("serial console on ").unwrap_or_else(|| panic!("{line}"));
    let terminal = File::options().read(true).write(true).open(Path::new(path)).unwrap();
    echoes_through_updates(&mut machine, terminal.try_clone().unwrap(), terminal);
}

/// Standard input and output of the machine's process are pipes.
#[test]
fn a_client_at_the_other_end_of_pipes_loses_no_byte() {
    let (input, to_guest) = nix::unistd::pipe().unwrap();
    let Some(mut machine) = echoing("stdio", input.into()) else { return };
    let from_guest = OwnedFd::from(machine.child.stdout.take().unwrap());
    // The smallest pipe of Linux, a page, so that output waits in the old process.
    fcntl(&from_guest, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    echoes_through_updates(&mut machine, to_guest.into(), from_guest.into());
}

/// QEMU's sequence of commands (docs/devel/migration/CPR.rst): two `-incoming`, the parameter `mode`, and `migrate` with two
/// channels.
#[test]
fn a_guest_is_handed_over_by_qemus_commands() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let console = at("console");
    let serial = format!("file:{}", console.display());
    let options = ["--serial", &serial, "--share-memory", "on"];
    let Some(machine) = Running::start(&options, Stdio::null()) else { return };
    let mut old = machine.control();
    let [main, cpr] = ["main", "cpr"].map(|name| unix_channel(name, &at(name)));
    let migrate = |client: &mut Client, channels: &[&serde_json::Value]| {
        client.execute("migrate", json!({"channels": channels})).map_err(|error| error.to_string())
    };
    let mode = |client: &mut Client, mode: &str| client.execute("migrate-set-parameters", json!({"mode": mode}));

    // Without the mode or the channel nothing begins.
    let why = migrate(&mut old, &[&main, &cpr]).unwrap_err();
    assert!(why.contains("set the parameter mode before"), "{why}");
    assert!(mode(&mut old, "cpr-reboot").is_err());
    mode(&mut old, "cpr-transfer").unwrap();
    let parameters = old.execute("query-migrate-parameters", json!({})).unwrap();
    assert_eq!(parameters["mode"], "cpr-transfer");
    let why = migrate(&mut old, &[&main]).unwrap_err();
    assert!(why.contains("missing 'cpr' migration channel"), "{why}");
    let why = migrate(&mut old, &[&main, &main, &cpr]).unwrap_err();
    assert!(why.contains("Channel list has more than one main entry"), "{why}");
    let why = migrate(&mut old, &[&cpr]).unwrap_err();
    assert!(why.contains("Channel list has no main entry"), "{why}");

    // No process listens at the channels: the migration fails, and the guest continues here.
    let ended = |client: &mut Client| {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let now = client.execute("query-migrate", json!({})).unwrap();
            if matches!(now["status"].as_str(), Some("completed" | "failed")) {
                return now;
            }
            assert!(Instant::now() < deadline, "{now}");
            thread::sleep(Duration::from_millis(5));
        }
    };
    migrate(&mut old, &[&main, &cpr]).unwrap();
    let end = ended(&mut old);
    assert!(end["error-desc"].as_str().unwrap().contains("cpr channel unix:"), "{end}");
    assert_eq!(old.execute("query-status", json!({})).unwrap()["status"], "running");

    let new = Command::new(env!("CARGO_BIN_EXE_minivmm"))
        .args(["run", "--memory", "64M", "--control", &format!("unix:{}", at("qmp").display())])
        .args(options)
        .args(["--incoming", &format!("unix:{}", at("main").display()), "--incoming", &cpr.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut new = Running { child: new, directory: tempfile::tempdir().unwrap() };
    vmstate_lab::wait::until("nobody waits", || vmstate_lab::vmm::listens(new.child.id(), &at("cpr")));
    migrate(&mut old, &[&main, &cpr]).unwrap();
    let end = ended(&mut old);
    assert_eq!(
        (&end["status"], &end["ram"]["normal"], &end["ram"]["duplicate"]),
        (&json!("completed"), &json!(0), &json!(0))
    );
    let passes = || tiny::passes(&std::fs::read_to_string(&console).unwrap());
    let before = passes().len();
    vmstate_lab::wait::until("no passes", || passes().len() > before + 2);
    assert!(passes().iter().zip(1..).all(|(&pass, number)| pass == number));
    let mut there = Client::connect(&at("qmp")).unwrap();
    assert_eq!(there.execute("query-status", json!({})).unwrap()["status"], "running");
    assert_eq!(old.execute("query-status", json!({})).unwrap()["status"], "postmigrate");
    there.execute("quit", json!({})).unwrap();
    assert!(new.child.wait().unwrap().success());
}
