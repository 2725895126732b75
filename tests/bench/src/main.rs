//! Measures how fast guest memory migrates: minivmm's memory and the engine, compared with QEMU and with the same bytes
//! through the same socket without any protocol.
//!
//! Usage: `cargo measure --help` (an alias of `cargo bench -p vmstate-bench --`). KVM is needed for `--hand-over`,
//! `--snapshot` and `--save` only: otherwise no guest runs. All memory was touched before. The variants take turns, and the first
//! turn is not counted. Machines are noisy: only ratios within one run are meaningful.
#![forbid(unsafe_code)]

mod bars;
mod case;
mod data;
mod engine;
mod guest;
mod handover;
mod limit;
mod measured;
mod memory;
mod monitor;
mod pace;
mod place;
mod qemu;
mod save;
mod snapshot;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use case::{Data, Filter, Limit, Sender, Transport, Variant, Word};
use measured::{Group, TurnResult};
use memory::Memory;

/// Size of the memory under a bandwidth limit, in MiB: large enough that a round takes longer than the work between two
/// rounds.
const LIMITED_MIB: u64 = 256;

/// Migrate guest memory repeatedly, and compare with QEMU
#[derive(Debug, Parser)]
#[command(bin_name = "cargo measure")]
struct Options {
    /// Size of the memory, in MiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(8..))]
    mib: u64,
    /// Number of turns that are counted, of each variant
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    turns: u64,
    /// Measure only the variants that these words select: for each kind of word (data, transport, channels, sender) one
    /// of those given
    #[arg(long, value_delimiter = ',', value_name = "WORD,…")]
    only: Vec<Word>,
    /// Instead, show how exactly bandwidth limits are kept, second by second; takes a minute and a half for each
    /// transport
    #[arg(long, conflicts_with_all = ["mib", "turns", "json", "plot"])]
    limits: bool,
    /// Instead, hand a guest over from machine to machine on this host, which needs a KVM that runs a bare-metal guest
    #[arg(long, conflicts_with_all = ["mib", "only", "limits", "json", "plot"])]
    hand_over: bool,
    /// Instead, save a guest of 4 GiB to a file and restore it, which needs a KVM that runs a bare-metal guest
    #[arg(long, conflicts_with_all = ["mib", "only", "limits", "hand_over", "json", "plot"])]
    snapshot: bool,
    /// Instead, save a paused guest with 1 GiB of contents to a file in this directory (a relative path is taken from the root of the
    /// repository), with one thread, two, and direct I/O
    #[arg(long, value_name = "DIR", conflicts_with_all = ["mib", "only", "limits", "hand_over", "snapshot", "json", "plot"])]
    save: Option<PathBuf>,
    /// Write the figures of each turn to this file; a relative path is taken from the root of the repository
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Replace the tables of this page that are between `<!-- cargo measure: DATA -->`, `… limits -->`, `… hand-over
    /// -->`, `… snapshot -->` or `… save -->`, and `<!-- end -->`
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Draw a picture for each kind of data in this directory, an SVG file
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// The flag that cargo passes to each benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    if monitor::is_minivmm() {
        return minivmm::program::main(std::env::args_os());
    }
    measure_all();
    ExitCode::SUCCESS
}

fn measure_all() {
    let options = Options::parse();
    let filter = Filter(options.only);
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    if options.limits {
        let memory = Memory::new(Data::Random, LIMITED_MIB, directory.path());
        let tables: Vec<String> = Transport::ALL
            .into_iter()
            .filter(|transport| filter.wants([transport.word()]))
            .map(|transport| format!("{transport}\n\n{}", pace::table(&memory, transport)))
            .collect();
        println!("{}", tables.join("\n"));
        replace(options.markdown.as_deref(), "limits", &tables);
        return;
    }
    if options.hand_over {
        let table = handover::table(options.turns, directory.path());
        println!("{table}");
        replace(options.markdown.as_deref(), "hand-over", &[table]);
        return;
    }
    if options.snapshot {
        let table = snapshot::table(options.turns, directory.path());
        println!("{table}");
        replace(options.markdown.as_deref(), "snapshot", &[table]);
        return;
    }
    if let Some(save) = &options.save {
        let directory = tempfile::tempdir_in(in_repository(save)).expect("a directory for the file");
        let table = save::table(options.turns, directory.path());
        println!("{table}");
        replace(options.markdown.as_deref(), "save", &[table]);
        return;
    }
    let has_qemu = qemu::version().is_some();
    if !has_qemu {
        eprintln!("no QEMU is installed: the comparison is left out");
    }
    let mut all: Vec<Group> = Vec::new();
    for data in Data::ALL {
        let mut memory = None;
        let first = all.len();
        for transport in Transport::ALL {
            let mut variants = Variant::all(data, transport, &filter);
            variants.retain(|variant| has_qemu || variant.sender != Sender::Qemu);
            if variants.is_empty() {
                continue;
            }
            let memory = memory.get_or_insert_with(|| Memory::new(data, data.mib(options.mib), directory.path()));
            let group = measure(memory, transport, variants, options.turns);
            println!("{}", table::markdown(&group));
            all.push(group);
        }
        let groups = &all[first..];
        if groups.is_empty() {
            continue;
        }
        replace(
            options.markdown.as_deref(),
            &data.to_string(),
            &groups.iter().map(table::markdown).collect::<Vec<_>>(),
        );
        if let Some(directory) = &options.plot {
            let command = format!("cargo measure --only {data} --plot DIR");
            write(
                &in_repository(directory).join(format!("{data}.svg")),
                &bars::draw(groups, &place::describe(), &command),
            );
        }
    }
    if let Some(file) = &options.json {
        write(&in_repository(file), &serde_json::to_string_pretty(&table::json(&all)).expect("figures are JSON"));
    }
}

/// Replaces the tables of a page, if one is given, at this mark.
fn replace(page: Option<&Path>, mark: &str, tables: &[String]) {
    let Some(page) = page else { return };
    let text = format!("{}\n\n{}", place::describe(), tables.join("\n"));
    vmstate_lab::document::replace(&in_repository(page), &format!("cargo measure: {mark}"), &text)
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Resolves a path from the root of the repository: cargo starts a benchmark in the directory of its package.
fn in_repository(path: &Path) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

fn write(file: &Path, text: &str) {
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    }
    std::fs::write(file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// Measures all variants in turn.
fn measure(memory: &Memory, transport: Transport, variants: Vec<Variant>, turns: u64) -> Group {
    let mut group = Group::new(memory, transport, variants);
    for turn in 0..=turns {
        for (variant, taken) in &mut group.results {
            let one = run(memory, transport, *variant, turn == 0);
            if turn > 0 {
                taken.push(one);
            }
        }
    }
    group
}

/// Runs one turn; with `checked`, the memory that arrives is compared.
fn run(memory: &Memory, transport: Transport, variant: Variant, checked: bool) -> TurnResult {
    let ends = match variant.sender {
        Sender::Qemu => return qemu::run(memory, transport, variant),
        _ => memory.ends(),
    };
    let moves = matches!(variant.sender, Sender::Minivmm | Sender::Limit(Limit::Sockets(_)));
    if checked && moves {
        ends.spoil();
    } else {
        ends.renew();
    }
    let taken = match variant.sender {
        Sender::Limit(limit) => limit::run(limit, &ends, transport),
        _ => engine::run(memory, &ends, transport, variant),
    };
    if checked && moves {
        ends.check();
    }
    taken
}
