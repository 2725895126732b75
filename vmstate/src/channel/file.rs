//! A channel to a file or a pipe.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::poll::PollFlags;

use super::Channel;
use super::socket::repeat;
use crate::codec::{Outbox, PageRun};
use crate::ram::{GuestRam, copied_out, write_bytes_at};

/// A file, written or read from its current position on; or a pipe, which is waited for if it does not block (O_NONBLOCK). A file that is
/// written may be open for direct I/O (O_DIRECT), and for reading, too: parts of pages are read and written back.
#[derive(Debug)]
pub struct FileChannel {
    file: File,
}

impl FileChannel {
    /// Creates a file. An existing file is not touched.
    ///
    /// # Errors
    /// As for [`File::create_new`].
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        File::create_new(path).map(|file| Self { file })
    }

    /// Opens an existing file.
    ///
    /// # Errors
    /// As for [`File::open`].
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        File::open(path).map(|file| Self { file })
    }

    /// Waits until everything sent is on the disk. Without this call, a power failure can leave a file that looks complete and is
    /// not.
    ///
    /// # Errors
    /// As for [`File::sync_all`].
    pub fn sync(&self) -> io::Result<()> {
        match self.file.sync_all() {
            // A pipe (fsync(2)): the data is already with the reader.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
    }
}

impl From<File> for FileChannel {
    fn from(file: File) -> Self {
        Self { file }
    }
}

impl Channel for FileChannel {
    fn file(&self) -> Option<&File> {
        // A pipe has no offsets.
        self.file.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(&self.file)
    }

    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        repeat(&mut self.file, PollFlags::POLLOUT, timeout, |file| match file.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => write_direct(file, bytes),
            written => written,
        })
    }

    fn send_outbox(&mut self, outbox: &Outbox, ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        repeat(&mut self.file, PollFlags::POLLOUT, timeout, |file| match ram.send(file.as_fd(), outbox) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                copied_out(ram, outbox, |bytes| write_direct(file, bytes))
            }
            sent => sent,
        })
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        repeat(&mut self.file, PollFlags::POLLIN, timeout, |file| file.read(into))
    }

    fn receive_pages(&mut self, runs: &[PageRun], ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        repeat(&mut self.file, PollFlags::POLLIN, timeout, |file| ram.receive(file.as_fd(), runs))
    }
}

/// Writes the first of `bytes` at the position of a file that takes whole pages only.
fn write_direct(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    let at = file.stream_position()?;
    let count = write_bytes_at(file, at, bytes)?;
    file.seek(SeekFrom::Start(at + count as u64))?;
    Ok(count)
}
