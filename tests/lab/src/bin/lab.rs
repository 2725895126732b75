//! The lab by itself: fetches what the tests need; runs the demo with QEMU in minivmm's place, which gives the figures to
//! compare with.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use vmstate_lab::demo::{self, Options};
use vmstate_lab::{packages, roles};

const USAGE: &str = "usage: lab prepare\n       lab demo --qemu [--kernel FILE] [--cpus N] [--json FILE]";

enum Command {
    Prepare,
    Demo(Options),
}

fn main() -> ExitCode {
    if let Some(code) = roles::dispatch() {
        return code;
    }
    let mut words = std::env::args().skip(1);
    let command = match words.next().as_deref() {
        Some("prepare") if words.len() == 0 => Some(Command::Prepare),
        Some("demo") => parse(words).map(Command::Demo),
        _ => None,
    };
    match command {
        Some(Command::Prepare) => prepare(),
        Some(Command::Demo(options)) => demo::run(&options),
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn prepare() -> ExitCode {
    match packages::prepare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--qemu" => options.qemu = true,
            "--kernel" => options.kernel = Some(words.next()?.into()),
            "--cpus" => options.cpus = words.next()?.parse().ok()?,
            "--json" => options.json = Some(words.next()?.into()),
            _ => return None,
        }
    }
    options.qemu.then_some(options)
}
