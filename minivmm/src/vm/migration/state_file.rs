//! File of a migration to or from a file, or a passed pipe instead. The driver opens it, since the migration's thread may not.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use vmstate::channel::FileChannel;

use crate::files::{self, Fit, Mode};

/// Why a file and TLS exclude each other.
pub(super) const NOT_ENCRYPTED: &str =
    "a file is not encrypted, and tls-creds asks for that: leave it out, or set it to \"\"";

/// A file, positioned at the begin of its stream.
#[derive(Debug)]
pub(in crate::vm) struct StateFile {
    pub(super) channel: FileChannel,
    pub(super) path: PathBuf,
    /// The same file open for direct I/O, if its pages are read so.
    pub(super) direct: Option<File>,
    /// Temporary name of a new file until it is complete.
    unfinished: Option<Unfinished>,
}

/// A file that gets its name once it is complete, so that there is all of it or nothing.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
    /// Folder of the final name.
    folder: File,
}

impl StateFile {
    /// Creates a file that only its owner may read, since it will hold a guest's memory, from `offset` on. Until it is complete
    /// it has its path's name with `.partial` appended. `direct`: all writes bypass the page cache.
    ///
    /// # Errors
    /// The reason, as a sentence for the user; no file is left then.
    pub(super) fn create(path: &Path, offset: u64, direct: bool) -> Result<Self, String> {
        let refused = |path: &Path, error: io::Error| match error.kind() {
            io::ErrorKind::InvalidInput if direct => not_direct(path),
            io::ErrorKind::AlreadyExists => {
                format!("{}: it exists already; name a new file, or pass this one with getfd", path.display())
            }
            _ => format!("{}: {error}; name a new file", path.display()),
        };
        if path.symlink_metadata().is_ok() {
            return Err(refused(path, io::ErrorKind::AlreadyExists.into()));
        }
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let folder = File::open(folder).map_err(|error| refused(path, error))?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        // The flags of `File::create_new`, which the sandbox allows. An existing file may not be opened for writing, so the stream
        // and its pages use one descriptor.
        let flags = if direct { OFlag::O_DIRECT } else { OFlag::empty() };
        let created = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(flags.bits())
            .open(&partial);
        let file = created.map_err(|error| refused(&partial, error))?;
        let file = Self::begin(file, path, offset).inspect_err(|_| remove(&partial))?;
        Ok(Self { unfinished: Some(Unfinished { path: partial, folder }), ..file })
    }

    /// Whether each page of a guest can have a place in the file; only a new file is known to have room.
    pub(super) fn has_places(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Syncs the complete file to the disk and gives it its name. A file that was made there meanwhile is not replaced, unless
    /// the file system (NFS) cannot check that.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn take_place(&mut self) -> io::Result<()> {
        let Some(Unfinished { path, folder }) = &self.unfinished else { return Ok(()) };
        match renameat_with(CWD, path, CWD, &self.path, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::INVAL) => std::fs::rename(path, &self.path)?,
            renamed => renamed?,
        }
        folder.sync_all()
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
        Ok(Self { channel: file.into(), path: name.into(), direct: None, unfinished: None })
    }

    /// Seeks to `offset`.
    fn begin(mut file: File, path: &Path, offset: u64) -> Result<Self, String> {
        let sought = file.seek(SeekFrom::Start(offset));
        sought.map_err(|error| format!("{}: no place for offset {offset}: {error}", path.display()))?;
        Ok(Self { channel: file.into(), path: path.into(), direct: None, unfinished: None })
    }

    /// Removes the file, which holds no guest that may be run. A passed file stays.
    pub(super) fn remove(&self) {
        if let Some(Unfinished { path, .. }) = &self.unfinished {
            remove(path);
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

/// Removes a file. A file that stays does no harm: the records of the guest's disks advance.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}
