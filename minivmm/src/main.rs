//! The `minivmm` command: hands what the user asked for to the room that does it, and turns the outcome into an exit code.

use std::process::ExitCode;

use minivmm::cli::{self, Command, EXIT_USAGE, Parsed, UsageError};

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(Parsed::Command(command)) => command,
        Ok(Parsed::Text(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => return complain(&error),
    };
    match command {
        Command::Run(arguments) => match arguments.into_config() {
            Ok(_config) => complain(&UsageError("run: this build has no machine yet".into())),
            Err(error) => complain(&error),
        },
        Command::Migrate(_) => complain(&UsageError("migrate: this build has no client yet".into())),
        Command::Demo(_) => complain(&UsageError("demo: this build has no lab yet".into())),
    }
}

fn complain(error: &UsageError) -> ExitCode {
    eprintln!("minivmm: {error}");
    ExitCode::from(EXIT_USAGE)
}
