//! All threads of a machine of the built command are confined, whatever it does.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use minivmm::control::Client;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;
use tempfile::TempDir;
use vmstate_lab::process::Process;
use vmstate_lab::tiny;
use vmstate_lab::wait::{TIMEOUT, find, until};

/// A machine with the tiny guest and a disk; dropping it ends the process.
struct Machine {
    process: Process,
    folder: TempDir,
}

impl Machine {
    /// Starts the machine; prints that the test is skipped and returns `None` without KVM.
    fn start(arguments: &[&str]) -> Option<Self> {
        if let Err(error) = minivmm::kvm::open() {
            vmstate_lab::skip::skip(error);
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let [kernel, disk, control] = ["kernel", "disk", "qmp"].map(|name| folder.path().join(name));
        fs::write(&kernel, tiny::bzimage()).unwrap();
        fs::write(&disk, [0; 4096]).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command
            .args(["run", "--memory", "64M", "--cpus", "2", "--serial", "none"])
            .args(["--append", &tiny::command_line_with_disk(16, 4096)])
            .arg("--kernel")
            .arg(kernel)
            .arg("--disk")
            .arg(disk)
            .arg("--control")
            .arg(format!("unix:{}", control.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        Some(Self { process: Process::start(&mut command).unwrap(), folder })
    }

    /// Connects a client once the guest runs, and sets long limits for a busy host.
    fn control(&self) -> Client {
        let path = self.folder.path().join("qmp");
        let mut client = find("control socket", || Client::connect(&path).ok());
        until("running guest", || client.execute("query-status", json!({})).unwrap()["status"] == "running");
        let limit = json!({"downtime-limit": TIMEOUT.as_millis() as u64});
        client.execute("migrate-set-parameters", limit).unwrap();
        client
    }

    /// Returns the kernel's status of each thread, by the thread's name.
    fn threads(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.process.id()));
        let status = |task: &Path| -> Option<BTreeMap<String, String>> {
            let text = fs::read_to_string(task.join("status")).ok()?;
            Some(text.lines().filter_map(|line| line.split_once(":\t")).map(|(k, v)| (k.into(), v.into())).collect())
        };
        let threads = fs::read_dir(tasks).unwrap().filter_map(|task| status(&task.unwrap().path()));
        threads.map(|status| (status["Name"].clone(), status)).collect()
    }

    fn quit(mut self, client: &mut Client) {
        client.execute("quit", json!({})).unwrap();
        let mut said = String::new();
        self.process.child().stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(self.process.child().wait().unwrap().success(), "{said}");
    }
}

/// proc_pid_status(5): 2 is a filter. All sets of capabilities are empty; the bounding set, if the process could empty it.
#[track_caller]
fn all_are_confined(machine: &Machine, expected: &[&str]) {
    // The main thread starts the machine and is confined then; another thread names and confines itself when it first runs.
    let mut threads = BTreeMap::new();
    until("machine whose threads are all there and confined", || {
        threads = machine.threads();
        let confined = threads.values().all(|status| status["Seccomp"] == "2");
        confined && expected.iter().all(|name| threads.contains_key(*name))
    });
    for (name, status) in threads {
        assert_eq!((status["Seccomp"].as_str(), status["NoNewPrivs"].as_str()), ("2", "1"), "{name}");
        let mut sets = vec!["CapInh", "CapPrm", "CapEff", "CapAmb"];
        sets.extend(nix::unistd::geteuid().is_root().then_some("CapBnd"));
        for set in sets {
            assert_eq!(u64::from_str_radix(&status[set], 16), Ok(0), "{set} of {name}");
        }
    }
}

#[test]
fn all_threads_are_confined_also_those_of_a_reset_and_of_a_migration() {
    let Some(machine) = Machine::start(&[]) else { return };
    let mut client = machine.control();
    let always =
        ["minivmm", "driver", "vcpu0", "vcpu1", "virtio-blk", "serial-output", "signals", "look-up", "qmp-accept"];
    all_are_confined(&machine, &always);
    client.execute("system_reset", json!({})).unwrap();
    all_are_confined(&machine, &always);
    // A destination that sends nothing.
    let incoming_socket = machine.folder.path().join("incoming");
    let _listener = UnixListener::bind(&incoming_socket).unwrap();
    client.execute("migrate", json!({"uri": format!("unix:{}", incoming_socket.display())})).unwrap();
    until("migration thread", || machine.threads().contains_key("migration"));
    all_are_confined(&machine, &["migration"]);
    client.execute("migrate_cancel", json!({})).unwrap();
    machine.quit(&mut client);
}

#[test]
fn without_the_sandbox_none_is() {
    let Some(machine) = Machine::start(&["--sandbox", "off"]) else { return };
    let mut client = machine.control();
    assert!(machine.threads().values().all(|status| status["Seccomp"] == "0"));
    machine.quit(&mut client);
}

/// Commands that a confined machine may not start are started by its client, and by the destination before it is confined.
#[test]
fn a_guest_goes_over_what_commands_carry() {
    let Some(machine) = Machine::start(&[]) else { return };
    let mut client = machine.control();
    let [up, down, qmp] = ["up", "down", "qmp2"].map(|name| machine.folder.path().join(name).display().to_string());
    for pipe in [&up, &down] {
        mkfifo(pipe.as_str(), Mode::S_IRWXU).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command
        .args(["run", "--memory", "64M", "--cpus", "2", "--serial", "none"])
        .args(["--append", &tiny::command_line_with_disk(16, 4096)])
        .args(["--disk", machine.folder.path().join("disk").to_str().unwrap(), "--control", &format!("unix:{qmp}")])
        .args(["--incoming", &format!("exec:cat <{up} & exec cat >{down}")])
        .stdin(Stdio::null());
    let mut there = Process::start(&mut command).unwrap();
    let migrate = |command: &str| {
        let mut client = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        client.args([
            "migrate",
            "--control",
            &format!("unix:{}", machine.folder.path().join("qmp").display()),
            command,
        ]);
        let moved = client.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&moved.stderr).into_owned();
        (moved, said)
    };
    // As QEMU's users write a guest to a file: there is no answer.
    let (stayed, said) = migrate("exec:cat >/dev/full");
    assert!(!stayed.status.success() && said.contains("the guest runs on where it was"), "{said}");
    assert!(said.contains("fd:3 3> >(COMMAND)"), "{said}");
    let (moved, said) = migrate(&format!("exec:cat <{down} & exec cat >{up}"));
    assert!(moved.status.success() && said.contains("migrated to exec:cat"), "{said}");
    let mut arrived = Client::connect(Path::new(&qmp)).unwrap();
    until("the guest there", || arrived.execute("query-status", json!({})).unwrap()["status"] == "running");
    let parent = there.child().id();
    until("the end of the command, which is waited for", || children(parent).is_empty());
    arrived.execute("quit", json!({})).unwrap();
    assert!(there.child().wait().unwrap().success());
    machine.quit(&mut client);
}

/// The image is made before the destination is confined; confined threads fill, check and unmark it.
#[test]
fn a_confined_guest_goes_with_its_disk() {
    let Some(machine) = Machine::start(&[]) else { return };
    let mut client = machine.control();
    let [copy, incoming_socket, qmp] =
        ["copy", "incoming", "qmp2"].map(|name| machine.folder.path().join(name).display().to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command
        .args(["run", "--memory", "64M", "--cpus", "2", "--serial", "none"])
        .args(["--disk", &format!("{copy},create=4096"), "--control", &format!("unix:{qmp}")])
        .args(["--incoming", &format!("unix:{incoming_socket}")])
        .stdin(Stdio::null());
    let mut there = Process::start(&mut command).unwrap();
    let mut arrived = find("control socket", || Client::connect(Path::new(&qmp)).ok());
    let control = format!("unix:{}", machine.folder.path().join("qmp").display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.args(["migrate", "--control", &control, "--copy-disk", &format!("unix:{incoming_socket}")]);
    let moved = command.stdin(Stdio::null()).output().unwrap();
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    until("the guest there", || arrived.execute("query-status", json!({})).unwrap()["status"] == "running");
    arrived.execute("quit", json!({})).unwrap();
    assert!(there.child().wait().unwrap().success());
    // The source's guest is stopped; a person who has checked resumes it, and the mark is removed.
    let original = fs::File::open(machine.folder.path().join("disk")).unwrap();
    let is_stale = || rustix::fs::fgetxattr(&original, "user.minivmm.stale", &mut [0; 8][..]).is_ok();
    assert!(is_stale());
    client.execute("cont", json!({"force": true})).unwrap();
    assert!(!is_stale());
    machine.quit(&mut client);
}

/// Processes that `parent` has started, also ended ones that it has not waited for (proc_pid_stat(5)).
fn children(parent: u32) -> Vec<PathBuf> {
    let is_child = |process: &PathBuf| {
        let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
        // The fields after the name, which may contain any character: state and parent.
        let of = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(1));
        of.and_then(|of| of.parse().ok()) == Some(parent)
    };
    fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).filter(is_child).collect()
}

/// The files of a reset and of a schema are the only ones that are opened or made once the guest runs.
#[test]
fn a_schema_is_written_and_read_and_a_kernel_that_is_gone_boots_again() {
    let Some(machine) = Machine::start(&[]) else { return };
    let mut client = machine.control();
    fs::remove_file(machine.folder.path().join("kernel")).unwrap();
    client.execute("system_reset", json!({})).unwrap();
    let schema = machine.folder.path().join("schema.json");
    client.execute("dump-schema", json!({"file": schema})).unwrap();
    assert!(client.execute("dump-schema", json!({"file": schema})).unwrap_err().to_string().contains("File exists"));
    // A confined thread looks the name up. The port is taken, and no process listens there.
    let taken = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(taken.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let port = getsockname::<SockaddrIn>(taken.as_raw_fd()).unwrap().port();
    client.execute("migrate", json!({"uri": format!("tcp:localhost:{port}"), "target-schema": schema})).unwrap();
    let status = |client: &mut Client| client.execute("query-migrate", json!({})).unwrap();
    until("end of the migration", || status(&mut client)["status"] == "failed");
    let why = status(&mut client)["error-desc"].to_string();
    assert!(why.contains("Connection refused"), "{why}");
    machine.quit(&mut client);
}
