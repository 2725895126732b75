//! The `minivmm` command: hands what the user asked for to the room that does it, and turns the outcome into an exit code.

use std::fmt::Display;
use std::process::ExitCode;

use minivmm::cli::{self, Command, EXIT_USAGE, MigrateArgs, Outcome, Parsed};
use minivmm::control::ClientError;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(Parsed::Command(command)) => command,
        Ok(Parsed::Text(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => return refuse(&error),
    };
    match command {
        Command::Run(arguments) => match arguments.into_config() {
            Ok(_config) => refuse(&"run: this build has no machine yet"),
            Err(error) => refuse(&error),
        },
        Command::Migrate(arguments) => migrate(&arguments),
        Command::Demo(_) => refuse(&"demo: this build has no lab yet"),
    }
}

fn migrate(arguments: &MigrateArgs) -> ExitCode {
    match arguments.carry_out() {
        Ok(Outcome::Completed) => ExitCode::SUCCESS,
        Ok(Outcome::NotMigrated(reason)) => fail(&reason),
        Err(error @ ClientError::Connect { .. }) => refuse(&error),
        Err(error) => fail(&error),
    }
}

/// The user can mend it by changing the command.
fn refuse(sentence: &dyn Display) -> ExitCode {
    eprintln!("minivmm: {sentence}");
    ExitCode::from(EXIT_USAGE)
}

/// The command was right, what it set off failed.
fn fail(sentence: &dyn Display) -> ExitCode {
    eprintln!("minivmm: {sentence}");
    ExitCode::FAILURE
}
