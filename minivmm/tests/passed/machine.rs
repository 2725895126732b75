//! A machine started by the systemd units: it boots, resets, is controlled, migrates, and ends.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;

use minivmm::control::Client;
use minivmm::devices::virtio::net::Tap;
use nix::sys::stat::fstat;
use nix::unistd::geteuid;
use serde_json::json;
use tempfile::TempDir;
use vmstate_lab::process::Process;
use vmstate_lab::skip::skip;
use vmstate_lab::tiny;
use vmstate_lab::wait::until;

use crate::service::{self, Unit};

/// Process of a service; dropping it kills the process.
pub(crate) struct Machine {
    process: Process,
    folder: PathBuf,
}

impl Machine {
    /// Starts `unit` with the files of `folder`, and with `sockets` that listen there.
    fn start(unit: &Unit, folder: &Path, sockets: &[&UnixListener]) -> Self {
        let sockets = sockets.iter().map(|socket| socket.try_clone().unwrap().into()).collect();
        Self::of(service::command(unit, folder, sockets, &tiny::command_line_with_disk(16, 4096)), folder)
    }

    /// Runs a command that has the descriptors to pass, and closes them.
    fn of(mut command: Command, folder: &Path) -> Self {
        Self { process: Process::start(&mut command).unwrap(), folder: folder.into() }
    }

    /// Connects to the control socket. Other processes hold the socket, too, so it accepts connections even while no process
    /// serves it.
    fn control(&mut self) -> Client {
        let path = self.folder.join("qmp.sock");
        let (connected, connection) = channel();
        thread::spawn(move || connected.send(Client::connect(&path)));
        let mut client = None;
        until("control socket", || {
            client = connection.try_recv().ok();
            let ended = self.process.ended();
            assert!(
                ended.is_none(),
                "{ended:?}: {}",
                io::read_to_string(self.process.child().stderr.take().unwrap()).unwrap()
            );
            client.is_some()
        });
        client.unwrap().unwrap()
    }

    fn console(&self) -> String {
        fs::read_to_string(self.folder.join("console")).unwrap()
    }

    /// Returns each thread's `status` in /proc.
    fn threads(&self) -> Vec<BTreeMap<String, String>> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let status = |task: PathBuf| -> Option<BTreeMap<String, String>> {
            let text = fs::read_to_string(task.join("status")).ok()?;
            Some(text.lines().filter_map(|line| line.split_once(":\t")).map(|(k, v)| (k.into(), v.into())).collect())
        };
        tasks.filter_map(|task| status(task.unwrap().path())).collect()
    }

    /// Counts its descriptors of this file or socket, by the name in /proc.
    fn descriptors_of(&self, target: &str) -> usize {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap();
        descriptors.filter(|entry| fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(|to| to == *target)).count()
    }

    /// Returns the exit code and the messages, except one about a busy host that took longer than half a second to end the
    /// machine.
    fn end(mut self) -> (Option<i32>, String) {
        const LATE: &str = "minivmm: ended while the machine was busy; its work in flight was not waited for\n";
        let mut said = String::new();
        self.process.child().stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.process.child().wait().unwrap().code(), said.replace(LATE, ""))
    }
}

/// Makes the files that the units name, which only the test's user may open.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let files = [("kernel", tiny::bzimage()), ("initrd", vec![7; 100]), ("disk", vec![0; 4096])];
    for (name, content) in files.into_iter().chain([("lease", Vec::new()), ("console", Vec::new())]) {
        fs::write(folder.path().join(name), content).unwrap();
        fs::set_permissions(folder.path().join(name), Permissions::from_mode(0o600)).unwrap();
    }
    folder
}

/// Makes the listening socket of a unit.
fn listen(folder: &Path, unit: &str) -> UnixListener {
    UnixListener::bind(service::here(folder, Unit::read(unit).value("ListenStream"))).unwrap()
}

#[test]
fn a_guest_boots_resets_and_moves_with_nothing_but_what_was_passed() {
    if let Err(error) = minivmm::kvm::open() {
        return skip(error);
    }
    let (here, there) = (folder(), folder());
    // One disk and one lease, which each service opens for itself.
    for name in ["disk", "lease"] {
        fs::remove_file(there.path().join(name)).unwrap();
        fs::hard_link(here.path().join(name), there.path().join(name)).unwrap();
    }
    let passes = |machine: &Machine| tiny::passes(&machine.console()).len();

    let qmp = listen(here.path(), "minivmm-qmp.socket");
    let mut source = Machine::start(&Unit::read("minivmm.service"), here.path(), &[&qmp]);
    let mut client = source.control();
    until("pass", || passes(&source) > 1);
    client.execute("system_reset", json!({})).unwrap();
    until("second boot", || source.console().matches(tiny::BANNER).count() == 2);
    until("pass after the reset", || passes(&source) > 1);

    let (there_qmp, incoming) =
        (listen(there.path(), "minivmm-qmp.socket"), listen(there.path(), "minivmm-incoming.socket"));
    let incoming_socket = there.path().join("incoming.sock");
    // Like the end of a tunnel at the source, open for every local user.
    fs::set_permissions(&incoming_socket, Permissions::from_mode(0o666)).unwrap();
    let unit = Unit::read("minivmm.service").with("minivmm.service.d/incoming.conf");
    let mut destination = Machine::start(&unit, there.path(), &[&there_qmp, &incoming]);
    let mut other = destination.control();
    for machine in [&source, &destination] {
        is_confined(machine);
    }
    client.execute("migrate", json!({"uri": format!("unix:{}", incoming_socket.display())})).unwrap();
    until("pass at the destination", || passes(&destination) > 1);
    assert_eq!(other.execute("query-status", json!({})).unwrap()["status"], "running");
    // The destination has closed the incoming socket, which only its maker still holds.
    let inode = |socket: &UnixListener| format!("socket:[{}]", fstat(socket).unwrap().st_ino);
    until("closed socket", || destination.descriptors_of(&inode(&incoming)) == 0);
    assert_eq!(destination.descriptors_of(&inode(&there_qmp)), 1);
    until("end at the source", || client.execute("query-migrate", json!({})).unwrap()["status"] == "completed");
    for (machine, client) in [(source, &mut client), (destination, &mut other)] {
        client.execute("quit", json!({})).unwrap();
        assert_eq!(machine.end(), (Some(0), String::new()));
    }
    // The sockets' files belong to their maker, and still listen.
    for socket in ["qmp.sock", "incoming.sock"] {
        UnixStream::connect(there.path().join(socket)).unwrap();
    }
}

/// Checks that the machine is in the sandbox and has no privileges.
fn is_confined(machine: &Machine) {
    let is_confined = |status: &BTreeMap<String, String>| {
        let none =
            ["CapInh", "CapPrm", "CapEff", "CapAmb"].iter().all(|set| u64::from_str_radix(&status[*set], 16) == Ok(0));
        none && (status["Seccomp"].as_str(), status["NoNewPrivs"].as_str()) == ("2", "1")
    };
    until("confined threads", || machine.threads().iter().all(is_confined));
    let threads = machine.threads();
    assert!(threads.len() > 5, "{threads:?}");
    for status in threads.iter().filter(|_| geteuid().is_root()) {
        assert_eq!(status["Uid"].split_whitespace().collect::<Vec<_>>(), [service::NOBODY; 4]);
        assert_eq!(u64::from_str_radix(&status["CapBnd"], 16), Ok(0));
    }
}

/// An attached tap needs no privilege.
#[test]
fn a_passed_tap_is_a_network_card_also_after_a_reset() {
    let name = format!("mvp{}", std::process::id());
    match Tap::open(&name) {
        Ok(tap) => is_a_card("tap", tap.as_fd().try_clone_to_owned().unwrap()),
        Err(error) => skip(error),
    }
}

#[test]
fn a_passed_socket_is_a_network_card_also_after_a_reset() {
    let (socket, _network) = UnixStream::pair().unwrap();
    is_a_card("stream", socket.into());
}

fn is_a_card(network: &str, descriptor: OwnedFd) {
    if let Err(error) = minivmm::kvm::open() {
        return skip(error);
    }
    let folder = folder();
    let qmp = listen(folder.path(), "minivmm-qmp.socket");
    let passed = vec![qmp.into(), descriptor];
    let files = ["kernel", "console"].map(|name| format!("<>'{}'", folder.path().join(name).display()));
    let files = [&files[..], &["<>/dev/kvm".to_owned()]].concat();
    let append = tiny::command_line(16, 4096);
    let network = format!("{network}=fd:4");
    let arguments = ["--control", "fd:3", "--net", &network, "--kernel", "fd:5", "--serial", "fd:6", "--kvm", "fd:7"];
    let arguments = [&arguments[..], &["--memory", "64M", "--append", &append]].concat();
    let mut machine =
        Machine::of(service::started(folder.path(), "LISTEN_FDS=", passed, &files, &arguments), folder.path());
    let mut client = machine.control();
    until("pass", || tiny::passes(&machine.console()).len() > 1);
    is_confined(&machine);
    client.execute("system_reset", json!({})).unwrap();
    until("second boot", || machine.console().matches(tiny::BANNER).count() == 2);
    client.execute("quit", json!({})).unwrap();
    assert_eq!(machine.end(), (Some(0), String::new()));
}
