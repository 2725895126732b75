//! The parts one executable plays: first process of the emulated host or of a guest, and launcher of child processes.

use std::process::ExitCode;

use crate::{guest, init, process};

/// Plays the part that the command line asks for; `None` when it asks for none, and the caller goes on.
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next()?.to_str()? {
        init::ROLE => init::main(),
        guest::ROLE => guest::main(),
        process::ROLE => Some(process::exec(arguments)),
        _ => None,
    }
}
