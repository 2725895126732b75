//! Records of section `minivmm/disk`, as bytes.
//!
//! | byte | record | bytes behind it |
//! | ---: | --- | --- |
//! | 0 | the body ends | |
//! | 1 | data | offset (`u64`), length (`u64`), CRC-32 (`u32`), data |
//! | 2 | zeros, which become a hole | offset (`u64`), length (`u64`), CRC-32 (`u32`) |
//! | 3 | all earlier records are to be written back | |
//!
//! Offsets and lengths are whole sectors, and data is within one granule. The CRC-32 is IEEE's, of all other bytes of the
//! record, so that data with a damaged offset is not written to another place.

use crc32fast::Hasher;
use vmstate::codec::{Outbox, Reader};
use vmstate::{Error, ErrorKind, Result};

use crate::devices::virtio::blk::{GRANULE, SECTOR};

const END: u8 = 0;
const DATA: u8 = 1;
const ZEROS: u8 = 2;
const WRITE_BACK: u8 = 3;

/// Bytes of a data record besides the data.
pub(super) const HEAD: u64 = 21;

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskRecord<'a> {
    End,
    Data { offset: u64, bytes: &'a [u8] },
    Zeros { offset: u64, len: u64 },
    WriteBack,
}

impl DiskRecord<'_> {
    /// Whether the record changes the image.
    pub(super) fn changes_image(self) -> bool {
        matches!(self, Self::Data { .. } | Self::Zeros { .. })
    }

    /// Bytes of data in the record.
    pub(super) fn data(self) -> u64 {
        if let Self::Data { bytes, .. } = self { bytes.len() as u64 } else { 0 }
    }

    /// Appends the record.
    pub(super) fn put(self, out: &mut Outbox) {
        match self {
            Self::End => out.put(&[END]),
            Self::WriteBack => out.put(&[WRITE_BACK]),
            Self::Data { offset, bytes } => put_change(out, DATA, (offset, bytes.len() as u64), bytes),
            Self::Zeros { offset, len } => put_change(out, ZEROS, (offset, len), &[]),
        }
    }
}

fn put_change(out: &mut Outbox, kind: u8, (offset, len): (u64, u64), bytes: &[u8]) {
    out.put(&[kind]);
    out.put(&offset.to_be_bytes());
    out.put(&len.to_be_bytes());
    out.put(&checksum(kind, (offset, len), bytes).to_be_bytes());
    out.put(bytes);
}

/// Reads a record for a disk of `disk` bytes.
///
/// # Errors
/// `Malformed` for a record that no source sends; `Incomplete`.
pub(super) fn read<'a>(input: &mut Reader<'a>, disk: u64) -> Result<DiskRecord<'a>> {
    let start = input.offset();
    let refuse = |what: String| Err(Error::new(ErrorKind::Malformed, what).at(start));
    let kind = input.u8()?;
    match kind {
        END => return Ok(DiskRecord::End),
        WRITE_BACK => return Ok(DiskRecord::WriteBack),
        DATA | ZEROS => {}
        _ => return refuse(format!("{kind:#04x} begins no record of a disk")),
    }
    let (offset, len, sent) = (input.u64()?, input.u64()?, input.u32()?);
    let place = || format!("{len:#x} bytes at {offset:#x} of the disk");
    if len == 0 || !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
        return refuse(format!("{} are no whole sectors", place()));
    }
    if offset.checked_add(len).is_none_or(|end| end > disk) {
        return refuse(format!("{} reach beyond its end, {disk:#x}", place()));
    }
    if kind == DATA && offset / GRANULE != (offset + len - 1) / GRANULE {
        return refuse(format!("{} are data in more than one granule of {GRANULE:#x} bytes", place()));
    }
    let bytes = if kind == DATA { input.take(len as usize)? } else { &[] };
    let found = checksum(kind, (offset, len), bytes);
    if found != sent {
        return refuse(format!(
            "{} were damaged on the way: their CRC-32 is {found:#010x}, the source's {sent:#010x}",
            place()
        ));
    }
    Ok(if kind == DATA { DiskRecord::Data { offset, bytes } } else { DiskRecord::Zeros { offset, len } })
}

fn checksum(kind: u8, (offset, len): (u64, u64), bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&[kind]);
    hasher.update(&offset.to_be_bytes());
    hasher.update(&len.to_be_bytes());
    hasher.update(bytes);
    hasher.finalize()
}
