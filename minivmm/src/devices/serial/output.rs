//! Output of the serial port, buffered and written by a thread, so that a slow terminal never stops a vCPU. The console keeps
//! it open across resets of the machine.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::sandbox::{self, Kind};
use crate::sync::{lock, wait, wait_within};

/// Most bytes that are kept for the sink, including those being written. Further output is lost, as on a real line without flow
/// control.
const CAPACITY: usize = 1 << 20;

/// How long dropping the last clone waits for the sink to take the rest.
const LINGER: Duration = Duration::from_secs(1);

/// A [`Write`] that never blocks. Clones share the buffer and its thread.
#[derive(Clone, Debug)]
pub struct Output(Arc<Owner>);

#[derive(Debug)]
struct Owner(Arc<Pipe>);

#[derive(Debug)]
struct Pipe {
    buffer: Mutex<Buffer>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Bytes that the thread has taken from the buffer and not yet written.
    writing: usize,
    closed: bool,
}

impl Output {
    /// Starts the thread, which ends when the last clone is dropped or the sink fails.
    ///
    /// # Errors
    /// The thread cannot be spawned.
    pub fn new(sink: Box<dyn Write + Send>) -> io::Result<Self> {
        let shared = Arc::new(Pipe { buffer: Mutex::default(), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        sandbox::spawn(Kind::Console, "serial-output", move || theirs.run(sink))?;
        Ok(Self(Arc::new(Owner(shared))))
    }

    /// Waits until the sink has taken everything, for at most `timeout`.
    pub(super) fn drain(&self, timeout: Duration) {
        self.0.0.drain(timeout);
    }
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        lock(&self.buffer)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, Buffer>) -> MutexGuard<'a, Buffer> {
        wait(&self.changed, guard)
    }

    fn run(&self, mut sink: Box<dyn Write + Send>) {
        let mut buffer = self.lock();
        loop {
            if !buffer.bytes.is_empty() {
                let bytes = std::mem::take(&mut buffer.bytes);
                buffer.writing = bytes.len();
                drop(buffer);
                let written = sink.write_all(&bytes).and_then(|()| sink.flush());
                buffer = self.lock();
                buffer.writing = 0;
                buffer.closed |= written.is_err();
                self.changed.notify_all();
            } else if buffer.closed {
                return;
            } else {
                buffer = self.wait(buffer);
            }
            if buffer.closed && buffer.bytes.is_empty() {
                return;
            }
        }
    }

    fn drain(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        let mut buffer = self.lock();
        while (buffer.writing > 0 || !buffer.bytes.is_empty()) && !buffer.closed {
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
            let room = CAPACITY.saturating_sub(buffer.bytes.len() + buffer.writing).min(bytes.len());
            buffer.bytes.extend_from_slice(&bytes[..room]);
            shared.changed.notify_all();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
