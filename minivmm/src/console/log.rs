//! A file that keeps the last of what is written to it: once it is full it goes on from its beginning, and what it held is in a
//! second file, `PATH.1`, until it is full again.
//!
//! Both are open from the start, and the turn is a copy: no file has to be made or renamed later, when the process may not
//! be allowed to.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Bytes copied at a time.
const PART: usize = 64 << 10;

/// The two files.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    earlier: File,
    /// Bytes in `file`.
    len: u64,
    /// Bytes in each at most; not 0.
    max: u64,
}

impl Log {
    /// Two files that are empty, and opened for reading and writing.
    pub(super) fn new(file: File, earlier: File, max: u64) -> Self {
        Self { file, earlier, len: 0, max }
    }

    /// The name of the second file.
    pub(super) fn earlier(path: &Path) -> PathBuf {
        let mut name = OsString::from(path);
        name.push(".1");
        name.into()
    }

    fn turn(&mut self) -> io::Result<()> {
        for file in [&mut self.file, &mut self.earlier] {
            file.rewind()?;
        }
        self.earlier.set_len(0)?;
        let mut part = vec![0; PART];
        loop {
            match self.file.read(&mut part)? {
                0 => break,
                count => self.earlier.write_all(&part[..count])?,
            }
        }
        // Only now: whatever ends the process on the way, nothing is missing.
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.len = 0;
        Ok(())
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.len >= self.max {
            self.turn()?;
        }
        let room = usize::try_from(self.max - self.len).unwrap_or(usize::MAX).min(bytes.len());
        let written = self.file.write(&bytes[..room])?;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
