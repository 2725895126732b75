//! The `minivmm` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    minivmm::program::main(std::env::args_os())
}
