//! Records of a disk's content, carried out on the image that receives it.

use std::io;

use vmstate::Result;

use super::failed;
use super::record::DiskRecord;
use crate::devices::virtio::blk::Image;

/// Zeros that are written at a time where no hole can be made.
const ZEROS: &[u8; 64 << 10] = &[0; 64 << 10];

/// Carries a record out on `image`.
///
/// # Errors
/// The image cannot be written.
pub(super) fn apply(image: &Image, record: DiskRecord<'_>) -> Result<()> {
    let changed = match record {
        DiskRecord::End => return Ok(()),
        DiskRecord::WriteBack => return write_back(image),
        DiskRecord::Data { offset, bytes } => image.write(bytes, offset),
        DiskRecord::Zeros { offset, len } => erase(image, offset, len),
    };
    changed.map_err(|error| {
        let remedy = if error.kind() == io::ErrorKind::StorageFull { "; make room there" } else { "" };
        failed(image, "could not be written", format_args!("{error}{remedy}"))
    })
}

/// Writes the image back to the disk.
///
/// # Errors
/// The disk failed, or is full.
pub(super) fn write_back(image: &Image) -> Result<()> {
    image.flush().map_err(|error| failed(image, "could not be written back", error))
}

/// Makes a range read as zeros, and releases its space if the file system can.
fn erase(image: &Image, mut offset: u64, len: u64) -> io::Result<()> {
    match image.punch(offset, len) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        done => return done,
    }
    let end = offset.saturating_add(len);
    while let Some(data) = image.data(offset)?.filter(|data| data.start < end) {
        let piece = end.min(data.end).saturating_sub(data.start).min(ZEROS.len() as u64);
        image.write(ZEROS.get(..piece as usize).unwrap_or(ZEROS), data.start)?;
        offset = data.start + piece.max(1);
    }
    Ok(())
}
