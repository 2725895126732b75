//! Whether standard error is a terminal whose lines can be rewritten.

use std::io::{self, IsTerminal};

/// Whether a written line can be overwritten. `TERM=dumb` means that a terminal cannot move its cursor.
pub fn rewrites_lines() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|kind| kind != "dumb")
}
