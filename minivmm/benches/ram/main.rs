//! How fast RAM goes over: minivmm's memory and the engine, beside QEMU and beside the same bytes through the same socket without
//! any protocol; one channel and several, unix and TCP, random data and zeros.
//!
//! `cargo bench -p minivmm --bench ram [-- MIB [REPEATS]]`. Needs no KVM: no guest runs. All memory was touched before. The variants take
//! turns, and the first turn is not counted. Machines are noisy: only the ratios within one run mean something.

mod engine;
mod limit;
mod qemu;

use std::fmt;
use std::io::Write;
use std::path::Path;

use minivmm::memory::Ram;

const MIB: u64 = 1 << 20;

/// What carries the bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport {
    Unix,
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if let Self::Unix = self { "unix" } else { "tcp" })
    }
}

/// What one turn took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// Seconds.
    pub(crate) time: f64,
    /// Seconds of processors, of both ends.
    pub(crate) cpu: f64,
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// The engine over one channel, or over so many page channels.
    Engine(u8),
    /// QEMU likewise.
    Qemu(u8),
    /// No protocol.
    Limit,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine(0) => f.write_str("minivmm"),
            Self::Engine(channels) => write!(f, "minivmm, {channels} page channels"),
            Self::Qemu(0) => f.write_str("QEMU"),
            Self::Qemu(channels) => write!(f, "QEMU, multifd {channels}"),
            Self::Limit => f.write_str("the socket alone"),
        }
    }
}

const CHANNELS: [u8; 3] = [0, 2, 4];

fn main() {
    // Cargo adds `--bench`.
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let mib = numbers.first().copied().unwrap_or(1024);
    let repeats = numbers.get(1).copied().unwrap_or(7);
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let peer = qemu::is_there();
    for (kind, random) in [("random", true), ("zero", false)] {
        let (source, target) = (Ram::new(mib * MIB).expect("memory"), Ram::new(mib * MIB).expect("memory"));
        let file = directory.path().join("ram");
        fill(&source, &target, &file, random);
        for transport in [Transport::Unix, Transport::Tcp] {
            let ours = CHANNELS.map(Variant::Engine);
            let theirs = CHANNELS.map(Variant::Qemu);
            let mut variants = vec![Variant::Limit];
            for (ours, theirs) in ours.into_iter().zip(theirs) {
                variants.push(ours);
                variants.extend(peer.then_some(theirs));
            }
            let mut taken: Vec<(Variant, Vec<Taken>)> = variants.into_iter().map(|variant| (variant, vec![])).collect();
            for turn in 0..=repeats {
                for (variant, all) in &mut taken {
                    if turn == 0 && !matches!(variant, Variant::Qemu(_)) {
                        spoil(&target);
                    }
                    let one = match *variant {
                        Variant::Engine(channels) => engine::run(&source, &target, transport, channels),
                        Variant::Qemu(channels) => qemu::run(directory.path(), &file, mib, transport, channels),
                        Variant::Limit => limit::run(&source, &target, transport),
                    };
                    match turn {
                        0 => check(&source, &target),
                        _ => all.push(one),
                    }
                }
            }
            report(&format!("{kind}, {transport}"), mib, &taken);
        }
        std::fs::remove_file(&file).expect("the file");
    }
}

/// Fills the source and a file for QEMU alike, and touches the target.
fn fill(source: &Ram, target: &Ram, file: &Path, random: bool) {
    let mut content = std::fs::File::create(file).expect("a file");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for offset in (0..source.len()).step_by(MIB as usize) {
        let chunk: Vec<u8> = (0..MIB / 8).flat_map(|_| next(&mut state, random).to_le_bytes()).collect();
        source.write(offset, &chunk).expect("inside");
        content.write_all(&chunk).expect("memory for the file");
        target.write(offset, &vec![0; MIB as usize]).expect("inside");
    }
}

/// Writes over all of it, so that only what arrives is what was sent.
fn spoil(ram: &Ram) {
    for offset in (0..ram.len()).step_by(MIB as usize) {
        ram.write(offset, &vec![0xaa; MIB as usize]).expect("inside");
    }
}

/// Xorshift, or zeros.
fn next(state: &mut u64, random: bool) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    if random { *state } else { 0 }
}

/// All arrived as it was.
fn check(source: &Ram, target: &Ram) {
    let [mut here, mut there] = [vec![0; MIB as usize], vec![0; MIB as usize]];
    for offset in (0..source.len()).step_by(MIB as usize) {
        source.read(offset, &mut here).expect("inside");
        target.read(offset, &mut there).expect("inside");
        assert!(here == there, "the MiB at {offset:#x} differs");
    }
}

/// The middle one.
fn median(all: &[Taken], value: fn(&Taken) -> f64) -> f64 {
    let mut values: Vec<f64> = all.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(title: &str, mib: u64, taken: &[(Variant, Vec<Taken>)]) {
    println!("\n{title}, {mib} MiB");
    println!("| | MB/s, best | MB/s, median | CPU s/GiB, median | speed to QEMU | CPU to QEMU |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    let rate = |seconds: f64| (mib * MIB) as f64 / seconds / 1e6;
    for (variant, all) in taken {
        let time = median(all, |taken| taken.time);
        let cpu = median(all, |taken| taken.cpu);
        let best = all.iter().map(|taken| taken.time).fold(f64::INFINITY, f64::min);
        print!("| {variant} | {:.0} | {:.0} | {:.3} |", rate(best), rate(time), cpu * 1024.0 / mib as f64);
        let peer = taken.iter().find(|(other, _)| matches!((variant, other), (Variant::Engine(channels), Variant::Qemu(theirs)) if channels == theirs));
        match peer {
            Some((_, theirs)) => {
                println!(
                    " {:.2} | {:.2} |",
                    median(theirs, |taken| taken.time) / time,
                    cpu / median(theirs, |taken| taken.cpu)
                );
            }
            None => println!(" | |"),
        }
    }
}

/// Seconds of processors that a process has used: fields 14 and 15 of proc_pid_stat(5), in hundredths of a second.
pub(crate) fn processor_time(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}
