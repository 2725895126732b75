//! A new file that gets its name once it is complete, so that there is all of it or nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// A file that has a temporary name, which ends with `.partial`, until it is complete. If it is dropped before, it is removed.
#[derive(Debug)]
pub(super) struct NewFile {
    path: PathBuf,
    partial: PathBuf,
    /// Folder of both names.
    folder: File,
    place: Place,
}

/// Where the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At its temporary name.
    Partial,
    /// At its name.
    Named,
    /// Nowhere.
    Removed,
}

impl NewFile {
    /// Creates a file that only its owner may read, since it will hold the memory or a disk of a guest; `flags` are further flags
    /// of the open (open(2)).
    ///
    /// # Errors
    /// The path that could not be used, and why.
    pub(super) fn create(path: &Path, flags: OFlag) -> Result<(Self, File), (PathBuf, io::Error)> {
        if path.symlink_metadata().is_ok() {
            return Err((path.into(), io::ErrorKind::AlreadyExists.into()));
        }
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let folder = File::open(folder).map_err(|error| (path.into(), error))?;
        let partial = with_suffix(path, ".partial");
        // The flags of `File::create_new`, which the sandbox allows. An existing file may not be opened for writing, so each user of
        // the file uses this descriptor.
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600).custom_flags(flags.bits());
        match options.open(&partial) {
            Ok(file) => Ok((Self { path: path.into(), partial, folder, place: Place::Partial }, file)),
            Err(error) => Err((partial, error)),
        }
    }

    /// Gives the file, which is on the disk, its name, durably. A file that was made there meanwhile is not replaced, unless the file
    /// system (NFS) cannot check that.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn take_place(&mut self) -> io::Result<()> {
        match renameat_with(CWD, &self.partial, CWD, &self.path, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::INVAL) => std::fs::rename(&self.partial, &self.path)?,
            renamed => renamed?,
        }
        self.place = Place::Named;
        self.folder.sync_all()
    }

    /// Removes the file, which holds nothing that may be used, under either name.
    pub(super) fn remove(&mut self) {
        let path = match std::mem::replace(&mut self.place, Place::Removed) {
            Place::Partial => &self.partial,
            Place::Named => &self.path,
            // Another process may have made a file there since.
            Place::Removed => return,
        };
        // A file that stays does no harm: it has its temporary name, or its guest is refused on the disks that go on here.
        let _ = std::fs::remove_file(path);
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.place == Place::Partial {
            self.remove();
        }
    }
}

/// Appends `suffix` to the name of the file at `path`.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut named = path.as_os_str().to_owned();
    named.push(suffix);
    named.into()
}
