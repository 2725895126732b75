//! The tiny guest migrates between two machines, which are threads of this process; it checks its own memory as it goes.

#[path = "migrate_tiny/ownership.rs"]
mod ownership;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minivmm::config::{Address, Config, Disk, Serial};
use minivmm::vm::{End, Handle, MigrationStatus, Request, RunState, Vm};
use vmstate_lab::tiny;

const PATIENCE: Duration = Duration::from_secs(60);
/// Pages that the guest rewrites: 8 MiB.
const PAGES: u64 = 2048;

#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Machine {
    handle: Handle,
    console: Console,
    thread: Option<JoinHandle<End>>,
}

impl Machine {
    fn start(dir: &Path, incoming: Option<&Address>) -> Self {
        Self::with(dir, incoming, |_| ())
    }

    /// As [`start`](Self::start), with a configuration that `change` has changed.
    fn with(dir: &Path, incoming: Option<&Address>, change: impl FnOnce(&mut Config)) -> Self {
        let kernel = dir.join("kernel");
        std::fs::write(&kernel, tiny::bzimage()).unwrap();
        let disk = dir.join("disk");
        if !disk.exists() {
            std::fs::write(&disk, [0; 4096]).unwrap();
        }
        let console = Console::default();
        let mut config = Config {
            kernel: incoming.is_none().then_some(kernel),
            initrd: None,
            append: tiny::command_line(PAGES, 0x800),
            memory: 16 << 20,
            cpus: 1,
            disks: vec![Disk { path: disk, read_only: false }],
            lease: None,
            nets: Vec::new(),
            serial: Serial::None,
            control: Some(PathBuf::new()),
            incoming: incoming.cloned(),
        };
        change(&mut config);
        let vm = Vm::new(config, Box::new(console.clone())).unwrap();
        Self { handle: vm.handle(), console, thread: Some(std::thread::spawn(|| vm.run())) }
    }

    /// Passes over its memory that the guest has printed.
    fn passes(&self) -> usize {
        let text = String::from_utf8(self.console.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains('E'), "the guest found its memory wrong: {text}");
        text.lines().filter(|line| line.len() == 9 && line.starts_with('p')).count()
    }

    fn await_passes(&self, more: usize) {
        let wanted = self.passes() + more;
        until(|| self.passes() >= wanted, || format!("{:?} {:?}", self.handle.run_state(), self.handle.migration()));
    }

    fn migrate(&self, to: &Address) -> MigrationStatus {
        self.handle.ask(Request::Migrate(to.clone())).unwrap();
        self.await_end()
    }

    fn await_end(&self) -> MigrationStatus {
        let over = [MigrationStatus::Completed, MigrationStatus::Failed, MigrationStatus::Cancelled];
        let status = || self.handle.migration().status;
        until(|| over.contains(&status()), || format!("{:?}", self.handle.migration()));
        status()
    }

    fn quit(mut self) {
        let _ = self.handle.ask(Request::Quit);
        let _ = self.thread.take().unwrap().join();
    }
}

fn until(condition: impl Fn() -> bool, state: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {}", state());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn lab() -> Option<tempfile::TempDir> {
    match minivmm::kvm::open() {
        Ok(_) => Some(tempfile::tempdir().unwrap()),
        Err(error) => {
            vmstate_lab::skip::skip(error);
            None
        }
    }
}

/// A TCP address at which nobody listens.
fn free_port() -> Address {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    Address::Tcp(format!("127.0.0.1:{port}"))
}

fn door(dir: &Path, name: &str) -> Address {
    Address::Unix(dir.join(name))
}

#[test]
fn a_running_guest_moves_and_does_not_notice() {
    let Some(dir) = lab() else { return };
    let mut here = Machine::start(dir.path(), None);
    here.await_passes(2);
    for address in [door(dir.path(), "first"), free_port(), door(dir.path(), "third")] {
        let there = Machine::start(dir.path(), Some(&address));
        assert_eq!(there.handle.run_state(), RunState::InMigrate);
        assert_eq!(here.migrate(&address), MigrationStatus::Completed, "{:?}", here.handle.migration());
        assert_eq!(here.handle.run_state(), RunState::PostMigrate);
        until(|| there.handle.run_state() == RunState::Running, || format!("{:?}", there.handle.run_state()));
        let left = here.passes();
        there.await_passes(2);
        assert_eq!(here.passes(), left, "the guest runs on one side only");
        let info = here.handle.migration();
        assert!(info.rounds > 0 && info.normal_pages >= PAGES && info.downtime.is_some(), "{info:?}");
        assert!(here.handle.ask(Request::Cont).is_err(), "a guest that was handed over cannot go on here");
        here.quit();
        here = there;
    }
    here.quit();
}

#[test]
fn a_cancelled_migration_leaves_the_guest_here_and_the_next_one_succeeds() {
    let Some(dir) = lab() else { return };
    let source = Machine::start(dir.path(), None);
    source.await_passes(1);
    let slow =
        Request::MigrateSetParameters { downtime_limit: Some(Duration::from_millis(1)), max_bandwidth: Some(1 << 20) };
    source.handle.ask(slow).unwrap();
    let address = door(dir.path(), "refused");
    let mut first = Machine::start(dir.path(), Some(&address));
    source.handle.ask(Request::Migrate(address)).unwrap();
    until(|| source.handle.migration().normal_pages > 0, || format!("{:?}", source.handle.migration()));
    source.handle.ask(Request::MigrateCancel).unwrap();
    assert_eq!(source.handle.migration().status, MigrationStatus::Cancelled);
    assert_eq!(source.handle.run_state(), RunState::Running);
    let end = first.thread.take().unwrap().join().unwrap();
    assert!(matches!(&end, End::Failed(why) if why.contains("did not run here")), "{end:?}");
    assert_eq!(first.passes(), 0);
    source.await_passes(2);

    let fast = Request::MigrateSetParameters { downtime_limit: Some(Duration::from_secs(1)), max_bandwidth: Some(0) };
    source.handle.ask(fast).unwrap();
    let address = door(dir.path(), "taken");
    let second = Machine::start(dir.path(), Some(&address));
    assert_eq!(source.migrate(&address), MigrationStatus::Completed, "{:?}", source.handle.migration());
    second.await_passes(2);
    source.quit();
    second.quit();
}

#[test]
fn without_a_destination_the_guest_goes_on_here() {
    let Some(dir) = lab() else { return };
    let source = Machine::start(dir.path(), None);
    source.await_passes(1);
    assert_eq!(source.migrate(&door(dir.path(), "nobody")), MigrationStatus::Failed);
    let error = source.handle.migration().error.unwrap();
    assert!(error.contains("--incoming"), "{error}");
    source.await_passes(2);
    source.quit();
}

#[test]
fn a_paused_guest_arrives_paused() {
    let Some(dir) = lab() else { return };
    let source = Machine::start(dir.path(), None);
    source.await_passes(1);
    source.handle.ask(Request::Stop).unwrap();
    let address = door(dir.path(), "door");
    let destination = Machine::start(dir.path(), Some(&address));
    assert_eq!(source.migrate(&address), MigrationStatus::Completed, "{:?}", source.handle.migration());
    until(|| destination.handle.run_state() == RunState::Paused, || format!("{:?}", destination.handle.run_state()));
    destination.handle.ask(Request::Cont).unwrap();
    destination.await_passes(2);
    source.quit();
    destination.quit();
}
