//! A line about the current step: rewritten in place on a terminal, printed once for each step elsewhere.

use std::io::{self, Write};

use vmstate_lab::terminal;

/// Progress on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    step: String,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { terminal: terminal::rewrites_lines(), step: String::new() }
    }

    /// Begins a step, or updates its `detail`, which changes often and is shown on a terminal only.
    pub(crate) fn show(&mut self, step: &str, detail: &str) {
        if self.terminal {
            eprint!("\r\x1b[K{step} {detail}");
            // Failure to show progress must not stop the demo.
            let _ = io::stderr().flush();
        } else if self.step != step {
            eprintln!("{step}");
        }
        self.step = step.to_owned();
    }

    /// Ends the line.
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
