//! File that keeps the end of the output: when it is full, its content is copied to a second file, `PATH.1`, and it starts
//! again from its beginning.
//!
//! Both files are open from the start, and the rotation is a copy: the sandboxed process may not create or rename files later.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Bytes copied at a time.
const PART: usize = 64 << 10;

/// The two files of a limited log.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    earlier: File,
    /// Largest size of each file in bytes; not 0.
    max: u64,
}

impl Log {
    /// Makes a log of two files, which are open for reading and writing; it continues at the offset of the first one.
    pub(super) fn new(file: File, earlier: File, max: u64) -> Self {
        Self { file, earlier, max }
    }

    /// Name of the second file.
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
        // Truncated last, so that nothing is lost if the process ends before.
        self.file.set_len(0)?;
        self.file.rewind()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Another process may have written before.
        let mut len = self.file.stream_position()?;
        if len >= self.max {
            self.turn()?;
            len = 0;
        }
        let room = usize::try_from(self.max - len).unwrap_or(usize::MAX).min(bytes.len());
        self.file.write(&bytes[..room])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
