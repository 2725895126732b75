//! Preflight between two machines on a real `/dev/kvm`, with a relay that changes the source's stream.
//!
//! The relay finds and reads sections by the layout in docs/minivmm-devices.md.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minivmm::config::{Address, Config, Cpu, Disk, ListenAt, Net, Network, RateLimits, Restore, Serial, Tls};
use minivmm::cpu::Choice;
use minivmm::kvm;
use minivmm::kvm::cpuid::{self, Offer};
use minivmm::kvm::state::Processor;
use minivmm::kvm::vm::KvmVm;
use minivmm::memory::Ram;
use minivmm::vm::{End, Handle, MigrationStatus, ParameterChange, Request, RunState, Terms, Vm};
use vmstate_lab::tiny;

const TIMEOUT: Duration = Duration::from_secs(60);

struct Machine {
    handle: Handle,
    thread: JoinHandle<End>,
}

fn config(dir: &Path) -> Config {
    let kernel = dir.join("kernel");
    std::fs::write(&kernel, tiny::bzimage()).unwrap();
    let disk = dir.join("disk");
    std::fs::write(&disk, [0; 4096]).unwrap();
    Config {
        kernel: Some(kernel),
        initrd: None,
        append: tiny::command_line(16, 0),
        memory: 4 << 20,
        shares_memory: false,
        cpus: 1,
        cpu: Cpu::default(),
        disks: vec![Disk { path: disk, read_only: false, create: None, limits: RateLimits::default() }],
        lease: None,
        nets: Vec::new(),
        serial: Serial::None,
        control: Some(PathBuf::new()),
        incoming: None,
        restore: Restore::default(),
        tls: Tls::default(),
        kvm: None,
    }
}

impl Machine {
    fn start(config: Config) -> Self {
        let vm = Vm::new(config, Box::new(std::io::sink())).unwrap();
        Self { handle: vm.handle(), thread: std::thread::spawn(|| vm.run()) }
    }

    /// Starts a machine whose guest is stopped, so that one round sends it. The limits are long, for a busy host.
    fn stopped(config: Config) -> Self {
        let machine = Self::start(config);
        machine.set_long_limits();
        machine.until("runs", |handle| handle.run_state() == RunState::Running);
        machine.handle.ask(Request::Stop).unwrap();
        machine
    }

    /// Starts a machine that waits at `incoming_socket`; its configuration is the source's with `change`.
    fn waiting(dir: &Path, incoming_socket: &str, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(dir);
        (config.kernel, config.incoming) = (None, Some(ListenAt::Address(Address::Unix(dir.join(incoming_socket)))));
        change(&mut config);
        let machine = Self::start(config);
        machine.set_long_limits();
        machine
    }

    fn set_long_limits(&self) {
        let change = ParameterChange::default().with("downtime-limit", TIMEOUT).with("pause-budget", TIMEOUT);
        self.handle.ask(Request::MigrateSetParameters(change)).unwrap();
    }

    fn until(&self, what: &str, condition: impl Fn(&Handle) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !condition(&self.handle) {
            assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}; {:?}", self.handle.migration());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Migrates; the downtime limit is long, since a relay on a busy host may be slow.
    fn migrate(&self, dir: &Path, incoming_socket: &str) -> MigrationStatus {
        let change = ParameterChange::default().with("downtime-limit", TIMEOUT);
        self.handle.ask(Request::MigrateSetParameters(change)).unwrap();
        self.handle.ask(Request::Migrate(Address::Unix(dir.join(incoming_socket)), Terms::default())).unwrap();
        self.until("the migration ends", |handle| {
            matches!(handle.migration().status(), MigrationStatus::Completed | MigrationStatus::Failed)
        });
        self.handle.migration().status()
    }

    fn quit(self) {
        let _ = self.handle.ask(Request::Quit);
        self.thread.join().unwrap();
    }
}

fn lab() -> Option<tempfile::TempDir> {
    match kvm::open() {
        Ok(_) => Some(tempfile::tempdir().unwrap()),
        Err(error) => {
            vmstate_lab::skip::skip(error);
            None
        }
    }
}

/// The command PING without its number: a source ends a part of its stream with it before it waits for an answer (QEMU's
/// `qemu_savevm_send_ping`, migration/savevm.c).
const PING: [u8; 5] = [8, 0, 2, 0, 4];
/// Number of the PING after everything that is loaded.
const LAST_PING: u32 = 5;

/// Passes one connection on from `from` to `to`; each part of the source's stream before a wait for an answer goes through
/// `change` as one piece. Returns the source's stream, unchanged.
fn relay(dir: &Path, from: &str, to: &str, change: impl Fn(&mut [u8]) + Send + 'static) -> JoinHandle<Vec<u8>> {
    let listener = UnixListener::bind(dir.join(from)).unwrap();
    let to = dir.join(to);
    std::thread::spawn(move || {
        let (mut source, _) = listener.accept().unwrap();
        let mut destination = UnixStream::connect(to).unwrap();
        let (mut answers, mut back) = (destination.try_clone().unwrap(), source.try_clone().unwrap());
        let answers = std::thread::spawn(move || {
            let _ = std::io::copy(&mut answers, &mut back);
            let _ = back.shutdown(std::net::Shutdown::Both);
        });
        let (mut said, mut piece, mut bytes, mut all) = (Vec::new(), Vec::new(), vec![0; 1 << 20], false);
        while let Ok(count @ 1..) = source.read(&mut bytes) {
            piece.extend_from_slice(&bytes[..count]);
            let ping = piece.split_last_chunk().filter(|(begin, _)| begin.ends_with(&PING));
            let ping = ping.map(|(_, number)| u32::from_be_bytes(*number));
            if ping.is_none() && !all {
                continue;
            }
            all |= ping == Some(LAST_PING);
            said.extend_from_slice(&piece);
            change(&mut piece);
            if destination.write_all(&piece).is_err() {
                break;
            }
            piece.clear();
        }
        let _ = destination.write_all(&piece);
        let _ = destination.shutdown(std::net::Shutdown::Write);
        answers.join().unwrap();
        said
    })
}

/// Offset of the content of section `name`, after its name, instance and version.
fn body(stream: &[u8], name: &str) -> Option<usize> {
    let mut marker = vec![name.len() as u8];
    marker.extend_from_slice(name.as_bytes());
    stream.windows(marker.len()).position(|window| window == marker).map(|at| at + marker.len() + 8)
}

fn u32_at(stream: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(stream[at..at + 4].try_into().unwrap())
}

fn u64_at(stream: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(stream[at..at + 8].try_into().unwrap())
}

/// Offsets in section `minivmm/preflight`: of the number of leaves, and of the first leaf.
const LEAVES: usize = 8 + 4 + 8;
const LEAF: usize = 7 * 4;

/// Offset of leaf 7's EBX.
fn leaf_7_ebx(stream: &[u8], body: usize) -> usize {
    let leaves = (0..u32_at(stream, body + LEAVES) as usize).map(|n| body + LEAVES + 4 + n * LEAF);
    leaves.into_iter().find(|&at| (u32_at(stream, at), u32_at(stream, at + 4)) == (7, 0)).unwrap() + 16
}

/// Offset of the TSC's rate, after leaves and MSRs.
fn tsc_khz(stream: &[u8], body: usize) -> usize {
    let msrs = body + LEAVES + 4 + u32_at(stream, body + LEAVES) as usize * LEAF;
    msrs + 4 + u32_at(stream, msrs) as usize * 12
}

/// Offset of the first card's features, after rate, disks and cards.
fn features(stream: &[u8], body: usize) -> usize {
    let disks = tsc_khz(stream, body) + 4;
    let cards = disks + 4 + u32_at(stream, disks) as usize * 10;
    cards + 4 + u32_at(stream, cards) as usize * 7
}

fn change_u32(stream: &mut [u8], at: usize, change: impl Fn(u32) -> u32) {
    let value = change(u32_at(stream, at));
    stream[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Migrates through a relay that applies `change` to `minivmm/preflight`, to a destination that refuses; returns the reason.
fn refused(change: impl Fn(&mut [u8], usize) + Send + 'static, configure: impl FnOnce(&mut Config)) -> Option<String> {
    let dir = lab()?;
    refused_in(dir.path(), config(dir.path()), change, configure)
}

fn refused_in(
    dir: &Path,
    source: Config,
    change: impl Fn(&mut [u8], usize) + Send + 'static,
    configure: impl FnOnce(&mut Config),
) -> Option<String> {
    let source = Machine::stopped(source);
    let destination = Machine::waiting(dir, "incoming", configure);
    let relay = relay(dir, "relay", "incoming", move |piece| {
        if let Some(body) = body(piece, "minivmm/preflight") {
            change(piece, body);
        }
    });
    assert_eq!(source.migrate(dir, "relay"), MigrationStatus::Failed);
    assert_eq!(source.handle.run_state(), RunState::Paused);
    // A page that is not zero has 4096 bytes on the wire, and the guest wrote 16 of them.
    assert!(relay.join().unwrap().len() < 8192, "pages were sent");
    for info in [source.handle.migration(), destination.handle.migration()] {
        assert_eq!((info.figures.normal_pages, info.figures.zero_pages), (0, 0), "{info:?}");
    }
    destination.until("turns the source away", |handle| handle.migration().error.is_some());
    assert_eq!(destination.handle.run_state(), RunState::InMigrate, "it waits for another source");
    let why = destination.handle.migration().error;
    [source, destination].into_iter().for_each(Machine::quit);
    why
}

#[test]
fn a_feature_that_this_host_lacks_is_refused_by_name() {
    // avx512pf is bit 26: only Xeon Phi ever had it.
    let claim = |stream: &mut [u8], body| change_u32(stream, leaf_7_ebx(stream, body), |ebx| ebx | 1 << 26);
    let Some(why) = refused(claim, |_| {}) else { return };
    assert!(why.contains("avx512pf (leaf 0x7 EBX bit 26)"), "{why}");
    assert_eq!(why.matches("leaf").count(), 1, "nothing else differs: {why}");
}

#[test]
fn a_tsc_of_twice_the_rate_is_refused_with_both_rates() {
    let host = kvm::open().ok();
    if host.is_some_and(|host| host.check_extension(kvm_ioctls::Cap::TscControl)) {
        return vmstate_lab::skip::skip("this host's KVM scales the TSC");
    }
    let rates = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&rates);
    let claim = move |stream: &mut [u8], body| {
        let at = tsc_khz(stream, body);
        *seen.lock().unwrap() = u32_at(stream, at);
        change_u32(stream, at, |khz| khz * 2);
    };
    let Some(why) = refused(claim, |_| {}) else { return };
    let khz = *rates.lock().unwrap();
    assert!(why.contains(&format!("runs at {} kHz, this host's at {khz} kHz", khz * 2)), "{why}");
}

#[test]
fn another_machine_is_refused_with_all_that_differs() {
    let configure = |config: &mut Config| {
        config.cpus = 2;
        config.memory = 8 << 20;
        std::fs::write(config.disks[0].path.with_extension("other"), [0; 8192]).unwrap();
        config.disks[0] = Disk {
            path: config.disks[0].path.with_extension("other"),
            read_only: true,
            create: None,
            limits: RateLimits::default(),
        };
        config.disks.push(Disk {
            path: config.disks[0].path.clone(),
            read_only: true,
            create: None,
            limits: RateLimits::default(),
        });
    };
    let claim = |stream: &mut [u8], body| change_u32(stream, leaf_7_ebx(stream, body), |ebx| ebx | 1 << 26);
    let Some(why) = refused(claim, configure) else { return };
    for part in [
        "the source has 1 vCPU, this machine 2 (start it with --cpus 1)",
        "the source has 4M of RAM, this machine 8M (start it with --memory 4M)",
        "the source has 1 disk, this machine 2",
        "disk 1 has 8 sectors at the source, 16 here",
        "disk 1 is read-only here, and not at the source",
        "avx512pf",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
}

/// The guest has negotiated features of its card that the destination's network lacks: UDP segmentation.
#[test]
fn a_feature_that_the_network_here_does_not_have_is_refused_by_name() {
    let Some(dir) = lab() else { return };
    let network = dir.path().join("network");
    let _network = UnixListener::bind(&network).unwrap();
    let card = |uso| Net {
        network: Network::Stream(network.clone()),
        mac: None,
        uso,
        vhost: false,
        limits: RateLimits::default(),
    };
    let with = |uso| Config { nets: vec![card(uso)], ..config(dir.path()) };
    // The tiny guest has no driver for the card.
    let claim = |stream: &mut [u8], body| {
        let at = features(stream, body);
        assert_eq!(stream[at..at + 64], [0; 64]);
        // Bits 56 and 0 (virtio 1.2 §5.1.3): host_uso, csum.
        stream[at..at + 8].copy_from_slice(&(1_u64 << 56 | 1).to_be_bytes());
    };
    let here = with(false).nets;
    let Some(why) = refused_in(dir.path(), with(true), claim, |config| config.nets = here) else { return };
    let what = "the guest uses features of network card 1 that its network here does not have: host_uso (give as --net number 1";
    assert!(why.contains(what), "{why}");
}

/// The source's guest sees less than this host offers: it keeps that here, and the next destination gets the same.
#[test]
fn a_guest_keeps_the_processor_that_it_was_shown() {
    const SMEP: u32 = 1 << 7;
    const ERMS: u32 = 1 << 9;
    let Some(dir) = lab() else { return };
    let dir = dir.path();
    let first = Machine::stopped(config(dir));
    let second = Machine::waiting(dir, "second", |_| {});
    let hide = |piece: &mut [u8]| {
        if let Some(body) = body(piece, "minivmm/preflight") {
            change_u32(piece, leaf_7_ebx(piece, body), |ebx| ebx & !(SMEP | ERMS | 2));
        }
    };
    let relayed = relay(dir, "to-second", "second", hide);
    assert_eq!(first.migrate(dir, "to-second"), MigrationStatus::Completed, "{:?}", first.handle.migration());
    let said = relayed.join().unwrap();
    let ebx = |stream: &[u8]| u32_at(stream, leaf_7_ebx(stream, body(stream, "minivmm/preflight").unwrap()));
    let shown = ebx(&said);
    let third = Machine::waiting(dir, "third", |_| {});
    let relayed = relay(dir, "to-third", "third", |_| {});
    second.until("arrives", |handle| handle.run_state() == RunState::Paused);
    assert_eq!(second.migrate(dir, "to-third"), MigrationStatus::Completed, "{:?}", second.handle.migration());
    assert_eq!(ebx(&relayed.join().unwrap()), shown & !(SMEP | ERMS | 2));
    [first, second, third].into_iter().for_each(Machine::quit);
}

/// KVM accepts another processor for a vCPU that has not run.
#[test]
fn a_vcpu_takes_the_processor_of_another_host() {
    let Some(_) = lab() else { return };
    let kvm = kvm::open().unwrap();
    let offered = cpuid::show(&Offer::read(&kvm).unwrap(), &Choice::host(), 2).unwrap();
    let vm = KvmVm::new(kvm, &Ram::new(1 << 20).unwrap()).unwrap();
    let vcpu = vm.create_vcpu(1).unwrap();
    vcpu.set_cpuid(&cpuid::with_apic_id(&offered, 1)).unwrap();
    vcpu.set_firmware_msrs().unwrap();
    let mut processor = Processor::read(vm.kvm(), vcpu.fd()).unwrap();
    // Another model, and no steal time (leaf 0x4000_0001 EAX bit 5). A KVM whose guests execute CPUID themselves cannot hide
    // the hardware's features, but these are never the hardware's.
    let leaf = |function| processor.leaves.iter().position(|leaf| leaf.function == function).unwrap();
    let (one, features) = (leaf(1), leaf(0x4000_0001));
    processor.leaves[one].eax = 0x800f12;
    assert_eq!(processor.leaves[features].eax & 1 << 5, 1 << 5);
    processor.leaves[features].eax &= !(1 << 5);
    vcpu.set_cpuid(&cpuid::with_apic_id(&processor.cpuid().unwrap(), 1)).unwrap();
    let shown = Processor::read(vm.kvm(), vcpu.fd()).unwrap();
    assert_eq!((shown.leaves[one].eax, shown.leaves[one].ebx >> 24), (0x800f12, 1));
    assert_eq!(shown.leaves[features], processor.leaves[features]);
    assert_eq!(shown, processor);
}

/// Configuration with `qemu64`, without the features that this host's KVM lacks.
fn model(dir: &Path) -> Config {
    let mut config = config(dir);
    config.cpu.model = "qemu64".into();
    if let Err(error) = Vm::new(config.clone(), Box::new(std::io::sink())) {
        let error = error.to_string();
        let (_, off) = error.split_once("leave them out (,").unwrap_or_else(|| panic!("{error}"));
        let off = off.trim_end_matches(')').split(',').map(|name| (name[1..].to_owned(), false));
        config.cpu.features = off.collect();
    }
    config
}

/// A guest with a model migrates to a host with its own processor, and back.
#[test]
fn a_guest_of_a_model_goes_wherever_its_features_are() {
    let Some(dir) = lab() else { return };
    let dir = dir.path();
    let model = model(dir);
    let first = Machine::start(model.clone());
    first.until("runs", |handle| handle.run_state() == RunState::Running);
    first.handle.ask(Request::Stop).unwrap();
    let second = Machine::waiting(dir, "second", |_| {});
    let relayed = relay(dir, "to-second", "second", |_| {});
    assert_eq!(first.migrate(dir, "to-second"), MigrationStatus::Completed, "{:?}", first.handle.migration());
    let facts = |stream: Vec<u8>| {
        let body = body(&stream, "minivmm/preflight").unwrap();
        // All leaves, which follow the time of sending, the number of vCPUs and RAM's size.
        stream[body + LEAVES..][..4 + u32_at(&stream, body + LEAVES) as usize * LEAF].to_vec()
    };
    let sent = facts(relayed.join().unwrap());
    second.until("arrives", |handle| handle.run_state() == RunState::Paused);
    let third = Machine::start(Config {
        incoming: Some(ListenAt::Address(Address::Unix(dir.join("third")))),
        kernel: None,
        ..model
    });
    let relayed = relay(dir, "to-third", "third", |_| {});
    assert_eq!(second.migrate(dir, "to-third"), MigrationStatus::Completed, "{:?}", second.handle.migration());
    assert!(sent == facts(relayed.join().unwrap()), "the guest is shown the same processor all the way");
    [first, second, third].into_iter().for_each(Machine::quit);
}

/// A guest that sees an invariant TSC is not migrated; on a host without one no guest sees it.
#[test]
fn a_guest_with_an_invariant_tsc_is_not_migrated() {
    let Some(dir) = lab() else { return };
    let mut config = config(dir.path());
    config.cpu.features = vec![("invtsc".into(), true)];
    match Vm::new(config, Box::new(std::io::sink())) {
        Err(error) => assert!(error.to_string().contains("invtsc (leaf 0x80000007 EDX bit 8)"), "{error}"),
        Ok(vm) => {
            let machine = Machine { handle: vm.handle(), thread: std::thread::spawn(|| vm.run()) };
            machine.until("runs", |handle| handle.run_state() == RunState::Running);
            let refusal = machine
                .handle
                .ask(Request::Migrate(Address::Unix(dir.path().join("incoming")), Terms::default()))
                .unwrap_err();
            assert!(format!("{refusal:?}").contains("without invtsc in --cpu"), "{refusal:?}");
            machine.quit();
        }
    }
}

/// The source's wall clock is off by an hour or ten years: the guest's clock advances by the time that passed.
#[test]
fn wall_clocks_that_disagree_do_not_move_the_guests_clock() {
    const HOUR: i64 = 3600;
    for offset_s in [HOUR, -HOUR, 10 * 365 * 24 * HOUR] {
        let Some(dir) = lab() else { return };
        let dir = dir.path();
        let begun = Instant::now();
        let first = Machine::stopped(config(dir));
        let second = Machine::waiting(dir, "second", |_| {});
        let set = move |piece: &mut [u8]| {
            if let Some(body) = body(piece, "minivmm/clock") {
                let wall = u64_at(piece, body).wrapping_add_signed(-offset_s * 1_000_000_000);
                piece[body..body + 8].copy_from_slice(&wall.to_be_bytes());
            }
        };
        let relayed = relay(dir, "to-second", "second", set);
        assert_eq!(first.migrate(dir, "to-second"), MigrationStatus::Completed, "{:?}", first.handle.migration());
        let clock = |stream: &[u8]| u64_at(stream, body(stream, "kvmclock").unwrap());
        let before = clock(&relayed.join().unwrap());
        let third = Machine::waiting(dir, "third", |_| {});
        let relayed = relay(dir, "to-third", "third", |_| {});
        second.until("arrives", |handle| handle.run_state() == RunState::Paused);
        let pause = Duration::from_millis(100);
        std::thread::sleep(pause);
        assert_eq!(second.migrate(dir, "to-third"), MigrationStatus::Completed, "{:?}", second.handle.migration());
        let passed = Duration::from_nanos(clock(&relayed.join().unwrap()) - before);
        assert!(pause < passed && passed < begun.elapsed(), "{offset_s} s: {passed:?} in {:?}", begun.elapsed());
        [first, second, third].into_iter().for_each(Machine::quit);
    }
}
