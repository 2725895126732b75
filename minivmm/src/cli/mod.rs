//! The command line: parses what the user typed to plain data, or to one sentence that says what to change.

mod backup;
mod config_file;
mod cont;
mod drawing;
mod generated;
mod interrupts;
mod limits;
mod machine;
mod migrate;
mod parameters;
mod plan;
mod progress;
pub mod report;
mod run;
mod snapshot;
mod status;
#[cfg(test)]
mod tests;
mod tls;
mod translate;
mod units;
mod update;
mod values;

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

pub use backup::BackupArgs;
pub use cont::ContArgs;
pub use generated::{CompletionsArgs, ManArgs};
pub use machine::MachineArgs;
pub use migrate::{MigrateArgs, Outcome};
pub use parameters::{ParameterArgs, PolicyArgs, SendingArgs};
pub use plan::{PlanArgs, Planned};
pub use run::RunArgs;
pub use snapshot::SnapshotCommand;
pub use status::StatusArgs;
pub use tls::{TlsArgs, TlsCommand};
pub use translate::{TranslateArgs, Translation, from_qemu, line, to_qemu};

/// Exit code for a wrong command line, a missing file, or a machine that could not be built.
pub const EXIT_USAGE: u8 = 2;

/// Exit code of a migration that ended as [`Outcome::Unacknowledged`].
pub const EXIT_UNACKNOWLEDGED: u8 = 3;

/// Exit code of a migration that ended as [`Outcome::Undecided`].
pub const EXIT_UNDECIDED: u8 = 4;

/// Exit code of a migration that ended as [`Outcome::Unknown`].
pub const EXIT_UNKNOWN: u8 = 5;

/// The command that the user gave.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run a virtual machine, or receive one
    Run(Box<RunArgs>),
    /// Migrate a running machine, and wait for the end
    Migrate(Box<MigrateArgs>),
    /// Save snapshots of a running guest
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Copy a disk of a running machine, whole or what has changed
    Backup(BackupArgs),
    /// Predict a migration: rounds, times, throttle, and what would help
    Plan(Box<PlanArgs>),
    /// Show the state of a running machine: its guest, its migration, its devices
    Status(StatusArgs),
    /// Stop the guest; cont resumes it
    #[command(after_help = "Example:\n  minivmm stop --control unix:/run/vm/qmp")]
    Stop(MachineArgs),
    /// Resume a stopped guest, or take it back after a migration
    Cont(ContArgs),
    /// End a machine's process, whatever its guest does
    #[command(after_help = "Example:\n  minivmm quit --control unix:/run/vm/qmp")]
    Quit(MachineArgs),
    /// Make certificates for encrypted migrations
    #[command(subcommand)]
    Tls(TlsCommand),
    /// Translate a command line of QEMU's microvm to one of minivmm
    #[command(
        after_help = "Example:\n  minivmm from-qemu -- qemu-system-x86_64 -M microvm,acpi=on -accel kvm -kernel vmlinuz"
    )]
    FromQemu(TranslateArgs),
    /// Translate a command line of minivmm to one of QEMU
    #[command(after_help = "Example:\n  minivmm to-qemu -- run --kernel vmlinuz --memory 512M --cpus 2")]
    ToQemu(TranslateArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write one for each command
    Man(ManArgs),
}

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  the machine refused or failed; for migrate and snapshot save: the guest is where it was; for plan: the migration gives up
  2  the command line is wrong, a file cannot be used, or the machine cannot be reached
  3, 4 and 5 are explained by minivmm migrate --help

Examples:
  minivmm run --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --control unix:a.qmp
  minivmm run --control unix:b.qmp --incoming unix:move.sock
  minivmm migrate --control unix:a.qmp unix:move.sock
  minivmm migrate --help";

/// A small KVM virtual-machine monitor that boots Linux and live-migrates it.
#[derive(Debug, Parser)]
#[command(name = "minivmm", version, disable_help_subcommand = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// One sentence that names the flag and what to do; the process exits with [`EXIT_USAGE`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Result of parsing the command line.
#[derive(Clone, Debug)]
pub enum Parsed {
    /// A command to carry out.
    Command(Box<Command>),
    /// Help or version that the user asked for: print it and exit with success.
    Text(String),
}

/// Reads an argument vector; the first item is the program's name.
///
/// # Errors
/// The first mistake in the arguments.
pub fn parse(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Parsed, UsageError> {
    let arguments = config_file::expand(arguments.into_iter().map(Into::into).collect())?;
    match Cli::try_parse_from(arguments) {
        Ok(cli) => Ok(Parsed::Command(Box::new(cli.command))),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Parsed::Text(error.to_string())),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
                Err(UsageError("no command given; say run, migrate, status or another one of minivmm --help".into()))
            }
            ErrorKind::InvalidSubcommand if is_demo(error.get(ContextKind::InvalidSubcommand)) => {
                Err(UsageError("the demo is a program of its own: run `cargo demo` in minivmm's source tree".into()))
            }
            _ => Err(UsageError(one_sentence(&error.to_string()))),
        },
    }
}

/// Whether the subcommand is `demo`, which earlier releases had.
fn is_demo(subcommand: Option<&ContextValue>) -> bool {
    matches!(subcommand, Some(ContextValue::String(name)) if name == "demo")
}

/// Returns the first paragraph of clap's report, which is its message; tips and usage follow it.
fn one_sentence(report: &str) -> String {
    let message = report.split("\n\n").next().unwrap_or(report);
    let words: Vec<&str> = message.trim_start_matches("error: ").split_whitespace().collect();
    let sentence = words.join(" ");
    // These messages list the possible values: the texts of `values`, or clap's list for an enum.
    if sentence.starts_with("invalid value") { sentence } else { format!("{sentence}; see minivmm --help") }
}
