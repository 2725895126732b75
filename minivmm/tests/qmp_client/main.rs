//! The public client of QEMU's protocol, `qemu.qmp` of PyPI, controls whole migrations of the tiny guest; so does its
//! `qmp-shell`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use vmstate_lab::process::Process;
use vmstate_lab::python::Python;
use vmstate_lab::wait::until;
use vmstate_lab::{skip, tiny};

/// Finds Python with the client; prints that the test is skipped and returns `None` if it or KVM is missing.
fn python() -> Option<Python> {
    let ready = minivmm::kvm::open().map_err(|error| error.to_string());
    let ready = ready.and_then(|_| Python::with_qmp_client().map_err(|error| error.to_string()));
    ready.map_err(skip::skip).ok()
}

/// Starts a machine with the tiny guest, or one that waits for it at `incoming`; its QMP socket exists on return.
fn start(folder: &TempDir, name: &str, incoming: Option<&str>) -> (Process, PathBuf) {
    let [kernel, disk] = ["kernel", "disk"].map(|file| folder.path().join(file));
    let control = folder.path().join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.args(["run", "--memory", "16M", "--cpus", "2", "--serial", "none", "--disk"]).arg(&disk);
    command.arg("--control").arg(format!("unix:{}", control.display()));
    match incoming {
        Some(place) => command.args(["--incoming", place]),
        None => {
            fs::write(&kernel, tiny::bzimage()).unwrap();
            fs::write(&disk, [0; 4096]).unwrap();
            command.arg("--kernel").arg(&kernel).args(["--append", &tiny::command_line_with_disk(16, 4096)])
        }
    };
    let process = Process::start(command.stdin(Stdio::null())).unwrap();
    until("control socket", || control.exists());
    (process, control)
}

#[test]
fn the_public_client_migrates_a_guest_twice() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let incoming = ["middle-incoming", "end-incoming"].map(|name| folder.path().join(name));
    let machines = [
        start(&folder, "source", None),
        start(&folder, "middle", Some(&format!("unix:{}", incoming[0].display()))),
        start(&folder, "end", Some("defer")),
    ];
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qmp_client/migrate.py");
    let sockets = machines.iter().map(|(_, socket)| socket);
    let output = python.command().arg(script).args(sockets).args(&incoming).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    print!("{said}");
    for (mut process, _) in machines {
        assert!(process.child().wait().unwrap().success());
    }
}

#[test]
fn its_shell_asks_and_is_answered() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (mut machine, socket) = start(&folder, "source", None);
    let mut shell = python.command();
    shell.args(["-m", "qemu.qmp.qmp_shell"]).arg(&socket);
    // `qmp-shell` keeps its history in the home directory.
    shell.env("HOME", folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    let lines = "query-uuid\nmigrate-set-parameters downtime-limit=77\nquery-migrate-parameters\nnope\nquit\n";
    shell.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    for answer in ["00000000-0000-0000-0000-000000000000", "\"downtime-limit\": 77", "CommandNotFound"] {
        assert!(said.contains(answer), "{answer} is not in {said}");
    }
    assert!(machine.child().wait().unwrap().success());
}
