//! A live update: a new process replaces the machine's process under a running guest.

use std::io::Read;
use std::process::{Output, Stdio};

use minivmm::control::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use vmstate_lab::tiny;

use super::{Running, minivmm};

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

/// Options that only one process can use are refused with the flag and a remedy, and the guest runs on.
#[test]
fn what_the_new_process_cannot_have_is_refused_with_the_way_out() {
    let place = tempfile::tempdir().unwrap();
    let metrics = format!("unix:{}", place.path().join("metrics").display());
    let Some(machine) = Running::start(&["--metrics", &metrics], Stdio::null()) else { return };
    machine.control();
    let socket = machine.directory.path().join("qmp");
    let control = format!("unix:{}", socket.display());
    let refused = |arguments: &[&str]| {
        let output = minivmm(&[&["migrate", "--control", &control, "--local"], arguments].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        println!("{:?} {said}", output.status.code());
        (output.status.code(), said)
    };
    let (code, said) = refused(&[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("--metrics: the machine's process listens there") && said.trim_end().ends_with("-- OPTION..."),
        "{said}"
    );
    // A machine with private memory.
    let (code, said) = refused(&["--", "--memory", "16M"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("started with --share-memory on; to another process of this host, migrate it"), "{said}");
    let status = Client::connect(&socket).unwrap().execute("query-status", json!({})).unwrap();
    assert_eq!(status["status"], "running");
}
