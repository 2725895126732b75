//! The lab's program: the demo, and the command that fetches everything that demo and tests need. `cargo demo` runs it.
//!
//! It links minivmm, and acts as minivmm when it is called by that name. So the initrds need one executable only, which
//! acts in the lab's [roles] as well.
#![forbid(unsafe_code)]

mod demo;
mod findings;
mod in_place;
mod linux;
mod mode;
mod picture;
mod progress;
mod report;
mod route;
mod signals;
mod tick_gap;
mod tiny;
mod waits;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vmstate_lab::{packages, roles};

/// Called by this name, the program acts as minivmm.
const MINIVMM: &str = "minivmm";

/// The lab: a live-migration demo, and what the tests need.
#[derive(Debug, Parser)]
#[command(name = "lab", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a guest, let it work, migrate it live, check it, and report
    Demo(demo::Options),
    /// Fetch what the demo and the tests need: QEMU, a guest kernel, tools
    Prepare,
}

fn main() -> ExitCode {
    let name = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if name.file_name().is_some_and(|name| name == MINIVMM) {
        return minivmm::program::main(std::env::args_os());
    }
    if let Some(code) = roles::dispatch() {
        return code;
    }
    match Cli::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Prepare => prepare(),
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
