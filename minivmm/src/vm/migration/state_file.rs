//! File of a migration to or from a file, or a passed pipe instead. The driver opens it, since the migration's thread may not.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use vmstate::channel::FileChannel;

use crate::files::{self, Fit, Mode};
use crate::vm::new_file::NewFile;

/// Why a file and TLS exclude each other.
pub(super) const NOT_ENCRYPTED: &str =
    "a file is not encrypted, and tls-creds asks for that: leave it out, or set it to \"\"";

/// A file, positioned at the start of its stream.
#[derive(Debug)]
pub(in crate::vm) struct StateFile {
    pub(super) channel: FileChannel,
    pub(super) path: PathBuf,
    /// The same file open for direct I/O, if its pages are read so.
    pub(super) direct: Option<File>,
    /// Name of a new file.
    new: Option<NewFile>,
}

impl StateFile {
    /// Creates a file that only its owner may read, since it will hold a guest's memory, from `offset` on. Until it is complete
    /// it has its path's name with `.partial` appended. `direct`: all writes bypass the page cache.
    ///
    /// # Errors
    /// The reason, as a sentence for the user; no file is left then.
    pub(super) fn create(path: &Path, offset: u64, direct: bool) -> Result<Self, String> {
        let refused = |(path, error): (PathBuf, io::Error)| match error.kind() {
            io::ErrorKind::InvalidInput if direct => not_direct(&path),
            io::ErrorKind::AlreadyExists => {
                format!("{}: it exists already; name a new file, or pass this one with getfd", path.display())
            }
            _ => format!("{}: {error}; name a new file", path.display()),
        };
        let flags = if direct { OFlag::O_DIRECT } else { OFlag::empty() };
        let (new, file) = NewFile::create(path, flags).map_err(refused)?;
        Ok(Self { new: Some(new), ..Self::begin(file, path, offset)? })
    }

    /// Whether each page of a guest can have a place in the file; only a new file is known to have room.
    pub(super) fn has_places(&self) -> bool {
        self.new.is_some()
    }

    /// Gives the complete file, which is on the disk, its name.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn take_place(&mut self) -> io::Result<()> {
        self.new.as_mut().map_or(Ok(()), NewFile::take_place)
    }

    /// Opens a file with a guest's state, which begins at `offset`. `direct`: reads of pages bypass the page cache.
    ///
    /// # Errors
    /// The reason, as a sentence for the user.
    pub(super) fn open(path: &Path, offset: u64, direct: bool) -> Result<Self, String> {
        let opened = files::open_path(path, Mode::Read, Fit::Regular);
        let remedy = "name a file that holds a guest's state";
        let file = opened.map_err(|error| format!("{}: {error}; {remedy}", path.display()))?;
        let opened = direct.then(|| open_direct(path, &file)).transpose();
        let direct = opened.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => not_direct(path),
            _ => format!("{}: {error}; {remedy}", path.display()),
        })?;
        Ok(Self { direct, ..Self::begin(file, path, offset)? })
    }

    /// Takes a passed regular file or pipe, at its present position; `name` is the user's name for it.
    ///
    /// # Errors
    /// The descriptor is no file or pipe, or is not open as `mode` needs.
    pub(super) fn passed(file: File, mode: Mode, name: &str) -> io::Result<Self> {
        files::take_stream(&file, mode)?;
        Ok(Self { channel: file.into(), path: name.into(), direct: None, new: None })
    }

    /// Seeks to `offset`.
    fn begin(mut file: File, path: &Path, offset: u64) -> Result<Self, String> {
        let sought = file.seek(SeekFrom::Start(offset));
        sought.map_err(|error| format!("{}: no place for offset {offset}: {error}", path.display()))?;
        Ok(Self { channel: file.into(), path: path.into(), direct: None, new: None })
    }

    /// Removes the file, which holds no guest that may be run. A passed file stays.
    pub(super) fn remove(&mut self) {
        if let Some(new) = &mut self.new {
            new.remove();
        }
    }
}

/// The message for a file system without direct I/O: QEMU's words (util/osdep.c), with a remedy.
fn not_direct(path: &Path) -> String {
    format!("{}: the file system does not support O_DIRECT: set direct-io to off", path.display())
}

/// Opens `file`, which is at `path`, once more for direct I/O.
fn open_direct(path: &Path, file: &File) -> io::Result<File> {
    // Opening a FIFO that was put there meanwhile does not wait.
    let flags = OFlag::O_DIRECT | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let direct = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    match identity(&direct)? == identity(file)? {
        true => Ok(direct),
        false => Err(io::Error::other("another file took its place while it was opened")),
    }
}
