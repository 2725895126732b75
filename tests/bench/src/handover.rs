//! Measures the pause of a guest that is handed over to a new machine on this host without a copy of its memory, by
//! size of the memory.

use std::fmt::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use minivmm::config::{Address, Config, Cpu, Disk, ListenAt, RateLimits, Restore, Serial, Tls};
use minivmm::vm::{End, Handle, MigrationStatus, Request, RunState, Terms, Vm};
use vmstate_lab::tiny;

const SIZES_MIB: [u64; 4] = [256, 1024, 4096, 16384];
/// Number of pages that the guest keeps checking and rewriting: most of the smallest memory.
const PAGES: u64 = 50_000;
const WAIT: Duration = Duration::from_secs(30);

struct Machine {
    handle: Handle,
    thread: thread::JoinHandle<End>,
}

/// A table with a line for each size, measured over `hops` hand-overs.
pub(crate) fn table(hops: u64, directory: &Path) -> String {
    let mut text = String::from(
        "| memory, MiB | pause, ms, best | pause, ms, median | total, ms, median |\n| ---: | ---: | ---: | ---: |\n",
    );
    for mib in SIZES_MIB {
        let (mut pauses, mut totals) = hand_over(mib, hops, directory);
        pauses.sort();
        totals.sort();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let middle = pauses.len() / 2;
        // Writing to a string does not fail.
        let _ =
            writeln!(text, "| {mib} | {:.1} | {:.1} | {:.0} |", ms(pauses[0]), ms(pauses[middle]), ms(totals[middle]));
    }
    text
}

/// Hands a guest over from machine to machine; returns the pause and the total time of each hand-over.
fn hand_over(mib: u64, hops: u64, directory: &Path) -> (Vec<Duration>, Vec<Duration>) {
    let mut here = start(mib, directory, None);
    let mut times = (Vec::new(), Vec::new());
    for _ in 0..hops {
        // Let the guest work first.
        thread::sleep(Duration::from_millis(300));
        let socket = directory.join("update.sock");
        let at = Address::Local(socket.clone());
        let awaits = {
            let (directory, at) = (directory.to_owned(), at.clone());
            thread::spawn(move || start(mib, &directory, Some(at)))
        };
        await_that("a machine waits", || socket.exists());
        here.handle.ask(Request::Migrate(at, Terms::default())).expect("a guest that can be handed over");
        let migration = || here.handle.migration();
        await_that("the hand-over ends", || {
            matches!(migration().status(), MigrationStatus::Completed | MigrationStatus::Failed)
        });
        let report = migration();
        assert_eq!(report.status(), MigrationStatus::Completed, "{:?}", report.error);
        times.0.push(report.figures.downtime.expect("a downtime").total());
        times.1.push(report.figures.elapsed);
        let there = awaits.join().expect("a machine");
        await_that("the guest runs", || there.handle.run_state() == RunState::Running);
        end(here);
        here = there;
    }
    end(here);
    times
}

fn start(mib: u64, directory: &Path, incoming: Option<Address>) -> Machine {
    let (kernel, disk) = (directory.join("kernel"), directory.join("disk"));
    std::fs::write(&kernel, tiny::bzimage()).expect("a kernel");
    if incoming.is_none() {
        std::fs::write(&disk, [0; 4096]).expect("a disk");
    }
    let config = Config {
        kernel: incoming.is_none().then_some(kernel),
        initrd: None,
        append: tiny::command_line(PAGES, 0x800),
        memory: mib << 20,
        shares_memory: true,
        cpus: 1,
        cpu: Cpu::default(),
        disks: vec![Disk { path: disk, read_only: false, create: None, limits: RateLimits::default() }],
        lease: None,
        nets: Vec::new(),
        serial: Serial::None,
        control: None,
        incoming: incoming.map(ListenAt::Address),
        restore: Restore::default(),
        tls: Tls::default(),
        kvm: None,
    };
    let vm = Vm::new(config, Box::new(std::io::sink())).unwrap_or_else(|error| panic!("{}", error.with_causes()));
    let handle = vm.handle();
    Machine { handle, thread: thread::spawn(|| vm.run()) }
}

fn end(machine: Machine) {
    // A machine that has ended does not answer.
    let _ = machine.handle.ask(Request::Quit);
    machine.thread.join().expect("the machine does not panic");
}

fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + WAIT;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {WAIT:?}");
        thread::sleep(Duration::from_millis(1));
    }
}
