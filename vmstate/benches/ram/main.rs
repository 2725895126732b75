//! How fast the kernels of the RAM path are: `cargo bench -p vmstate --bench ram [-- ROUNDS [NAME]]`, with a NAME only that section.
//!
//! The ways to do a thing take turns in each round, so that a noisy machine is noisy to all of them; of each, the best and the
//! median round are printed, and the ratio of the medians to the first of its group.

mod packet;
mod xbzrle;
mod zero;

use std::time::Instant;

/// Name and benchmarks of a section, which are run so many rounds.
type Section = (&'static str, fn(usize));

const SECTIONS: [Section; 3] = [("zero", zero::run), ("packet", packet::run), ("xbzrle", xbzrle::run)];

fn main() {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let rounds = arguments.first().map_or(30, |rounds| rounds.parse().expect("ROUNDS is a number"));
    for (name, run) in SECTIONS {
        if arguments.get(1).is_none_or(|wanted| wanted == name) {
            run(rounds);
        }
    }
}

/// What the numbers of a group are.
#[derive(Clone, Copy)]
enum Unit {
    /// Megabytes a second, of a run that treats so many bytes.
    Speed(usize),
}

impl Unit {
    fn of(self, seconds: f64) -> String {
        match self {
            Self::Speed(bytes) => format!("{:10.0} MB/s", bytes as f64 / seconds / 1e6),
        }
    }
}

/// One way to do a thing: its name, and one run of it.
type Way<'a> = (&'a str, Box<dyn FnMut() + 'a>);

/// Runs all `ways` in turn, and prints how they compare.
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
        println!("{group:32} {name:28} {} {} {ratio:8.2}", unit.of(best), unit.of(median));
    }
}
