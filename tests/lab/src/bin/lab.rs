//! The lab by itself: the demo with QEMU in minivmm's place, which gives the figures to compare with.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use vmstate_lab::demo::{self, Options};
use vmstate_lab::roles;

const USAGE: &str = "usage: lab demo --qemu [--kernel FILE] [--cpus N] [--json FILE]";

fn main() -> ExitCode {
    if let Some(code) = roles::dispatch() {
        return code;
    }
    match parse(std::env::args().skip(1)) {
        Some(options) => demo::run(&options),
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Options> {
    if words.next()? != "demo" {
        return None;
    }
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
