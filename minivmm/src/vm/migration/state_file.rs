//! The file of a migration that goes to a file or comes from one, or the pipe that somebody passed in its place. The driver opens it: the
//! migration's thread may not.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vmstate::channel::FileChannel;

use crate::files::{self, Fit, Mode};

/// Why a file and TLS exclude each other.
pub(super) const NOT_ENCRYPTED: &str =
    "a file is not encrypted, and tls-creds asks for that: leave it out, or set it to \"\"";

/// A file at the place where its stream begins.
#[derive(Debug)]
pub(in crate::vm) struct StateFile {
    pub(super) channel: FileChannel,
    pub(super) path: PathBuf,
    /// It was not there before.
    is_new: bool,
}

impl StateFile {
    /// A new file, which its owner alone may read: a guest's memory goes into it, from `offset` on.
    ///
    /// # Errors
    /// A sentence for the user; there is no new file then.
    pub(super) fn create(path: &Path, offset: u64) -> Result<Self, String> {
        // The flags of `File::create_new`, which the sandbox knows.
        let created = File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = created.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                format!("{}: it exists already; name a new file, or pass this one with getfd", path.display())
            }
            _ => format!("{}: {error}; name a new file", path.display()),
        })?;
        let file = Self::begin(file, path, offset).inspect_err(|_| remove(path))?;
        Ok(Self { is_new: true, ..file })
    }

    /// A file with a guest's state, which begins at `offset`.
    ///
    /// # Errors
    /// A sentence for the user.
    pub(super) fn open(path: &Path, offset: u64) -> Result<Self, String> {
        let opened = files::open_path(path, Mode::Read, Fit::Regular);
        let mend = "name a file that holds a guest's state";
        Self::begin(opened.map_err(|error| format!("{}: {error}; {mend}", path.display()))?, path, offset)
    }

    /// What somebody has passed, a regular file or a pipe, from where it stands; `name` is what the user knows it by.
    ///
    /// # Errors
    /// It is something else, or open in another way than for `mode`.
    pub(super) fn passed(file: File, mode: Mode, name: &str) -> io::Result<Self> {
        files::take_stream(&file, mode)?;
        Ok(Self { channel: file.into(), path: name.into(), is_new: false })
    }

    /// At `offset`.
    fn begin(mut file: File, path: &Path, offset: u64) -> Result<Self, String> {
        let sought = file.seek(SeekFrom::Start(offset));
        sought.map_err(|error| format!("{}: no place for offset {offset}: {error}", path.display()))?;
        Ok(Self { channel: file.into(), path: path.into(), is_new: false })
    }

    /// It holds no guest that may be run. What was passed stays.
    pub(super) fn remove(&self) {
        if self.is_new {
            remove(&self.path);
        }
    }
}

/// A file that stays is of no use and does no harm: the records of the guest's disks move on.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}
