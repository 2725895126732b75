//! Carries bytes from the keyboard to the serial port, as fast as the port takes them. No byte is read before the port has room
//! for it, so that the process to which the guest is handed over reads the rest.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

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

    /// Starts a thread that offers input to `port` until the input ends or the user asks to end the machine; in the second
    /// case the thread calls `quit`. `port` gets a function that reads input, calls it with the number of bytes that the port has
    /// room for, and enqueues the returned bytes; or `port` returns false, and is called again later. The process does not wait for
    /// the thread when the process ends.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn pump(
        self,
        mut port: impl FnMut(&mut dyn FnMut(usize) -> Vec<u8>) -> bool + Send + 'static,
        quit: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        sandbox::spawn(Kind::Console, "console-input", move || {
            let Self { mut source, escape, held: _held } = self;
            let mut keys = Keys { escape, escaped: false };
            let mut end = None;
            while end.is_none() {
                if !has_input(&source, PollTimeout::NONE) {
                    continue;
                }
                let taken = port(&mut |room| {
                    // The port is locked: another reader of the same terminal must not make this read wait.
                    if !has_input(&source, PollTimeout::ZERO) {
                        return Vec::new();
                    }
                    let mut buffer = [0; 256];
                    let typed = match source.read(&mut buffer[..room.min(256)]) {
                        Ok(length @ 1..) => &buffer[..length],
                        Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => &[],
                        // The guest continues without input.
                        Ok(0) | Err(_) => {
                            end = Some(End::OfInput);
                            &[]
                        }
                    };
                    let (bytes, ended) = keys.translate(typed);
                    if ended {
                        end = Some(End::OfMachine);
                    }
                    bytes
                });
                if !taken {
                    thread::sleep(RETRY);
                }
            }
            if end == Some(End::OfMachine) {
                quit();
            }
        })
    }
}

/// Why the thread ends: no more input, or the user's request to end the machine.
#[derive(PartialEq, Eq)]
enum End {
    OfInput,
    OfMachine,
}

/// Whether `source` can be read without waiting, within `timeout`. An error is left to the read.
fn has_input(source: &File, timeout: PollTimeout) -> bool {
    let mut waited = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
    match poll(&mut waited, timeout) {
        Ok(_) => waited[0].any() == Some(true),
        Err(Errno::EINTR) => false,
        Err(_) => true,
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
