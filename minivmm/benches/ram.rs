//! How fast RAM goes over: minivmm's memory and the engine over a unix socket, beside a plain copy of the same bytes
//! through such a socket and, if it is installed, QEMU.
//!
//! `cargo bench -p minivmm --bench ram [-- MIB [REPEATS]]`. Needs no KVM: no guest runs. Machines are noisy: only the
//! ratios within one run mean something.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use minivmm::control::Client;
use minivmm::memory::Ram;
use minivmm::migration::firmware::Firmware;
use minivmm::migration::ram::MachineRam;
use serde_json::json;
use vmstate::channel::{MonotonicClock, SocketChannel};
use vmstate::migrate::destination::{self, DestinationOptions, Incoming};
use vmstate::migrate::source::{self, Outgoing, SourceOptions};
use vmstate::migrate::{Claim, Control, Machine, SourcePhase};
use vmstate::ram::DirtyLog;
use vmstate::section::Sections;

const MIB: u64 = 1 << 20;
const LONGEST: Duration = Duration::from_secs(60);

/// Nothing runs, so nothing is written.
struct Still;

impl DirtyLog for Still {
    fn start(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn sync(&mut self, _block: usize, _words: &mut [u64]) -> vmstate::Result<()> {
        Ok(())
    }
    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> vmstate::Result<()> {
        Ok(())
    }
    fn stop(&mut self) {}
}

impl Machine for Still {
    fn pause(&mut self, _within: Duration) -> vmstate::Result<()> {
        Ok(())
    }
    fn loaded(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn resume(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn release(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn claim(&mut self) -> vmstate::Result<Claim> {
        Ok(Claim::Undecidable)
    }
}

fn main() {
    // Cargo adds `--bench`.
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let mib = numbers.first().copied().unwrap_or(1024);
    let repeats = numbers.get(1).copied().unwrap_or(3);
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let path = directory.path();
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output().is_ok();
    println!("{mib} MiB, MB/s of guest RAM");
    for (kind, random) in [("random", true), ("zero", false)] {
        let ram = Ram::new(mib * MIB).expect("memory");
        let file = path.join("ram");
        let mut content = std::fs::File::create(&file).expect("a file");
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for offset in (0..mib * MIB).step_by(MIB as usize) {
            let chunk: Vec<u8> = (0..MIB / 8).flat_map(|_| next(&mut state, random).to_le_bytes()).collect();
            // Zeros, too: the memory has been touched.
            ram.write(offset, &chunk).expect("inside");
            content.write_all(&chunk).expect("memory for the file");
        }
        for _ in 0..repeats {
            let rate = |seconds: f64| (mib * MIB) as f64 / seconds / 1e6;
            let (engine, plain) = (rate(engine(&ram)), rate(plain(&ram)));
            print!("{kind:8} minivmm {engine:6.0}  plain copy {plain:6.0} ({:.2})", engine / plain);
            if qemu {
                let qemu = rate(peer(path, &file, mib));
                print!("  QEMU {qemu:6.0} ({:.2})", engine / qemu);
            }
            println!();
        }
        std::fs::remove_file(&file).expect("the file");
    }
}

/// Xorshift, or zeros.
fn next(state: &mut u64, random: bool) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    if random { *state } else { 0 }
}

/// Seconds to migrate `ram` into fresh memory.
fn engine(ram: &Ram) -> f64 {
    let (here, there) = UnixStream::pair().expect("sockets");
    let len = ram.len();
    let arrival = thread::spawn(move || {
        let incoming = Incoming {
            channel: &mut SocketChannel::try_from(there).expect("a channel"),
            clock: &MonotonicClock::new(),
            machine: &mut Still,
            sections: &mut Sections::new(),
            ram: &MachineRam::arriving(Ram::new(len).expect("memory"), Firmware::default()),
        };
        destination::run(incoming, &DestinationOptions::new("bench"), &Control::default())
            .into_result()
            .expect("it arrives");
    });
    let outgoing = Outgoing {
        channel: &mut SocketChannel::try_from(here).expect("a channel"),
        clock: &MonotonicClock::new(),
        machine: &mut Still,
        sections: &mut Sections::new(),
        ram: &MachineRam::leaving(ram.clone(), &Firmware::default(), false),
        log: &mut Still,
    };
    let control = Control::default();
    control.set_bandwidth_limit(0);
    let departure = source::run(outgoing, &SourceOptions::new("bench"), &control);
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    arrival.join().expect("it arrives");
    departure.report.total.as_secs_f64()
}

/// Seconds to copy as many bytes through a socket into fresh memory, without looking at them.
fn plain(ram: &Ram) -> f64 {
    let (mut here, mut there) = UnixStream::pair().expect("sockets");
    let len = ram.len();
    let begun = Instant::now();
    let arrival = thread::spawn(move || {
        let ram = Ram::new(len).expect("memory");
        let mut chunk = vec![0; MIB as usize];
        for offset in (0..len).step_by(MIB as usize) {
            there.read_exact(&mut chunk).expect("all of it");
            ram.write(offset, &chunk).expect("inside");
        }
        ram
    });
    let mut chunk = vec![0; MIB as usize];
    for offset in (0..len).step_by(MIB as usize) {
        ram.read(offset, &mut chunk).expect("inside");
        here.write_all(&chunk).expect("a reader");
    }
    let copy = arrival.join().expect("it arrives");
    let taken = begun.elapsed().as_secs_f64();
    drop(copy);
    taken
}

/// A QEMU that is ended with its owner.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Qemu {
    /// A `microvm` that does not run; returns its QMP client, too.
    fn start(control: &Path, mib: u64, extra: &[String]) -> (Self, Client) {
        let _ = std::fs::remove_file(control);
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "microvm,memory-backend=ram", "-accel", "tcg", "-S", "-nodefaults", "-display", "none"]);
        command.args(["-m", &format!("{mib}M"), "-qmp", &format!("unix:{},server=on,wait=off", control.display())]);
        let qemu = Self(command.args(extra).stdin(Stdio::null()).spawn().expect("QEMU"));
        let begun = Instant::now();
        loop {
            match Client::connect(control) {
                Ok(client) => return (qemu, client),
                Err(error) if begun.elapsed() > LONGEST => panic!("QEMU does not come up: {error}"),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// Seconds that QEMU takes from QEMU to QEMU, by its own clock.
fn peer(directory: &Path, file: &Path, mib: u64) -> f64 {
    let socket = format!("unix:{}", directory.join("migration").display());
    let fresh = format!("memory-backend-ram,id=ram,size={mib}M");
    let filled = format!("memory-backend-file,id=ram,size={mib}M,share=off,mem-path={}", file.display());
    let arguments = |backend: String, more: &[&str]| {
        let all = ["-object", &backend].into_iter().chain(more.iter().copied());
        all.map(str::to_owned).collect::<Vec<_>>()
    };
    let (_to, _) = Qemu::start(&directory.join("to"), mib, &arguments(fresh, &["-incoming", &socket]));
    let (_from, mut from) = Qemu::start(&directory.join("from"), mib, &arguments(filled, &[]));
    from.execute("migrate-set-parameters", json!({"max-bandwidth": 1_u64 << 40})).expect("a limit");
    from.execute("migrate", json!({"uri": socket})).expect("a migration");
    let begun = Instant::now();
    loop {
        let state = from.execute("query-migrate", json!({})).expect("figures");
        match state["status"].as_str() {
            Some("completed") => return state["total-time"].as_f64().expect("a time") / 1000.0,
            Some("failed") => panic!("QEMU's migration failed: {state}"),
            _ if begun.elapsed() > LONGEST => panic!("QEMU's migration does not end: {state}"),
            _ => thread::sleep(Duration::from_millis(5)),
        }
    }
}
