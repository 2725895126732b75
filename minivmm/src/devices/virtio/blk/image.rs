//! A raw disk image: positioned I/O on a file, and the ownership of the file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use nix::fcntl::{FallocateFlags, fallocate};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use vmstate::ownership::{Access, OwnershipError, Resource};

use super::bitmaps::Bitmaps;
use super::changes::Changes;
use super::copy_before_write::CopyBeforeWrite;
use super::mark::Mark;
use crate::files::{self, Fit, Mode};
use crate::sync::lock;

/// Bytes of a sector, the unit of virtio-blk.
pub const SECTOR: u64 = 512;

/// An open image, which is not locked until its [`resource`](Self::resource) is.
#[derive(Debug)]
pub struct Image {
    file: File,
    resource: Arc<Resource>,
    bytes: u64,
    /// Changes by this process, which are all changes once the image is locked.
    changes: Changes,
    /// Named dirty bitmaps, of the guest's changes.
    bitmaps: Arc<Bitmaps>,
    /// Hook of a backup of the disk.
    copy_before_write: CopyBeforeWrite,
    /// Mark that this process has set on the image.
    mark: Mutex<Option<Mark>>,
}

impl Image {
    /// Opens a raw image: a file or a block device.
    ///
    /// # Errors
    /// [`OwnershipError::Open`], also if the image has a [`Mark`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, OwnershipError> {
        let error = |source| OwnershipError::Open { path: path.into(), source };
        let file = files::open(path, if read_only { Mode::Read } else { Mode::ReadWrite }, Fit::Disk).map_err(error)?;
        for mark in Mark::ALL {
            if mark.is_on(&file).map_err(error)? {
                return Err(error(mark.refusal()));
            }
        }
        let access = if read_only { Access::Shared } else { Access::Exclusive };
        let resource = Resource::image(file.try_clone().map_err(error)?, path, access);
        let bytes = resource.bytes()?;
        Ok(Self::of(file, resource, bytes))
    }

    fn of(file: File, resource: Resource, bytes: u64) -> Self {
        let bitmaps = Arc::new(Bitmaps::new(bytes / SECTOR * SECTOR));
        let (resource, changes) = (Arc::new(resource), Changes::new(bytes));
        Self {
            file,
            resource,
            bytes,
            changes,
            bitmaps,
            copy_before_write: CopyBeforeWrite::default(),
            mark: Mutex::default(),
        }
    }

    /// Creates a raw image of `bytes` bytes for a content that a migration brings: a new file, or the file of an earlier
    /// attempt. The image is locked and [`Mark::Incomplete`].
    ///
    /// # Errors
    /// [`OwnershipError::Open`] if another file exists, or if the file cannot have a mark; and those of [`Resource::lock`].
    pub fn create(path: &Path, bytes: u64) -> Result<Self, OwnershipError> {
        let error = |source| OwnershipError::Open { path: path.into(), source };
        let made = File::options().read(true).write(true).create_new(true).open(path);
        let is_new = made.is_ok();
        let file = match made {
            Err(found) if found.kind() == io::ErrorKind::AlreadyExists => {
                files::open_path(path, Mode::ReadWrite, Fit::Regular)
            }
            made => made,
        };
        let image = Self::locked(file.map_err(error)?, path, bytes)?;
        if !is_new && !Mark::Incomplete.is_on(&image.file).map_err(error)? {
            let why = "it exists, and create= makes a new file: give another path, or remove it if nobody needs it";
            return Err(error(io::Error::other(why)));
        }
        image.await_content().inspect_err(|_| {
            if is_new {
                // No other process has the new file.
                let _ = std::fs::remove_file(path);
            }
        })?;
        Ok(image)
    }

    /// Makes a raw image, for `bytes` bytes, of a `file` that is open for reading and writing. Errors name it `path`. The image is
    /// locked, and the file unchanged until [`await_content`](Self::await_content).
    ///
    /// # Errors
    /// Those of [`Resource::lock`].
    pub fn locked(file: File, path: &Path, bytes: u64) -> Result<Self, OwnershipError> {
        let other = file.try_clone().map_err(|source| OwnershipError::Open { path: path.into(), source })?;
        let resource = Resource::image(other, path, Access::Exclusive);
        resource.lock()?;
        Ok(Self::of(file, resource, bytes))
    }

    /// Sets [`Mark::Incomplete`], and empties the image.
    ///
    /// # Errors
    /// [`OwnershipError::Open`] if the file cannot have a mark.
    pub fn await_content(&self) -> Result<(), OwnershipError> {
        let error = |source| OwnershipError::Open { path: self.resource.path().into(), source };
        self.mark(Mark::Incomplete).map_err(|why| {
            let why =
                format!("it can have no extended attribute, which an image whose content is copied to it needs: {why}");
            error(io::Error::other(why))
        })?;
        self.empty().map_err(error)
    }

    /// Sets a mark that every process sees, durably.
    ///
    /// # Errors
    /// The image cannot carry a mark, or the disk failed.
    pub fn mark(&self, mark: Mark) -> io::Result<()> {
        // Recorded first: the mark may be set even after an error.
        *self.own_mark() = Some(mark);
        mark.set(&self.file)
    }

    /// Removes the mark that this process has set, if there is one.
    ///
    /// # Errors
    /// The disk failed; the mark may still be set.
    pub fn unmark(&self) -> io::Result<()> {
        let mut own = self.own_mark();
        if let Some(mark) = *own {
            mark.clear(&self.file)?;
            *own = None;
        }
        Ok(())
    }

    /// Mark that this process has set.
    pub fn marked(&self) -> Option<Mark> {
        *self.own_mark()
    }

    /// Checks that the image, which has no mark, can have one.
    ///
    /// # Errors
    /// The reason why it cannot.
    pub fn check_markable(&self) -> io::Result<()> {
        Mark::Stale.clear(&self.file)
    }

    fn own_mark(&self) -> MutexGuard<'_, Option<Mark>> {
        lock(&self.mark)
    }

    /// The image's lock and ownership record.
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

    /// Whether the guest may not write.
    pub fn is_read_only(&self) -> bool {
        self.resource.access() == Access::Shared
    }

    /// Size in sectors; a last part of a sector does not count.
    pub fn sectors(&self) -> u64 {
        self.bytes / SECTOR
    }

    /// Bytes of the disk, which are whole sectors.
    pub fn bytes(&self) -> u64 {
        self.sectors() * SECTOR
    }

    /// Reads a range, which is on the image.
    ///
    /// # Errors
    /// The disk failed.
    pub fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    /// Writes a range, which is on the image.
    ///
    /// # Errors
    /// The disk failed, or is full.
    pub fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let written = self.file.write_all_at(data, offset);
        // A failed write may have changed the range, too.
        self.changes.mark(offset, data.len() as u64);
        written
    }

    /// Dirty bitmap of the image.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Named dirty bitmaps of the disk. The disk's device marks the guest's changes there: other changes of the image, as by a
    /// migration with its content, are not the guest's.
    pub fn bitmaps(&self) -> &Arc<Bitmaps> {
        &self.bitmaps
    }

    /// The hook of a backup before the guest's changes.
    pub fn copy_before_write(&self) -> &CopyBeforeWrite {
        &self.copy_before_write
    }

    /// Makes all writes durable, and visible to the next process that opens the image, on this host or another.
    ///
    /// # Errors
    /// The disk failed, or is full.
    pub fn flush(&self) -> io::Result<()> {
        if self.is_read_only() { Ok(()) } else { self.file.sync_data() }
    }

    /// Returns the next range with data at or after `offset`; `None` if the rest of the disk is a hole. Everything outside of
    /// such ranges reads as zeros. A file system without holes reports all of it as data.
    ///
    /// # Errors
    /// The disk failed, or another program has truncated the image.
    pub fn data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        // The seek moves the file's position, which nothing else uses.
        let seek = |to| match rustix::fs::seek(&self.file, to) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(errno) => Err(io::Error::from(errno)),
        };
        let Some(start) = seek(SeekFrom::Data(offset))?.filter(|start| *start < self.bytes()) else {
            // Behind the end of the file is no data either, and it is no hole.
            let len = rustix::fs::seek(&self.file, SeekFrom::End(0))?;
            let truncated = || io::Error::new(io::ErrorKind::UnexpectedEof, format!("it was truncated to {len} bytes"));
            return if len < self.bytes() { Err(truncated()) } else { Ok(None) };
        };
        // No hole was found: a hole was punched there meanwhile.
        let end = seek(SeekFrom::Hole(start))?.unwrap_or(start);
        Ok(Some(start..end.min(self.bytes())))
    }

    /// Releases all space of the image, which then reads as zeros.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn empty(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(self.bytes)?;
        self.changes.mark(0, self.bytes);
        Ok(())
    }

    /// Free bytes of the file system; `None` if unknown.
    ///
    /// # Errors
    /// The system's.
    pub fn room(&self) -> io::Result<Option<u64>> {
        let found = rustix::fs::fstatvfs(&self.file)?;
        Ok((found.f_blocks > 0).then(|| found.f_bavail.saturating_mul(found.f_frsize)))
    }

    /// Releases the range's space; the range then reads as zeros.
    ///
    /// # Errors
    /// The disk failed; `Unsupported` where the file system cannot.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    /// Makes the range read as zeros, keeping its space.
    ///
    /// # Errors
    /// The disk failed; `Unsupported` where the file system cannot.
    pub fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        let done = fallocate(&self.file, flags, offset as libc::off_t, len as libc::off_t);
        self.changes.mark(offset, len);
        Ok(done?)
    }
}
