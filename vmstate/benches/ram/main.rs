//! Speed of the kernels of the RAM path: `cargo bench -p vmstate --bench ram [-- ROUNDS [NAME [PAGE]]]`, with a NAME other than
//! `all` only that section. The table replaces the one between `<!-- kernels of the RAM path -->` and `<!-- end -->` in PAGE, a
//! path relative to the root of the repository.
//!
//! The alternatives take turns in each round, so that noise of the machine affects all of them; for each, the best and the median
//! round are printed, and the ratio of the medians to the first of its group.

mod bookkeeping;
mod packet;
mod xbzrle;
mod zero;

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// Name and benchmark of a section; the argument is the number of rounds.
type Section = (&'static str, fn(usize));

const SECTIONS: [Section; 4] =
    [("zero", zero::run), ("packet", packet::run), ("bookkeeping", bookkeeping::run), ("xbzrle", xbzrle::run)];

fn main() {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let rounds = arguments.first().map_or(30, |rounds| rounds.parse().expect("ROUNDS is a number"));
    let only = arguments.get(1).filter(|name| *name != "all");
    print_line("| | way | best | median | speed to the first |\n| --- | --- | ---: | ---: | ---: |");
    for (name, run) in SECTIONS {
        if only.is_none_or(|wanted| wanted == name) {
            run(rounds);
        }
    }
    if let Some(page) = arguments.get(2) {
        let table = TABLE.lock().expect("one thread");
        let page = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(page);
        vmstate_lab::document::replace(&page, "kernels of the RAM path", &table)
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

/// All lines printed so far.
static TABLE: Mutex<String> = Mutex::new(String::new());

/// Prints a line of the table.
fn print_line(line: &str) {
    println!("{line}");
    let mut table = TABLE.lock().expect("one thread");
    table.push_str(line);
    table.push('\n');
}

/// The unit of a group's numbers.
#[derive(Clone, Copy)]
enum Unit {
    /// Megabytes a second, for a run that processes this many bytes.
    Speed(usize),
    /// Milliseconds, and nanoseconds for each of this many pages.
    Pages(u64),
}

impl Unit {
    fn of(self, seconds: f64) -> String {
        match self {
            Self::Speed(bytes) => format!("{:.0} MB/s", bytes as f64 / seconds / 1e6),
            Self::Pages(pages) => format!("{:.3} ms, {:.4} ns/page", seconds * 1e3, seconds * 1e9 / pages as f64),
        }
    }
}

/// One alternative: its name, and one run of it.
type Way<'a> = (&'a str, Box<dyn FnMut() + 'a>);

/// Runs all `ways` in turn, and prints the comparison.
fn compare(group: &str, unit: Unit, rounds: usize, ways: &mut [Way<'_>]) {
    let mut times = vec![Vec::new(); ways.len()];
    // The first round warms up.
    for round in 0..=rounds {
        for ((_, run), times) in ways.iter_mut().zip(&mut times) {
            let begun = Instant::now();
            run();
            if round > 0 {
                times.push(begun.elapsed().as_secs_f64());
            }
        }
    }
    let mut first = None;
    for ((name, _), times) in ways.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let (best, median) = (times[0], times[times.len() / 2]);
        let ratio = *first.get_or_insert(median) / median;
        print_line(&format!("| {group} | {name} | {} | {} | {ratio:.2} |", unit.of(best), unit.of(median)));
    }
}
