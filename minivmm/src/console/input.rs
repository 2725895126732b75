//! Carries bytes from the keyboard to the serial port, as fast as the port takes them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::sandbox::{self, Kind};

/// Ctrl-A, QEMU's escape character: with `x` it ends the machine, twice it is sent once.
const ESCAPE: u8 = 0x01;

/// How long to wait before input is offered again to a port that took none.
const RETRY: Duration = Duration::from_millis(5);

/// Input of a console.
#[derive(Debug)]
pub struct Input {
    source: File,
    escape: bool,
    pub(super) held: Option<OwnedFd>,
}

impl Input {
    /// Passes all bytes to the guest.
    pub(super) fn plain(source: File) -> Self {
        Self { source, escape: false, held: None }
    }

    /// Ends the machine at Ctrl-A x.
    pub(super) fn with_escape(source: File) -> Self {
        Self { source, escape: true, held: None }
    }

    /// Keeps `fd` open while the input is read.
    pub(super) fn holding(self, fd: OwnedFd) -> Self {
        Self { held: Some(fd), ..self }
    }

    /// Starts a thread that passes the input to `sink`, which returns how many bytes it took, until the input ends or the user
    /// asks to end the machine: then the thread calls `quit`. The process does not wait for the thread when it ends.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn pump(
        self,
        mut sink: impl FnMut(&[u8]) -> usize + Send + 'static,
        quit: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        sandbox::spawn(Kind::Console, "console-input", move || {
            let Self { mut source, escape, held: _held } = self;
            let mut keys = Keys { escape, escaped: false };
            let mut buffer = [0; 256];
            loop {
                let typed = match source.read(&mut buffer) {
                    // The guest continues without input.
                    Ok(0) => return,
                    Ok(length) => &buffer[..length],
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                let (bytes, ended) = keys.translate(typed);
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    match sink(rest).min(rest.len()) {
                        0 => thread::sleep(RETRY),
                        taken => rest = &rest[taken..],
                    }
                }
                if ended {
                    return quit();
                }
            }
        })
    }
}

/// State of the escape sequence.
struct Keys {
    escape: bool,
    escaped: bool,
}

impl Keys {
    /// Returns the bytes of `typed` for the guest, and whether the user asked to end the machine.
    fn translate(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut bytes = Vec::with_capacity(typed.len());
        for &byte in typed {
            match (self.escaped, byte) {
                (false, ESCAPE) if self.escape => self.escaped = true,
                (false, _) => bytes.push(byte),
                (true, b'x') => return (bytes, true),
                (true, ESCAPE) => {
                    self.escaped = false;
                    bytes.push(ESCAPE);
                }
                // An unknown sequence is dropped, as in QEMU.
                (true, _) => self.escaped = false,
            }
        }
        (bytes, false)
    }
}
