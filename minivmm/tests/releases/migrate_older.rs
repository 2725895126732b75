//! `minivmm migrate --target-schema` between two processes: the guest runs on at the destination, or is refused with a message
//! before a byte is sent.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use minivmm::control::Client;
use serde_json::{Value, json};
use vmstate_lab::process::Process;
use vmstate_lab::tiny;
use vmstate_lab::wait::{TIMEOUT, find, until};

/// `minivmm run`; dropping it kills the process.
struct Machine {
    _process: Process,
    control: PathBuf,
    console: PathBuf,
}

impl Machine {
    fn start(dir: &Path, name: &str, arguments: &[&str]) -> Self {
        let (control, console) = (dir.join(name), dir.join(format!("{name}.console")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command
            .args(["run", "--memory", "64M", "--serial", &format!("file:{}", console.display())])
            .args(["--control", &format!("unix:{}", control.display())])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        Self { _process: Process::start(&mut command).unwrap(), control, console }
    }

    fn client(&self) -> Client {
        find("control socket", || Client::connect(&self.control).ok())
    }

    /// Waits for `more` passes of the guest.
    fn await_passes(&self, more: usize) {
        let passes = || tiny::passes(&fs::read_to_string(&self.console).unwrap_or_default()).len();
        let before = passes();
        until("passes of the guest", || passes() >= before + more);
    }

    fn status(&self) -> Value {
        self.client().execute("query-status", json!({})).unwrap()["status"].clone()
    }

    /// Runs `minivmm migrate` in the folder of the schema.
    fn migrate(&self, schema: &Path, to: &Path) -> Output {
        Command::new(env!("CARGO_BIN_EXE_minivmm"))
            .current_dir(schema.parent().unwrap())
            .args(["migrate", "--control", &format!("unix:{}", self.control.display()), "--target-schema"])
            .arg(schema.file_name().unwrap())
            .arg(format!("unix:{}", to.display()))
            .output()
            .unwrap()
    }
}

/// Starts a machine with the tiny guest, in a folder of its own; prints that the test is skipped and returns `None` without
/// KVM.
fn source() -> Option<(tempfile::TempDir, Machine)> {
    if let Err(error) = minivmm::kvm::open() {
        vmstate_lab::skip::skip(error);
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("tiny");
    fs::write(&kernel, tiny::bzimage()).unwrap();
    let machine = Machine::start(
        dir.path(),
        "here",
        &["--kernel", kernel.to_str().unwrap(), "--append", &tiny::command_line(16, 4096)],
    );
    machine.await_passes(1);
    // A long limit, for a busy host.
    let limit = json!({"downtime-limit": TIMEOUT.as_millis() as u64});
    machine.client().execute("migrate-set-parameters", limit).unwrap();
    Some((dir, machine))
}

fn read(schema: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(schema).unwrap()).unwrap()
}

/// Returns the command's last line, after its progress.
fn said(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    text.split_inclusive('\n').skip_while(|line| line.starts_with("phase=")).collect()
}

#[test]
fn a_guest_goes_to_an_older_release_by_command() {
    let Some((dir, here)) = source() else { return };
    let incoming_socket = dir.path().join("incoming");
    let there = Machine::start(dir.path(), "there", &["--incoming", &format!("unix:{}", incoming_socket.display())]);
    // The machine listens for a source before it serves clients.
    there.client();
    // Processor, chips and clocks of the second release, which is locked; the other devices are the current ones.
    let today = dir.path().join("today.json");
    here.client().execute("dump-schema", json!({"file": today})).unwrap();
    let mut schema = read(&today);
    let locked = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/locks/machine/2/schema.json");
    schema.as_object_mut().unwrap().extend(read(&locked).as_object().unwrap().clone());
    let release = dir.path().join("release.json");
    fs::write(&release, schema.to_string()).unwrap();
    let output = here.migrate(&release, &incoming_socket);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).starts_with(&format!("migrated to unix:{}", incoming_socket.display())), "{}", said(&output));
    there.await_passes(2);
    assert_eq!(there.status(), "running");
}

#[test]
fn state_that_the_release_cannot_have_is_reported_before_a_byte_is_sent() {
    let Some((dir, here)) = source() else { return };
    let schema = dir.path().join("today.json");
    here.client().execute("dump-schema", json!({"file": schema})).unwrap();
    let mut lacking = read(&schema);
    lacking.as_object_mut().unwrap().remove("kvmclock").expect("a machine has it");
    let release = dir.path().join("release.json");
    fs::write(&release, lacking.to_string()).unwrap();

    let trap = dir.path().join("trap");
    let listener = UnixListener::bind(&trap).unwrap();
    listener.set_nonblocking(true).unwrap();
    let output = here.migrate(&release, &trap);
    assert_eq!(output.status.code(), Some(1));
    let expected = "minivmm: the migration failed: the release for which it is saved cannot have this machine: kvmclock/0: this \
                    section is not known there: leave the device out of machines that go there; the guest runs on where it was\n";
    assert_eq!(said(&output), expected);
    if let Ok((mut connection, _)) = listener.accept() {
        let mut sent = Vec::new();
        connection.set_nonblocking(false).unwrap();
        connection.read_to_end(&mut sent).unwrap();
        assert_eq!(sent, b"");
    }

    fs::write(&release, "{").unwrap();
    let output = here.migrate(&release, &trap);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("release.json"), "{}", said(&output));
    let output = here.migrate(&dir.path().join("nowhere.json"), &trap);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("nowhere.json"), "{}", said(&output));
    assert!(listener.accept().is_err(), "nothing begins");
    // The guest runs on undisturbed.
    here.await_passes(2);
    assert_eq!(here.status(), "running");
}
