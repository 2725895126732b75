//! The built command: exit codes, standard output and standard error.

mod backups;
mod connections;
mod first_hour;
mod observe;
mod operate;
mod postcopy;
mod queries;
mod report;
mod snapshots;
mod transfer;
mod transfer_faults;
mod update;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use minivmm::config::Address;
use minivmm::control::{Client, Server};
use minivmm::vm::{AnyRequest, Handle, Next, ParameterChange, Published, Request, RunState, Terms};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use serde_json::json;
use vmstate::migrate::{Downtime, ParameterValue, Phase, SourcePhase};

const TIMEOUT: Duration = Duration::from_secs(60);

fn minivmm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_minivmm")).args(arguments).output().unwrap()
}

#[test]
fn a_mistake_is_one_line_on_stderr_and_exit_code_2() {
    for arguments in [&["run", "--kernel", "/nowhere/vmlinuz"][..], &["run", "--cpus", "0"], &["--nonsense"], &[]] {
        let output = minivmm(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(text.starts_with("minivmm: ") && text.lines().count() == 1, "{arguments:?}: {text}");
    }
}

#[test]
fn help_and_version_are_no_mistakes() {
    for arguments in [["--help"], ["--version"]] {
        let output = minivmm(&arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty() && !output.stdout.is_empty());
    }
}

/// The lab's program mounts, powers off and runs programs in its own machines. The product must not contain these parts.
#[test]
fn the_executable_has_no_part_of_the_lab() {
    let executable = std::fs::read(env!("CARGO_BIN_EXE_minivmm")).unwrap();
    let has = |text: &str| executable.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("Run a virtual machine, or receive one"), "the help is in the executable as it is shown");
    for part in ["lab-init", "lab-exec", "lab: job ended with", "lab: ready"] {
        assert!(!has(part), "{part:?} is in the executable");
    }
}

#[test]
fn the_demo_of_earlier_releases_is_named() {
    let output = minivmm(&["demo", "--guest", "tiny"]);
    assert_eq!(output.status.code(), Some(2));
    let expected = "minivmm: the demo is a program of its own: run `cargo demo` in minivmm's source tree\n";
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
}

fn ends(shared: &Published, phase: SourcePhase, error: Option<&str>) {
    shared.update_migration(|info| (info.phase, info.error) = (Phase::Source(phase), error.map(Into::into)));
}

/// A control socket without a machine; `script` plays the migration after `migrate`.
fn machine(script: fn(&Published)) -> (tempfile::TempDir, Server, Receiver<Request>) {
    let directory = tempfile::tempdir().unwrap();
    let (handle, mut queue, shared) = Handle::new(RunState::Running);
    let (seen, requests_seen) = channel();
    thread::spawn(move || {
        while let Next::Asked((AnyRequest::User(request), answer)) = queue.next(&|| None) {
            let _ = seen.send(request.clone());
            match request {
                Request::Migrate(..) => script(&shared),
                Request::MigrateResume(_) => {
                    shared.update_migration(|info| info.phase = Phase::Source(SourcePhase::Completed))
                }
                Request::MigrateCancel => ends(&shared, SourcePhase::Cancelled, None),
                _ => {}
            }
            let _ = answer.send(Ok(()));
        }
    });
    let server = Server::bind(&directory.path().join("qmp"), handle).unwrap();
    (directory, server, requests_seen)
}

fn migrate(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.args(["migrate", "--control", &format!("unix:{}/qmp", directory.display()), "unix:/run/there"]);
    command
}

#[test]
fn migrate_waits_for_the_end_and_reports_it() {
    let (directory, _server, requests) = machine(|shared| {
        shared.update_migration(|info| {
            info.phase = Phase::Source(SourcePhase::Completed);
            info.figures.elapsed = Duration::from_millis(1500);
            let mut downtime = Downtime::default();
            downtime.commit = Duration::from_millis(12);
            info.figures.downtime = Some(downtime);
            info.figures.bytes = 300 << 20;
            info.figures.slowdown.throttled = Duration::from_millis(42);
            info.figures.slowdown.rehearsed = Duration::from_millis(6);
        });
    });
    let output = migrate(directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "migrated to unix:/run/there: 300 MiB in 1.5 s, downtime 12 ms, guest slowed by 3.2 %\n"
    );
    assert_eq!(requests.recv().unwrap(), Request::Migrate(Address::Unix("/run/there".into()), Terms::default()));

    let (directory, _server, _requests) =
        machine(|shared| ends(shared, SourcePhase::Failed, Some("connection refused")));
    let output = migrate(directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "minivmm: the migration failed: connection refused; the guest runs on where it was\n"
    );
}

#[test]
fn migrate_asks_for_its_parameters_with_the_migration() {
    let (directory, _server, requests) = machine(|shared| ends(shared, SourcePhase::Completed, None));
    let options = ["--xbzrle=1M", "--deadline", "60s", "--auto-converge", "--deadline-action", "switch-over"];
    let output = migrate(directory.path()).args(options).args(["--max-bandwidth", "50M"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let parameters = ParameterChange::default()
        .with("xbzrle", true)
        .with("xbzrle-cache-size", 1 << 20)
        .with("max-bandwidth", 50 << 20)
        .with("auto-converge", true)
        .with("deadline", Duration::from_secs(60))
        .with("deadline-action", ParameterValue::Word("switch-over".into()));
    let terms = Terms { parameters, ..Terms::default() };
    assert_eq!(requests.recv().unwrap(), Request::Migrate(Address::Unix("/run/there".into()), terms));

    let output = migrate(directory.path()).arg("--postcopy").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let terms = Terms { parameters: ParameterChange::default().with("postcopy-ram", true), ..Terms::default() };
    assert_eq!(requests.recv().unwrap(), Request::Migrate(Address::Unix("/run/there".into()), terms));
    assert_eq!(requests.recv().unwrap(), Request::MigrateStartPostcopy);

    let output = migrate(directory.path()).args(["--max-cpu-throttle", "100%"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "minivmm: invalid value '100%' for '--max-cpu-throttle <PERCENT>': expected percent, 1 to 99\n"
    );
    assert!(requests.try_recv().is_err(), "nothing must reach the machine");
}

/// Parameters stay set, also those that exclude each other.
#[test]
fn xbzrle_and_page_channels_refuse_one_another_in_both_orders() {
    let Some(machine) = Running::start(&["--serial", "none"], Stdio::null()) else { return };
    let mut control = machine.control();
    let refusal = "Multifd is not compatible with xbzrle: switch one of them off";
    // No process listens there.
    let refused = |options: &[&str], why: &str| {
        let output = migrate(machine.directory.path()).args(options).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && text.contains(why), "{options:?}: {text}");
    };
    let nobody = "the guest runs on where it was";
    refused(&["--channels", "3"], nobody);
    refused(&["--xbzrle=1M"], refusal);
    refused(&["--multifd=off", "--xbzrle=1M"], nobody);
    refused(&["--channels", "4"], refusal);
    refused(&["--channels", "4", "--xbzrle"], refusal);
    let parameters = control.execute("query-migrate-parameters", json!({})).unwrap();
    assert_eq!((&parameters["multifd-channels"], &parameters["xbzrle-cache-size"]), (&json!(3), &json!(1 << 20)));
    for first in ["xbzrle", "multifd"] {
        let mut set = |list: &[(&str, bool)]| {
            let list = list.iter().map(|(name, state)| json!({"capability": name, "state": state}));
            let capabilities = list.collect::<serde_json::Value>();
            control
                .execute("migrate-set-capabilities", json!({"capabilities": capabilities}))
                .map_err(|e| e.to_string())
        };
        let second = if first == "xbzrle" { "multifd" } else { "xbzrle" };
        set(&[(second, false), (first, true)]).unwrap();
        assert_eq!(set(&[(second, true)]), Err(refusal.into()));
        assert_eq!(set(&[(first, false), (second, true)]), Ok(json!({})));
    }
    control.execute("quit", json!({})).unwrap();
    machine.end();
}

/// Each end of a migration has its message and its exit code, which say where the guest is.
#[test]
fn each_end_of_a_migration_has_a_message_and_an_exit_code() {
    type Script = fn(&Published);
    let ends: [(Script, i32, &str); 6] = [
        (
            |shared| {
                shared.set_run_state(RunState::Paused);
                ends(shared, SourcePhase::Failed, Some("the guest could not be resumed"));
            },
            1,
            "the migration failed: the guest could not be resumed; the guest is where it was, in state paused",
        ),
        (
            |shared| ends(shared, SourcePhase::Cancelled, Some("cancelled because the guest reset itself")),
            1,
            "the migration was cancelled because the guest reset itself; the guest runs on where it was",
        ),
        (
            |shared| ends(shared, SourcePhase::Unacknowledged, Some("no answer; the guest stays stopped here")),
            3,
            "no answer; the guest stays stopped here",
        ),
        (|shared| ends(shared, SourcePhase::Undecided, Some("no answer; look there")), 4, "no answer; look there"),
        (
            |shared| {
                shared.set_run_state(RunState::FinishMigrate);
                shared.set_run_state(RunState::PostMigrate);
                ends(shared, SourcePhase::Interrupted, Some("the connection broke; it is lost there"));
            },
            3,
            "the migration failed: the connection broke; it is lost there",
        ),
        (|shared| ends(shared, SourcePhase::Undecided, None), 4, "the destination did not confirm"),
    ];
    for (script, code, sentence) in ends {
        let (directory, _server, _requests) = machine(script);
        let output = migrate(directory.path()).output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("minivmm: {sentence}\n"));
        assert_eq!(output.status.code(), Some(code), "{sentence}");
    }
}

/// Text that would clear the screen, begin a line, open an escape sequence as C1, and reverse the direction of text.
const HOSTILE: &str = "x\x1b[2J\r\nminivmm: forged\u{9b}31m\u{202e}y";
/// The same text, escaped.
const SHOWN: &str = r"x\u{1b}[2J\r\nminivmm: forged\u{9b}31m\u{202e}y";

#[test]
fn text_of_a_machine_does_not_control_the_terminal() {
    let (directory, _server, _requests) = machine(|shared| ends(shared, SourcePhase::Failed, Some(HOSTILE)));
    let output = migrate(directory.path()).output().unwrap();
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!("minivmm: the migration failed: {SHOWN}; the guest runs on where it was\n")
    );

    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("qmp")).unwrap();
    let refuses = json!({"error": {"class": "GenericError", "desc": HOSTILE}});
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        // Greeting, answer to qmp_capabilities, answer to migrate.
        write!(client, "{}\n{}\n{refuses}\n", json!({"QMP": {}}), json!({"return": {}})).unwrap();
        let _ = client.read_to_end(&mut Vec::new());
    });
    let output = migrate(directory.path()).output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("minivmm: {SHOWN}\n"));
}

#[test]
fn text_of_a_source_does_not_control_the_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let incoming_socket = directory.path().join("incoming");
    let incoming = format!("unix:{}", incoming_socket.display());
    let Some(machine) = Running::start(&["--serial", "none", "--incoming", &incoming], Stdio::null()) else { return };
    let mut control = machine.control();
    // Header; a configuration with this machine name; and a command, which ends the configuration.
    let name = [&[0, 0, 0, HOSTILE.len() as u8], HOSTILE.as_bytes()].concat();
    let stream = [b"QEVM\0\0\0\x03\x07", &*name, b"\x08\0\x03\0\x04\0\0\0\x01"].concat();
    let mut wire = UnixStream::connect(&incoming_socket).unwrap();
    wire.write_all(&stream).unwrap();
    wire.read_to_end(&mut Vec::new()).unwrap();
    control.execute("quit", json!({})).unwrap();
    let (_, output) = machine.end();
    assert!(output.contains(SHOWN) && output.lines().count() == 1, "{output:?}");
}

#[test]
fn a_machine_that_vanishes_leaves_the_outcome_unknown() {
    let (directory, server, requests) =
        machine(|shared| shared.update_migration(|info| info.phase = Phase::Source(SourcePhase::Rounds)));
    let child = migrate(directory.path()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(matches!(requests.recv().unwrap(), Request::Migrate(..)));
    drop(server);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("how the migration ended is unknown; look at unix:/run/there"), "{text}");
}

#[test]
fn cont_asks_the_machine_and_force_is_never_implied() {
    let (directory, _server, requests) = machine(|_| ());
    let control = format!("unix:{}/qmp", directory.path().display());
    for (flags, request) in [(&[][..], Request::Cont), (&["--force"], Request::ContUnproved)] {
        let mut arguments = vec!["cont", "--control", &control];
        arguments.extend(flags);
        let output = minivmm(&arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(requests.recv().unwrap(), request);
    }
}

#[test]
fn migrate_without_a_machine_is_a_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let output = migrate(directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("minivmm: --control unix:"));
}

/// A machine of the built command with the tiny guest; dropping it ends the process.
struct Running {
    child: Child,
    directory: tempfile::TempDir,
}

impl Running {
    /// Starts the machine; prints that the test is skipped and returns `None` without KVM.
    fn start(arguments: &[&str], stdin: Stdio) -> Option<Self> {
        Self::start_kernel(&vmstate_lab::tiny::bzimage(), arguments, stdin)
    }

    fn start_kernel(image: &[u8], arguments: &[&str], stdin: Stdio) -> Option<Self> {
        Self::start_guest(image, &vmstate_lab::tiny::command_line(16, 4096), arguments, stdin)
    }

    fn start_guest(image: &[u8], command_line: &str, arguments: &[&str], stdin: Stdio) -> Option<Self> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        kvm.map_err(|error| vmstate_lab::skip::skip(format!("/dev/kvm: {error}"))).ok()?;
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("tiny");
        std::fs::write(&kernel, image).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_minivmm"))
            .args(["run", "--memory", "64M", "--append", command_line, "--kernel"])
            .arg(&kernel)
            .args(["--control", &format!("unix:{}/qmp", directory.path().display())])
            .args(arguments)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Some(Self { child, directory })
    }

    fn control(&self) -> Client {
        let path = self.directory.path().join("qmp");
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match Client::connect(&path) {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < deadline, "no control socket: {error}"),
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Reads the guest's output up to its banner.
    fn await_banner(&mut self) {
        let mut banner = vec![0; vmstate_lab::tiny::BANNER.len()];
        self.child.stdout.as_mut().unwrap().read_exact(&mut banner).unwrap();
        assert_eq!(String::from_utf8(banner).unwrap(), vmstate_lab::tiny::BANNER);
    }

    /// Waits for the end; returns the exit code and the output since.
    fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + TIMEOUT;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "the machine does not end"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        let mut output = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut output).unwrap();
        (status.code(), output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_machine_runs_is_stopped_and_ends_in_order() {
    let Some(mut machine) = Running::start(&["--serial", "stdio"], Stdio::null()) else { return };
    let mut control = machine.control();
    let status = |control: &mut Client| control.execute("query-status", json!({})).unwrap()["status"].clone();
    // The socket exists before the guest starts.
    let deadline = Instant::now() + TIMEOUT;
    while status(&mut control) == "prelaunch" && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(status(&mut control), "running");
    machine.await_banner();
    control.execute("stop", json!({})).unwrap();
    assert_eq!(status(&mut control), "paused");
    control.execute("cont", json!({})).unwrap();
    assert_eq!(status(&mut control), "running");
    let path = machine.directory.path().join("qmp");
    control.execute("quit", json!({})).unwrap();
    let (code, output) = machine.end();
    assert_eq!(code, Some(0), "{output}");
    assert!(!path.exists());
}

#[test]
fn an_image_in_use_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.raw");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let disk = image.to_str().unwrap();
    let Some(machine) = Running::start(&["--serial", "none", "--disk", disk], Stdio::null()) else { return };
    machine.control();
    let (code, output) = Running::start(&["--serial", "none", "--disk", disk], Stdio::null()).unwrap().end();
    assert_eq!(code, Some(2), "{output}");
    assert_eq!(
        output,
        format!("minivmm: --disk: {disk} is in use by another process; end that process or give another file\n")
    );
}

#[test]
fn a_lease_that_cannot_be_used_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let (lease, notes) = (directory.path().join("lease"), directory.path().join("notes"));
    std::fs::write(&notes, "mine").unwrap();
    let (lease, notes) = (lease.to_str().unwrap(), notes.to_str().unwrap());
    let Some(machine) = Running::start(&["--serial", "none", "--lease", lease], Stdio::null()) else { return };
    machine.control();
    let refused = |path| {
        let (code, output) = Running::start(&["--serial", "none", "--lease", path], Stdio::null()).unwrap().end();
        assert_eq!(code, Some(2), "{output}");
        output
    };
    let expected =
        format!("minivmm: --lease: {lease} is in use by another process; end that process or give another file\n");
    assert_eq!(refused(lease), expected);
    let expected = format!(
        "minivmm: --lease: the content of {notes} is not an ownership record of this release: it has 4 bytes, an ownership \
         record has 36; give a file that holds nothing else\n"
    );
    assert_eq!(refused(notes), expected);
    assert_eq!(std::fs::read(notes).unwrap(), b"mine");
}

/// The user's terminal is raw while the machine runs, and restored however the machine ends.
#[test]
fn the_terminal_is_given_back() {
    for end in ["ctrl-a x", "sigterm"] {
        let pair = openpty(None, None).unwrap();
        let before = tcgetattr(&pair.slave).unwrap();
        let stdin = Stdio::from(pair.slave.try_clone().unwrap());
        let Some(machine) = Running::start(&["--serial", "stdio"], stdin) else { return };
        machine.control();
        assert!(!tcgetattr(&pair.slave).unwrap().local_flags.contains(LocalFlags::ICANON), "not raw");
        match end {
            "sigterm" => machine.signal(Signal::SIGTERM),
            _ => File::from(pair.master.try_clone().unwrap()).write_all(b"\x01x").unwrap(),
        }
        let (code, output) = machine.end();
        assert_eq!(code, Some(0), "{end}: {output}");
        let after = tcgetattr(&pair.slave).unwrap();
        assert_eq!(after.local_flags, before.local_flags, "after {end}");
        assert_eq!(after.input_flags, before.input_flags, "after {end}");
    }
}
