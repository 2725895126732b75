//! The program `vmstate`: shows and compares migration streams, and checks whether streams of one release load in another.
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

/// The result of a task.
enum Outcome {
    /// The stream is whole, or the comparison found no difference.
    Fine,
    /// The stream is damaged, the streams differ, or the schemas are not compatible.
    Wrong,
}

/// The text to print and the outcome; or a message about unusable input.
type TaskResult = Result<(String, Outcome), String>;

fn main() -> ExitCode {
    // On bad usage, clap itself exits with 2.
    let result = match Arguments::parse().task {
        Task::Inspect(options) => inspect::run(&options),
        Task::Diff { old, new } => diff::run(&old, &new),
        Task::Check(options) => check::run(&options),
    };
    match result {
        Ok((text, outcome)) => {
            // A write error is ignored: a reader like `head` closes the pipe early.
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
