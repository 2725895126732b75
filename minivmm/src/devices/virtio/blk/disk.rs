//! Disk operations on an image, in pieces that are short enough not to delay a pause.

use std::io;
use std::sync::Arc;

use super::image::{Image, SECTOR};
use crate::devices::virtio::{Broken, Segments};
use crate::memory::GuestMemory;

/// Largest piece of a transfer between image and guest, in bytes.
const PIECE: u64 = 256 << 10;
/// Largest piece of a discard or of a write of zeroes, in bytes.
const RANGE_PIECE: u64 = 32 << 20;
/// Largest such piece while a backup needs the old content.
const COPIED_PIECE: u64 = 1 << 20;

/// Most bytes that a rate limit counts for one piece of a discard or of a write of zeroes: no data is moved, but the file
/// system writes metadata.
const ERASE_COST: u64 = PIECE;

/// Kinds of erasing a range of sectors.
#[derive(Clone, Copy, Debug)]
pub(super) enum Erase {
    /// The range's content becomes undefined.
    Discard,
    /// The range reads as zeros, and its space is released.
    Unmap,
    /// The range reads as zeros.
    Zero,
}

/// Why a piece failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The image failed, or is full.
    Io,
    /// The guest's buffers are not in its memory.
    Broken(Broken),
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// The disk and its write cache mode.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) image: Arc<Image>,
    /// Writes may stay in the host's cache until a flush.
    pub(super) write_back: bool,
    /// Bytes read and written, and the [cost of erasing](ERASE_COST), since the count was last reset.
    pub(super) moved: u64,
    buffer: Vec<u8>,
}

impl Disk {
    pub(super) fn new(image: Arc<Image>) -> Self {
        Self { image, write_back: true, moved: 0, buffer: Vec::new() }
    }

    /// Byte offset of a transfer, if it is whole sectors of the disk.
    pub(super) fn place(&self, sector: u64, bytes: u64) -> Option<u64> {
        let whole = bytes.is_multiple_of(SECTOR);
        let end = sector.checked_add(bytes / SECTOR).filter(|end| whole && *end <= self.image.sectors());
        end.map(|_| sector * SECTOR)
    }

    /// Reads the next piece of `data`; returns the number of bytes.
    pub(super) fn read(&mut self, memory: &GuestMemory, offset: u64, data: &mut Segments) -> Result<u64, Failure> {
        let count = data.len().min(PIECE);
        self.buffer.resize(count as usize, 0);
        self.image.read(&mut self.buffer, offset)?;
        data.write(memory, &self.buffer)?;
        self.moved += count;
        Ok(count)
    }

    /// Writes the next piece of `data`; returns the number of bytes.
    pub(super) fn write(&mut self, memory: &GuestMemory, offset: u64, data: &mut Segments) -> Result<u64, Failure> {
        let count = data.len().min(PIECE);
        self.buffer.resize(count as usize, 0);
        data.read(memory, &mut self.buffer)?;
        self.change(offset, count, |image| image.write(&self.buffer, offset))?;
        self.moved += count;
        Ok(count)
    }

    /// Erases the next piece of a range; returns the number of bytes.
    pub(super) fn erase(&mut self, how: Erase, offset: u64, len: u64) -> Result<u64, Failure> {
        // Pieces end at block boundaries of the file system, which releases whole blocks only.
        let piece = if self.image.copy_before_write().has_backup() { COPIED_PIECE } else { RANGE_PIECE };
        let count = len.min(piece - offset % piece);
        let done = match how {
            _ if count == 0 => Ok(()),
            Erase::Discard | Erase::Unmap => self.change(offset, count, |image| image.punch(offset, count)),
            Erase::Zero => self.change(offset, count, |image| image.zero(offset, count)),
        };
        match (done, how) {
            // Discard is a hint: ignoring it loses nothing.
            (Err(error), Erase::Discard) if cannot(&error) => Ok(len),
            (Err(error), _) if cannot(&error) => self.write_zeros(offset, len),
            (done, _) => {
                done?;
                self.moved += count.min(ERASE_COST);
                Ok(count)
            }
        }
    }

    fn write_zeros(&mut self, offset: u64, len: u64) -> Result<u64, Failure> {
        let count = len.min(PIECE);
        self.buffer.clear();
        self.buffer.resize(count as usize, 0);
        self.change(offset, count, |image| image.write(&self.buffer, offset))?;
        self.moved += count;
        Ok(count)
    }

    /// Changes a range of the image for the guest, once a backup has the old content, and marks it in the bitmaps, also after a
    /// failure, which may have changed it in part.
    pub(super) fn change(
        &self,
        offset: u64,
        len: u64,
        change: impl FnOnce(&Image) -> io::Result<()>,
    ) -> io::Result<()> {
        let image = &*self.image;
        if let Some(backup) = image.copy_before_write().begin_change() {
            backup.before_change(image, offset, len);
        }
        let done = change(image);
        image.copy_before_write().end_change();
        image.bitmaps().mark(offset, len);
        done
    }
}

/// Whether the error says that the file system lacks the operation.
pub(super) fn cannot(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported) || error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However large the range, the device checks for a pause between two pieces.
    #[test]
    fn a_range_is_erased_32_mib_at_a_time() {
        const MIB: u64 = 1 << 20;
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(2048 * MIB).unwrap();
        let mut disk = Disk::new(Arc::new(Image::open(file.path(), false).unwrap()));
        for how in [Erase::Discard, Erase::Unmap, Erase::Zero] {
            let (mut offset, end, mut pieces) = (MIB, 2047 * MIB, 0);
            while offset < end {
                let count = disk.erase(how, offset, end - offset).unwrap();
                assert!((1..=32 * MIB).contains(&count), "{how:?}: {count} bytes at {offset:#x}");
                (offset, pieces) = (offset + count, pieces + 1);
            }
            assert!(offset == end && pieces >= 64, "{how:?}: {offset:#x} in {pieces} pieces");
        }
    }
}
