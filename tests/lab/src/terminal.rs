//! The terminal that our standard error is, if it is one.

use std::io::{self, IsTerminal};

/// Whether a line that was written can be written over. `TERM=dumb` says that a terminal cannot move its cursor.
pub fn rewrites_lines() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|kind| kind != "dumb")
}
