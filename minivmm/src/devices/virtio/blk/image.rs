//! A raw disk image: positioned I/O on a file that is also an exclusive resource of the guest.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use vmstate::ownership::{Access, OwnershipError, Resource};

use super::changes::Changes;
use crate::files::{self, Fit, Mode};

/// Bytes of a sector, the unit of virtio-blk.
pub const SECTOR: u64 = 512;

/// An open image. It is not locked until its [`resource`](Self::resource) is.
#[derive(Debug)]
pub struct Image {
    file: File,
    resource: Arc<Resource>,
    bytes: u64,
    /// By this process: nobody else writes a locked image.
    changes: Changes,
}

impl Image {
    /// Opens a raw image, file or block device.
    ///
    /// # Errors
    /// [`OwnershipError::Open`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, OwnershipError> {
        let error = |source| OwnershipError::Open { path: path.into(), source };
        let file = files::open(path, if read_only { Mode::Read } else { Mode::ReadWrite }, Fit::Disk).map_err(error)?;
        let access = if read_only { Access::Shared } else { Access::Exclusive };
        let resource = Resource::image(file.try_clone().map_err(error)?, path, access);
        let bytes = resource.bytes()?;
        Ok(Self { file, resource: Arc::new(resource), bytes, changes: Changes::new(bytes) })
    }

    /// Its lock and its ownership record.
    pub fn resource(&self) -> &Arc<Resource> {
        &self.resource
    }

    /// Whether `other` is open on the same file.
    ///
    /// # Errors
    /// The system's.
    pub fn is_same(&self, other: &File) -> io::Result<bool> {
        let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        Ok(identity(&self.file)? == identity(other)?)
    }

    /// The guest may not write.
    pub fn is_read_only(&self) -> bool {
        self.resource.access() == Access::Shared
    }

    /// Size in whole sectors.
    pub fn sectors(&self) -> u64 {
        self.bytes / SECTOR
    }

    pub(super) fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    pub(super) fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let written = self.file.write_all_at(data, offset);
        // Also one that failed has changed what it came to.
        self.changes.mark(offset, data.len() as u64);
        written
    }

    /// What was changed.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Makes what was written durable, and visible to whoever opens the image next, on this host or another.
    ///
    /// # Errors
    /// The disk failed, or is full.
    pub fn flush(&self) -> io::Result<()> {
        if self.is_read_only() { Ok(()) } else { self.file.sync_data() }
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
        let done = fallocate(&self.file, flags, offset as libc::off_t, len as libc::off_t);
        self.changes.mark(offset, len);
        Ok(done?)
    }
}
