//! The host side of the serial port: terminal, file or pseudo-terminal. The process to which a guest is handed over continues with
//! the descriptors of its console.

mod input;
mod log;
mod terminal;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::ttyname;

use self::log::Log;
use crate::config::Serial;
use crate::devices::serial::Sink;
use crate::files::{self, Fit, Mode};
use crate::passed;

pub use input::Input;
pub use terminal::{RawTerminal, restore};

/// Names of the descriptors that are handed over.
const FILE: &str = "console file";
const EARLIER: &str = "console file earlier";
const PTY: &str = "console pty";
const PTY_PEER: &str = "console pty peer";
const INPUT: &str = "console input";
const OUTPUT: &str = "console output";

/// Descriptors that were handed over with a guest, by name.
pub type HandedOver = BTreeMap<String, OwnedFd>;

/// An open console.
#[derive(Debug)]
pub struct Console {
    /// Takes the guest's output.
    pub output: Sink,
    /// Input, if there is a keyboard.
    pub input: Option<Input>,
    /// Keeps the terminal raw until it is dropped.
    pub terminal: Option<RawTerminal>,
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
    /// Opens the console that `serial` names. With descriptors that were `handed_over` with the guest, it continues the console
    /// of another process, if that is of the same kind, and a file keeps its content. The path of a pseudo-terminal is printed on
    /// standard output.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open(serial: &Serial, mut handed_over: Option<&mut HandedOver>) -> Result<Self, ConsoleError> {
        let append = if handed_over.is_some() { Mode::Append } else { Mode::Write };
        let mut take = |name| handed_over.as_mut()?.remove(name);
        let refused = |place: &str, remedy| {
            let place = place.to_owned();
            move |source| ConsoleError { place, source, remedy }
        };
        match serial {
            Serial::Stdio => Self::stdio(take(INPUT).zip(take(OUTPUT)))
                .map_err(refused("stdio", "use --serial none or --serial file:PATH")),
            Serial::File { path, max } => {
                let open = |path: &Path, mode, fit| {
                    let (place, remedy) = match passed::reference(path) {
                        Some(reference) => (format!("fd:{reference}"), "pass one that may be written"),
                        None => (format!("file:{}", path.display()), "choose a path that you may write"),
                    };
                    files::open(path, mode, fit).map_err(refused(&place, remedy))
                };
                let handed_over = take(FILE).map(File::from).filter(|file| is_at(file, path));
                let output = match max {
                    None => handed_over.map_or_else(|| open(path, append, Fit::Output), Ok).map(to_file)?,
                    Some(max) => {
                        let handed_over = handed_over.zip(take(EARLIER).map(File::from));
                        let opened = || {
                            let earlier = Log::earlier(path);
                            let file = open(path, Mode::Rewrite, Fit::Regular)?;
                            Ok((file, open(&earlier, Mode::Rewrite, Fit::Regular)?))
                        };
                        let (file, earlier) = handed_over.map_or_else(opened, Ok)?;
                        to_log(file, earlier, *max)
                    }
                };
                let place = format!("file:{}", path.display());
                let output = output.map_err(refused(&place, "allow the process more open files (ulimit -n)"))?;
                Ok(Self { output, input: None, terminal: None })
            }
            Serial::Pty => Self::pty(take(PTY).zip(take(PTY_PEER)))
                .map_err(refused("pty", "use --serial none or --serial file:PATH")),
            Serial::None => Ok(Self { output: Box::new(io::sink()).into(), input: None, terminal: None }),
        }
    }

    /// Uses files of its own: those of `std` are buffered by line, and guarded by locks that a blocked reader holds. A process
    /// without input, as `migrate --local` starts it, uses what was handed over: input and output.
    fn stdio(handed_over: Option<(OwnedFd, OwnedFd)>) -> io::Result<Self> {
        let own = || -> io::Result<_> {
            Ok((io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?))
        };
        let handed_over = handed_over.filter(|_| is_null(io::stdin().as_fd()));
        let (input, output) = handed_over.map_or_else(own, Ok)?;
        let mut sink = Sink::new(output.try_clone()?.into())?;
        // A terminal is left to the process that was started on it, and standard input that is empty needs no reader.
        if !input.is_terminal() && !output.is_terminal() && !is_null(input.as_fd()) {
            sink = sink.passing(INPUT, &input)?.passing(OUTPUT, &output)?;
        }
        let terminal = RawTerminal::enter()?;
        Ok(Self { output: sink, input: Some(Input::with_escape(input.into())), terminal })
    }

    fn pty(handed_over: Option<(OwnedFd, OwnedFd)>) -> io::Result<Self> {
        let (master, peer) = handed_over.map_or_else(new_pty, Ok)?;
        println!("serial console on {}", ttyname(&peer)?.display());
        let master = File::from(master);
        let output = Sink::new(master.try_clone()?)?.passing(PTY, &master)?.passing(PTY_PEER, &peer)?;
        // A read fails with EIO while no slave is open, so one stays open.
        Ok(Self { output, input: Some(Input::plain(master).holding(peer)), terminal: None })
    }
}

/// Opens a pseudo-terminal, both of whose ends are returned.
fn new_pty() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = openpty(None, None)?;
    // The guest does echo and line editing.
    let mut settings = tcgetattr(&pair.slave)?;
    cfmakeraw(&mut settings);
    tcsetattr(&pair.slave, SetArg::TCSANOW, &settings)?;
    // A write takes as much as the user's side has room for, so that it is known what was written.
    let flags = OFlag::from_bits_retain(fcntl(&pair.master, FcntlArg::F_GETFL)?);
    fcntl(&pair.master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok((pair.master, pair.slave))
}

fn to_file(file: File) -> io::Result<Sink> {
    let passed = file.try_clone()?;
    Sink::new(file)?.passing(FILE, passed)
}

fn to_log(file: File, earlier: File, max: u64) -> io::Result<Sink> {
    let (file_passed, earlier_passed) = (file.try_clone()?, earlier.try_clone()?);
    Sink::from(Box::new(Log::new(file, earlier, max))).passing(FILE, file_passed)?.passing(EARLIER, earlier_passed)
}

/// Whether `path` is the file that was handed over, or cannot be looked at here. A file that was renamed since it was opened, or
/// a passed one, is not continued.
fn is_at(file: &File, path: &Path) -> bool {
    match (path.metadata(), file.metadata()) {
        (Ok(there), Ok(here)) => (there.dev(), there.ino()) == (here.dev(), here.ino()),
        (Err(error), _) => error.kind() == io::ErrorKind::PermissionDenied,
        (_, Err(_)) => false,
    }
}

/// Whether this is `/dev/null` (null(4)).
fn is_null(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|is| is.st_rdev == rustix::fs::makedev(1, 3))
}

#[cfg(test)]
mod tests;
