//! One file that only the owner of a guest may use: its lock, and its ownership record.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::XattrFlags;

use super::error::OwnershipError;
use super::record::{RECORD_LEN, Record};

/// The extended attribute that holds an image's record.
pub const ATTRIBUTE: &str = "user.vmstate.owner";

/// How a resource is used, and therefore locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// The guest writes it: one owner at a time.
    Exclusive,
    /// The guest reads it: many owners, as long as nobody writes.
    Shared,
}

/// Where the record of a resource is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Attribute,
    Content,
}

/// An open file with its lock and its record.
///
/// The lock is an open-file-description lock over the whole file (`fcntl(2)`): it belongs to the open file and not to a thread,
/// ends with the last descriptor of this open file, and conflicts with QEMU's locks, which are of the same kind. Two open files
/// exclude each other, even in one process.
#[derive(Debug)]
pub struct Resource {
    file: File,
    path: PathBuf,
    access: Access,
    place: Place,
}

impl Resource {
    /// Creates the resource of a disk image that was opened from `path`. Its record is the extended attribute [`ATTRIBUTE`];
    /// block devices and some file systems have none, and a process that only received the open file may lack permission for it.
    /// `file` is a clone ([`File::try_clone`]) of the file that is read and written, so that both have one lock.
    pub fn image(file: File, path: &Path, access: Access) -> Self {
        Self { file, path: path.into(), access, place: Place::Attribute }
    }

    /// Opens or creates a file that contains only a record and has a lock. For guests without a disk, and for images that cannot
    /// have a record.
    ///
    /// # Errors
    /// [`OwnershipError::Open`]; [`OwnershipError::Record`] if the file has other contents.
    pub fn lease(path: &Path) -> Result<Self, OwnershipError> {
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(path);
        Self::lease_of(opened.map_err(|source| OwnershipError::Open { path: path.into(), source })?, path)
    }

    /// Creates the [lease](Self::lease) of a file that is open for reading and writing; `path` names it in errors.
    ///
    /// # Errors
    /// [`OwnershipError::Record`] if the file has other contents.
    pub fn lease_of(file: File, path: &Path) -> Result<Self, OwnershipError> {
        let lease = Self { file, path: path.into(), access: Access::Exclusive, place: Place::Content };
        lease.record()?;
        Ok(lease)
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the resource is used and locked.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Size in bytes of an image, also of a block device; 0 for a lease.
    ///
    /// # Errors
    /// [`OwnershipError::Open`].
    pub fn bytes(&self) -> Result<u64, OwnershipError> {
        match self.place {
            // A block device has length 0 in its metadata, so its end is sought. The file position is not used otherwise.
            Place::Attribute => io::Seek::seek(&mut &self.file, io::SeekFrom::End(0))
                .map_err(|source| OwnershipError::Open { path: self.path.clone(), source }),
            Place::Content => Ok(0),
        }
    }

    /// Takes the lock, or keeps it if it is held. Does not wait.
    ///
    /// # Errors
    /// [`OwnershipError::InUse`] if another process holds it; [`OwnershipError::Lock`] where the file system has no locks.
    pub fn lock(&self) -> Result<(), OwnershipError> {
        let kind = match self.access {
            Access::Exclusive => libc::F_WRLCK,
            Access::Shared => libc::F_RDLCK,
        };
        match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&whole_file(kind))) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(OwnershipError::InUse { path: self.path.clone() }),
            Err(errno) => Err(self.lock_error(errno)),
        }
    }

    /// Releases the lock. If another host takes the lock, all writes must have reached the disk before.
    ///
    /// # Errors
    /// [`OwnershipError::Lock`]; the lock is then still held.
    pub fn unlock(&self) -> Result<(), OwnershipError> {
        let unlocked = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
        unlocked.map(drop).map_err(|errno| self.lock_error(errno))
    }

    /// True while the file is locked for writing through another open file, of another process or of this one.
    ///
    /// # Errors
    /// [`OwnershipError::Lock`] where the file system has no locks.
    pub fn held_by_another(&self) -> Result<bool, OwnershipError> {
        // A read lock conflicts only with a write lock, so this test ignores readers.
        let mut found = whole_file(libc::F_RDLCK);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut found)).map_err(|errno| self.lock_error(errno))?;
        Ok(i32::from(found.l_type) != libc::F_UNLCK)
    }

    /// Reads the record; `None` if there is none, or no place for one.
    ///
    /// # Errors
    /// [`OwnershipError::Record`] if the place has other contents, [`OwnershipError::RecordIo`] if it cannot be read.
    pub fn record(&self) -> Result<Option<Record>, OwnershipError> {
        // One byte more than a record: longer contents are not a record.
        let mut bytes = [0; RECORD_LEN + 1];
        let len = match self.place {
            Place::Attribute => match rustix::fs::fgetxattr(&self.file, ATTRIBUTE, &mut bytes[..]) {
                Ok(len) => len,
                // ACCESS: permission for an attribute depends on the file's mode, not on how the descriptor was opened
                // (`xattr_permission`, fs/xattr.c of Linux).
                Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP | rustix::io::Errno::ACCESS) => {
                    return Ok(None);
                }
                // The attribute is longer than the buffer.
                Err(rustix::io::Errno::RANGE) => bytes.len(),
                Err(errno) => return Err(self.record_error(errno.into())),
            },
            Place::Content => match read_up_to(&self.file, &mut bytes).map_err(|error| self.record_error(error))? {
                0 => return Ok(None),
                len => len,
            },
        };
        let record = Record::from_bytes(bytes.get(..len).unwrap_or_default());
        record.map(Some).map_err(|source| OwnershipError::Record {
            path: self.path.clone(),
            place: match self.place {
                Place::Attribute => "extended attribute user.vmstate.owner",
                Place::Content => "content",
            },
            source,
        })
    }

    /// Replaces the record. Returns false if the resource has no place for one: a block device, a file system without extended
    /// attributes, or an image whose mode denies access to the attribute. A record that can be read but not replaced is an error:
    /// a side that has that record would take a stale guest for the last one.
    ///
    /// # Errors
    /// [`OwnershipError::RecordIo`].
    pub fn write_record(&self, record: &Record) -> Result<bool, OwnershipError> {
        let bytes = record.to_bytes();
        match self.place {
            Place::Attribute => match rustix::fs::fsetxattr(&self.file, ATTRIBUTE, &bytes, XattrFlags::empty()) {
                Ok(()) => Ok(true),
                // EPERM: not a regular file (`xattr_permission`, fs/xattr.c of Linux).
                Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::PERM) => Ok(false),
                Err(rustix::io::Errno::ACCESS) if self.record()?.is_none() => Ok(false),
                Err(errno) => Err(self.record_error(errno.into())),
            },
            Place::Content => {
                self.file.write_all_at(&bytes, 0).map(|()| true).map_err(|error| self.record_error(error))
            }
        }
    }

    fn lock_error(&self, errno: Errno) -> OwnershipError {
        OwnershipError::Lock { path: self.path.clone(), source: errno.into() }
    }

    fn record_error(&self, source: io::Error) -> OwnershipError {
        OwnershipError::RecordIo { path: self.path.clone(), source }
    }
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    // F_RDLCK, F_WRLCK and F_UNLCK are 0, 1 and 2; SEEK_SET is 0.
    let kind = libc::c_short::try_from(kind).unwrap_or_default();
    libc::flock { l_type: kind, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 }
}

fn read_up_to(file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
