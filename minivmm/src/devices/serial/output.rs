//! Output of the serial port, buffered and written by a thread, so that a slow terminal never stops a vCPU. The console keeps
//! it open across resets of the machine.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sandbox::{self, Kind};
use crate::sync::{lock, wait, wait_within};

/// Most bytes that are kept for the sink, including those being written. Further output is lost, as on a real line without flow
/// control.
pub const CAPACITY: usize = 1 << 20;

/// Most bytes of one write. A pipe that has room takes so many without blocking (PIPE_BUF, pipe(7)).
const CHUNK: usize = 4096;

/// How long dropping the last clone waits for the sink to take the rest.
const LINGER: Duration = Duration::from_secs(1);

/// How long a hold waits for a write that has begun.
const WRITE: Duration = Duration::from_secs(1);

/// Destination of the output, and the descriptors by which another process continues the console.
pub struct Sink {
    writer: Box<dyn Write + Send>,
    /// Descriptor of the writer, whose writes are begun only when it has room; `None` if its writes are never long.
    room: Option<OwnedFd>,
    /// Descriptors, with the names that they have for the other process.
    passed: Vec<(&'static str, OwnedFd)>,
}

impl Sink {
    /// Makes a sink of a file, pipe or terminal, whose writes wait for room in `file`.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(file: File) -> io::Result<Self> {
        let room = file.as_fd().try_clone_to_owned()?;
        Ok(Self { room: Some(room), ..Box::new(file).into() })
    }

    /// Adds a descriptor for the process to which the guest is handed over.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn passing(mut self, name: &'static str, descriptor: impl AsFd) -> io::Result<Self> {
        self.passed.push((name, descriptor.as_fd().try_clone_to_owned()?));
        Ok(self)
    }

    /// Writes a part of `bytes` and returns its length; 0 if `wake` was signalled before there was room.
    fn write(&mut self, bytes: &[u8], wake: &EventFd) -> io::Result<usize> {
        let Some(room) = &self.room else {
            self.writer.write_all(bytes)?;
            return self.writer.flush().map(|()| bytes.len());
        };
        let mut waited = [PollFd::new(wake.as_fd(), PollFlags::POLLIN), PollFd::new(room.as_fd(), PollFlags::POLLOUT)];
        poll(&mut waited, PollTimeout::NONE)?;
        if waited[0].any() == Some(true) {
            wake.read()?;
            return Ok(0);
        }
        match self.writer.write(bytes)? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(written),
        }
    }
}

impl<W: Write + Send + 'static> From<Box<W>> for Sink {
    fn from(writer: Box<W>) -> Self {
        Self { writer, room: None, passed: Vec::new() }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("room", &self.room).field("passed", &self.passed).finish_non_exhaustive()
    }
}

/// A [`Write`] that never blocks. Clones share the buffer and its thread.
#[derive(Clone, Debug)]
pub struct Output(Arc<Owner>);

#[derive(Debug)]
struct Owner(Arc<Pipe>);

#[derive(Debug)]
struct Pipe {
    buffer: Mutex<Buffer>,
    changed: Condvar,
    /// Signalled at a hold, so that the thread does not wait for room.
    wake: EventFd,
    passed: Vec<(&'static str, OwnedFd)>,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: VecDeque<u8>,
    /// The first bytes, which the thread is writing.
    writing: usize,
    /// No write begins: another process may continue with the bytes.
    held: bool,
    closed: bool,
}

impl Output {
    /// Starts the thread, which ends when the last clone is dropped or the sink fails.
    ///
    /// # Errors
    /// The thread cannot be spawned.
    pub fn new(sink: impl Into<Sink>) -> io::Result<Self> {
        let mut sink = sink.into();
        let passed = std::mem::take(&mut sink.passed);
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Pipe { buffer: Mutex::default(), changed: Condvar::new(), wake, passed });
        let theirs = Arc::clone(&shared);
        sandbox::spawn(Kind::Console, "serial-output", move || theirs.run(sink))?;
        Ok(Self(Arc::new(Owner(shared))))
    }

    /// Waits until the sink has taken everything, for at most `timeout`.
    pub fn drain(&self, timeout: Duration) {
        self.0.0.drain(timeout);
    }

    /// Returns the descriptors by which another process continues the console, with their names.
    pub fn descriptors(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.0.0.passed.iter().map(|(name, descriptor)| (*name, descriptor.as_fd()))
    }

    /// Begins no write until [`release`](Self::release), and returns the bytes that are not written. A write that has begun is
    /// finished here, and its bytes are not returned.
    pub fn hold(&self) -> Vec<u8> {
        let shared = &self.0.0;
        let until = Instant::now() + WRITE;
        let mut buffer = shared.lock();
        buffer.held = true;
        // Cannot fail: the thread reads the event.
        let _ = shared.wake.write(1);
        while buffer.writing > 0
            && let Some(left) = until.checked_duration_since(Instant::now())
        {
            buffer = wait_within(&shared.changed, buffer, left);
        }
        buffer.bytes.iter().skip(buffer.writing).copied().collect()
    }

    /// Writes again what a hold has kept back.
    pub fn release(&self) {
        self.0.0.lock().held = false;
        self.0.0.changed.notify_all();
    }
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        lock(&self.buffer)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, Buffer>) -> MutexGuard<'a, Buffer> {
        wait(&self.changed, guard)
    }

    fn run(&self, mut sink: Sink) {
        let mut buffer = self.lock();
        loop {
            while !buffer.closed && (buffer.held || buffer.bytes.is_empty()) {
                buffer = self.wait(buffer);
            }
            if buffer.held || buffer.bytes.is_empty() {
                return;
            }
            let (first, _) = buffer.bytes.as_slices();
            let chunk = first[..first.len().min(CHUNK)].to_vec();
            buffer.writing = chunk.len();
            drop(buffer);
            let written = sink.write(&chunk, &self.wake);
            buffer = self.lock();
            buffer.writing = 0;
            match written {
                Ok(count) => drop(buffer.bytes.drain(..count)),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => {
                    buffer.closed = true;
                    buffer.bytes.clear();
                }
            }
            self.changed.notify_all();
        }
    }

    fn drain(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        let mut buffer = self.lock();
        while !buffer.bytes.is_empty() && !buffer.closed && !buffer.held {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return };
            buffer = wait_within(&self.changed, buffer, left);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.drain(LINGER);
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let shared = &self.0.0;
        let mut buffer = shared.lock();
        if !buffer.closed {
            let room = CAPACITY.saturating_sub(buffer.bytes.len()).min(bytes.len());
            buffer.bytes.extend(&bytes[..room]);
            shared.changed.notify_all();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
