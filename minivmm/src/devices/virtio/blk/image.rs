//! A raw disk image: positioned I/O, and the lock that says which host may write.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};

/// Bytes of a sector, the unit of virtio-blk.
pub const SECTOR: u64 = 512;

/// An image that cannot be used: one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not there, no permission, no file.
    #[error("cannot open disk image {path}: {source}")]
    Open {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("disk image {path} is in use by another process")]
    InUse {
        /// The image.
        path: PathBuf,
    },
}

/// An open image. It is not locked until [`lock`](Self::lock).
#[derive(Debug)]
pub struct Image {
    file: File,
    path: PathBuf,
    read_only: bool,
    bytes: u64,
    locked: AtomicBool,
}

impl Image {
    /// Opens a raw image, file or block device.
    ///
    /// # Errors
    /// [`ImageError::Open`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        let error = |source| ImageError::Open { path: path.into(), source };
        let file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(error)?;
        // A block device has no length in its metadata, but an end to seek to.
        let bytes = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(error)?;
        Ok(Self { file, path: path.into(), read_only, bytes, locked: AtomicBool::new(false) })
    }

    /// Takes the lock: alone for an image that is written, shared for a read-only one. An open-file-description
    /// lock over the whole file, so that it holds across threads, ends with the process, and meets QEMU's.
    ///
    /// # Errors
    /// [`ImageError::InUse`], or [`ImageError::Open`] where the file system has no locks.
    pub fn lock(&self) -> Result<(), ImageError> {
        let kind = if self.read_only { libc::F_RDLCK } else { libc::F_WRLCK };
        match self.set_lock(kind) {
            Ok(_) => {
                self.locked.store(true, Ordering::Release);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EACCES) => Err(ImageError::InUse { path: self.path.clone() }),
            Err(errno) => Err(ImageError::Open { path: self.path.clone(), source: errno.into() }),
        }
    }

    /// Writes everything back, then gives the lock up, so that another host may take it.
    ///
    /// # Errors
    /// What was written could not be made durable; the lock is then kept.
    pub fn unlock(&self) -> Result<(), ImageError> {
        let error = |source| ImageError::Open { path: self.path.clone(), source };
        self.flush().map_err(error)?;
        self.set_lock(libc::F_UNLCK).map_err(|errno| error(errno.into()))?;
        self.locked.store(false, Ordering::Release);
        Ok(())
    }

    /// True between [`lock`](Self::lock) and [`unlock`](Self::unlock).
    pub fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Acquire)
    }

    fn set_lock(&self, kind: libc::c_int) -> nix::Result<libc::c_int> {
        let whole_file = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&self.file, FcntlArg::F_OFD_SETLK(&whole_file))
    }

    /// The guest may not write.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Size in whole sectors.
    pub fn sectors(&self) -> u64 {
        self.bytes / SECTOR
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    pub(super) fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    /// Gives the range's space back; it reads as zeros then. `Unsupported` where the file system cannot.
    pub(super) fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    /// Makes the range read as zeros, keeping its space. `Unsupported` where the file system cannot.
    pub(super) fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        Ok(fallocate(&self.file, flags, offset as libc::off_t, len as libc::off_t)?)
    }
}
