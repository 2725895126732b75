//! One line that says what happens now: rewritten in place on a terminal, a line per step elsewhere.

use std::io::{self, IsTerminal, Write};

/// Progress on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    step: String,
}

impl Progress {
    /// `TERM=dumb` says that a terminal cannot rewrite its line.
    pub(crate) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal() && !is_dumb(), step: String::new() }
    }

    /// Begins a step, or shows how far it is: `detail` changes often and appears on a terminal only.
    pub(crate) fn show(&mut self, step: &str, detail: &str) {
        if self.terminal {
            eprint!("\r\x1b[K{step} {detail}");
            // Progress that cannot be shown is no reason to stop.
            let _ = io::stderr().flush();
        } else if self.step != step {
            eprintln!("{step}");
        }
        self.step = step.to_owned();
    }

    /// Leaves a clean line.
    pub(crate) fn end(&mut self) {
        if self.terminal && !self.step.is_empty() {
            eprint!("\r\x1b[K");
        }
        self.step.clear();
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether the terminal cannot move its cursor; the emulated host hands this on to what runs in it.
pub(crate) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|kind| kind == "dumb")
}
