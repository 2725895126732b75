//! The program `vmstate`: looks into migration streams, and says whether those of one release load in another.
//!
//! Exit codes: 0 fine (`diff`: equal, `check`: compatible), 1 the stream is damaged (`diff`: they differ, `check`: not
//! compatible), 2 bad usage or input.
#![forbid(unsafe_code)]

mod check;
mod diff;
mod inspect;
mod sparse;
mod text;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vmstate::error::Printable;

/// Looks into migration streams of QEMU's format, and compares releases.
#[derive(Parser)]
#[command(name = "vmstate", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Shows a stream: sections with offsets and sizes, fields by name, RAM. Exit code 1 if it is damaged.
    Inspect(inspect::Options),
    /// Compares two streams field by field. Exit code 1 if they differ.
    Diff {
        /// A file with a stream.
        old: PathBuf,
        /// Another one.
        new: PathBuf,
    },
    /// Says whether streams of an old release load in a new one, from their schemas. Exit code 1 if not.
    Check(check::Options),
}

/// What a task has found out.
enum Outcome {
    /// All is well.
    Fine,
    /// The stream is damaged, the two differ, or are not compatible.
    Wrong,
}

/// What to print, and how it ended; or what is wrong with the input.
type TaskResult = Result<(String, Outcome), String>;

fn main() -> ExitCode {
    // clap itself ends with 2 on bad usage.
    let result = match Arguments::parse().task {
        Task::Inspect(options) => inspect::run(&options),
        Task::Diff { old, new } => diff::run(&old, &new),
        Task::Check(options) => check::run(&options),
    };
    match result {
        Ok((text, outcome)) => {
            // A reader like `head` that has seen enough is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            match outcome {
                Outcome::Fine => ExitCode::SUCCESS,
                Outcome::Wrong => ExitCode::from(1),
            }
        }
        Err(message) => {
            eprintln!("vmstate: {}", Printable(message));
            ExitCode::from(2)
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let stream = sparse::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    match stream.starts_with(b"QEVM") || b"QEVM".starts_with(&stream) {
        true => Ok(stream),
        false => Err(format!("{}: not a migration stream: it does not begin with QEVM", file.display())),
    }
}
