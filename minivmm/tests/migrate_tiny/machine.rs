//! Machines with the tiny guest, as threads of this process, and connections between two of them.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minivmm::config::{Address, Config, Cpu, Disk, ListenAt, RateLimits, Restore, Serial, Tls};
use minivmm::vm::{End, Event, Handle, Keyboard, MigrationStatus, ParameterChange, Request, RunState, Terms, Vm};
use vmstate_lab::tiny;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
/// Pages that the guest rewrites: 8 MiB.
pub(crate) const PAGES: u64 = 2048;

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

pub(crate) struct Machine {
    pub(crate) handle: Handle,
    console: Console,
    pub(crate) keyboard: Keyboard,
    pub(crate) thread: Option<JoinHandle<End>>,
}

impl Machine {
    /// Starts a machine with the disk of `dir`, which only one machine can lock.
    pub(crate) fn start(dir: &Path, incoming: Option<&Address>) -> Self {
        let disk = dir.join("disk");
        if !disk.exists() {
            std::fs::write(&disk, [0; 4096]).unwrap();
        }
        Self::start_with(
            dir,
            incoming,
            vec![Disk { path: disk, read_only: false, create: None, limits: RateLimits::default() }],
        )
    }

    pub(crate) fn start_with(dir: &Path, incoming: Option<&Address>, disks: Vec<Disk>) -> Self {
        Self::start_leased(dir, incoming, disks, None)
    }

    pub(crate) fn start_leased(
        dir: &Path,
        incoming: Option<&Address>,
        disks: Vec<Disk>,
        lease: Option<PathBuf>,
    ) -> Self {
        Self::start_kernel(dir, incoming, disks, lease, &tiny::bzimage())
    }

    /// Starts a destination with the disk of `dir`, which its source has made.
    pub(crate) fn start_listening(dir: &Path, incoming: ListenAt) -> Self {
        let disk = Disk { path: dir.join("disk"), read_only: false, create: None, limits: RateLimits::default() };
        Self::start_machine(dir, Some(incoming), vec![disk], None, &tiny::bzimage())
    }

    pub(crate) fn start_kernel(
        dir: &Path,
        incoming: Option<&Address>,
        disks: Vec<Disk>,
        lease: Option<PathBuf>,
        bzimage: &[u8],
    ) -> Self {
        Self::start_machine(dir, incoming.cloned().map(ListenAt::Address), disks, lease, bzimage)
    }

    fn start_machine(
        dir: &Path,
        incoming: Option<ListenAt>,
        disks: Vec<Disk>,
        lease: Option<PathBuf>,
        bzimage: &[u8],
    ) -> Self {
        Self::start_config(dir, bzimage, |config| {
            (config.incoming, config.disks, config.lease) = (incoming, disks, lease);
        })
    }

    /// Starts a machine whose guest writes to its `disk`.
    pub(crate) fn start_writing(dir: &Path, incoming: Option<&Address>, disk: Disk, lease: Option<PathBuf>) -> Self {
        Self::start_config(dir, &tiny::bzimage(), |config| {
            (config.incoming, config.lease) = (incoming.cloned().map(ListenAt::Address), lease);
            (config.append, config.disks) = (tiny::command_line_with_disk(PAGES, 0x800), vec![disk]);
        })
    }

    /// Starts a machine with the disk of `dir` that awaits a guest of a file, whose memory is read as `restore` says.
    pub(crate) fn start_restored(dir: &Path, from: ListenAt, restore: Restore) -> Self {
        Self::start_config(dir, &tiny::bzimage(), |config| {
            let disk = Disk { path: dir.join("disk"), read_only: false, create: None, limits: RateLimits::default() };
            (config.incoming, config.disks) = (Some(from), vec![disk]);
            config.restore = restore;
        })
    }

    /// Starts a machine with the disk of `dir`, and with memory that it can hand over to another process.
    pub(crate) fn start_shared(dir: &Path, incoming: Option<&Address>, memory: u64) -> Self {
        let disk = dir.join("disk");
        if !disk.exists() {
            std::fs::write(&disk, [0; 4096]).unwrap();
        }
        Self::start_config(dir, &tiny::bzimage(), |config| {
            config.incoming = incoming.cloned().map(ListenAt::Address);
            config.disks = vec![Disk { path: disk, read_only: false, create: None, limits: RateLimits::default() }];
            (config.memory, config.shares_memory) = (memory, true);
        })
    }

    pub(crate) fn start_config(dir: &Path, bzimage: &[u8], change: impl FnOnce(&mut Config)) -> Self {
        let kernel = dir.join("kernel");
        std::fs::write(&kernel, bzimage).unwrap();
        let console = Console::default();
        let mut config = Config {
            kernel: None,
            initrd: None,
            append: tiny::command_line(PAGES, 0x800),
            memory: 16 << 20,
            shares_memory: false,
            cpus: 1,
            cpu: Cpu::default(),
            disks: Vec::new(),
            lease: None,
            nets: Vec::new(),
            serial: Serial::None,
            control: Some(PathBuf::new()),
            incoming: None,
            restore: Restore::default(),
            tls: Tls::default(),
            kvm: None,
        };
        change(&mut config);
        config.kernel = config.incoming.is_none().then_some(kernel);
        let vm = Vm::new(config, Box::new(console.clone())).unwrap();
        let (handle, keyboard) = (vm.handle(), vm.keyboard());
        let machine = Self { handle, keyboard, console, thread: Some(std::thread::spawn(|| vm.run())) };
        machine.set_long_limits();
        machine
    }

    /// Sets long limits, so that neither a busy host nor a wait of a test ends a migration.
    fn set_long_limits(&self) {
        let change = ParameterChange::default().with("downtime-limit", TIMEOUT).with("pause-budget", TIMEOUT);
        self.handle.ask(Request::MigrateSetParameters(change)).unwrap();
    }

    pub(crate) fn printed(&self) -> String {
        let text = String::from_utf8(self.console.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains('E'), "the guest found its memory wrong: {text}");
        text
    }

    /// Number of boots of the guest here.
    pub(crate) fn boots(&self) -> usize {
        self.printed().matches(tiny::BANNER).count()
    }

    /// Number of passes over its memory that the guest has printed.
    pub(crate) fn passes(&self) -> usize {
        let text = self.printed();
        text.lines().filter(|line| line.len() == 9 && line.starts_with('p')).count()
    }

    /// Waits until the guest has printed a line.
    pub(crate) fn await_line(&self) {
        until(|| self.printed().contains('\n'), || format!("{:?}", self.handle.run_state()));
    }

    pub(crate) fn await_passes(&self, more: usize) {
        let wanted = self.passes() + more;
        until(|| self.passes() >= wanted, || format!("{:?} {:?}", self.handle.run_state(), self.handle.migration()));
    }

    pub(crate) fn await_state(&self, state: RunState) {
        until(
            || self.handle.run_state() == state,
            || format!("{:?}, not {state:?}; {:?}", self.handle.run_state(), self.handle.migration()),
        );
    }

    /// Records the migration's statuses from now on, in order.
    pub(crate) fn statuses(&self) -> Arc<Mutex<Vec<&'static str>>> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        self.handle.subscribe(move |event| {
            if let Event::Migration(status) = event {
                log.lock().unwrap().push(status.as_str());
            }
            true
        });
        seen
    }

    pub(crate) fn migrate(&self, to: &Address) -> MigrationStatus {
        self.handle.ask(Request::Migrate(to.clone(), Terms::default())).unwrap();
        self.await_end()
    }

    pub(crate) fn await_end(&self) -> MigrationStatus {
        let over = [
            MigrationStatus::Completed,
            MigrationStatus::Failed,
            MigrationStatus::Cancelled,
            MigrationStatus::Unacknowledged,
            MigrationStatus::Undecided,
        ];
        let status = || self.handle.migration().status();
        until(|| over.contains(&status()), || format!("{:?}", self.handle.migration()));
        status()
    }

    pub(crate) fn limit(&self, downtime: Duration, bandwidth: u64) {
        let change = ParameterChange::default().with("downtime-limit", downtime).with("max-bandwidth", bandwidth);
        self.handle.ask(Request::MigrateSetParameters(change)).unwrap();
    }

    pub(crate) fn quit(self) {
        let _ = self.handle.ask(Request::Quit);
        self.end();
    }

    /// Waits for the machine's end.
    pub(crate) fn end(mut self) -> End {
        self.thread.take().unwrap().join().unwrap()
    }
}

pub(crate) fn until(condition: impl Fn() -> bool, state: impl Fn() -> String) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {}", state());
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn lab() -> Option<tempfile::TempDir> {
    match minivmm::kvm::open() {
        Ok(_) => Some(tempfile::tempdir().unwrap()),
        Err(error) => {
            vmstate_lab::skip::skip(error);
            None
        }
    }
}

/// Starts a machine with a disk, in a directory of its own, whose guest runs. `None` without KVM.
pub(crate) fn running() -> Option<(tempfile::TempDir, Machine)> {
    let dir = lab()?;
    let machine = Machine::start(dir.path(), None);
    machine.await_passes(1);
    Some((dir, machine))
}

/// A machine with a running guest, and a machine with the same disk that waits for it at `address`.
pub(crate) struct Pair {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) source: Machine,
    pub(crate) address: Address,
    pub(crate) destination: Machine,
}

/// Starts the pair. `None` without KVM.
pub(crate) fn pair() -> Option<Pair> {
    let (dir, source) = running()?;
    let address = unix_address(dir.path(), "incoming");
    let destination = Machine::start(dir.path(), Some(&address));
    Some(Pair { dir, source, address, destination })
}

/// A TCP address at which no process listens: in the loopback network, that of this process.
pub(crate) fn free_port() -> Address {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, high, middle, low);
    let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
    Address::Tcp(format!("{address}:{port}"))
}

pub(crate) fn unix_address(dir: &Path, name: &str) -> Address {
    Address::Unix(dir.join(name))
}
