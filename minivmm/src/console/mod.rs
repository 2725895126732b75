//! The host side of the serial port: terminal, file or pseudo-terminal.

mod input;
mod log;
mod terminal;

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::ttyname;

use self::log::Log;
use crate::config::Serial;
use crate::files::{self, Fit, Mode};
use crate::passed;

pub use input::Input;
pub use terminal::{RawTerminal, restore};

/// An open console.
pub struct Console {
    /// Takes the guest's output. A write may block: the serial port writes from a thread of its own.
    pub output: Box<dyn Write + Send>,
    /// Input, if there is a keyboard.
    pub input: Option<Input>,
    /// Keeps the terminal raw until it is dropped.
    pub terminal: Option<RawTerminal>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("input", &self.input).field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

/// Why the console cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("--serial {place}: {source}; {remedy}")]
pub struct ConsoleError {
    place: String,
    source: io::Error,
    remedy: &'static str,
}

impl Console {
    /// Opens the console that `serial` names. With `goes_on`, it continues the console of another process, and a file keeps its
    /// content. The path of a new pseudo-terminal is printed on standard output.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open(serial: &Serial, goes_on: bool) -> Result<Self, ConsoleError> {
        let refused = |place: &str, remedy| {
            let place = place.to_owned();
            move |source| ConsoleError { place, source, remedy }
        };
        match serial {
            Serial::Stdio => Self::stdio().map_err(refused("stdio", "use --serial none or --serial file:PATH")),
            Serial::File { path, max } => {
                let open = |path: &Path, mode, fit| {
                    let (place, remedy) = match passed::reference(path) {
                        Some(reference) => (format!("fd:{reference}"), "pass one that may be written"),
                        None => (format!("file:{}", path.display()), "choose a path that you may write"),
                    };
                    files::open(path, mode, fit).map_err(refused(&place, remedy))
                };
                let output: Box<dyn Write + Send> = match max {
                    None => Box::new(open(path, if goes_on { Mode::Append } else { Mode::Write }, Fit::Output)?),
                    Some(max) => {
                        let file = open(path, Mode::Rewrite, Fit::Regular)?;
                        Box::new(Log::new(file, open(&Log::earlier(path), Mode::Rewrite, Fit::Regular)?, *max))
                    }
                };
                Ok(Self { output, input: None, terminal: None })
            }
            Serial::Pty => Self::pty().map_err(refused("pty", "use --serial none or --serial file:PATH")),
            Serial::None => Ok(Self { output: Box::new(io::sink()), input: None, terminal: None }),
        }
    }

    /// Uses files of its own: those of `std` are buffered by line, and guarded by locks that a blocked reader holds.
    fn stdio() -> io::Result<Self> {
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let terminal = RawTerminal::enter()?;
        Ok(Self { output: Box::new(output), input: Some(Input::with_escape(input)), terminal })
    }

    fn pty() -> io::Result<Self> {
        let pair = openpty(None, None)?;
        // The guest does echo and line editing.
        let mut settings = tcgetattr(&pair.slave)?;
        cfmakeraw(&mut settings);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &settings)?;
        println!("serial console on {}", ttyname(&pair.slave)?.display());
        let master = File::from(pair.master);
        Ok(Self {
            output: Box::new(master.try_clone()?),
            // A read fails with EIO while no slave is open, so one stays open.
            input: Some(Input::plain(master).holding(pair.slave)),
            terminal: None,
        })
    }
}

#[cfg(test)]
mod tests;
