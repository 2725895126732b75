//! Payloads of post-copy messages: the page sizes of the source's memory, the pages that the destination must discard, the pages
//! that the destination's guest waits for (migration/savevm.c, migration/postcopy-ram.c, migration/migration.c).

use crate::codec::{Limits, Reader, put_name};
use crate::error::{Error, ErrorKind, Result};

/// The page sizes of the source's memory: the payload of `POSTCOPY_ADVISE`. Pages are sent whole, so both sides must have the
/// same sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSizes {
    /// The page sizes of the RAM blocks in bytes, which are powers of two, combined into one number (`ram_pagesize_summary`).
    pub summary: u64,
    /// The unit of page records.
    pub target: u64,
}

/// A byte range of one RAM block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Offset in the block.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Pages of one RAM block that the guest has written since they were sent: the payload of `POSTCOPY_RAM_DISCARD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Name of the block.
    pub block: String,
    /// The byte ranges that the destination must discard; at least one.
    pub stretches: Vec<Stretch>,
}

/// Pages that the destination's guest waits for, on the return path: `REQ_PAGES_ID` with the name of a block, `REQ_PAGES` without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Name of the block; `None` means the block of the previous request.
    pub block: Option<String>,
    /// Offset of the pages in the block.
    pub start: u64,
    /// Length in bytes.
    pub len: u32,
}

/// The payload's version (`postcopy_ram_discard_version`, migration/savevm.c).
const VERSION: u8 = 0;

impl PageSizes {
    pub(super) const LEN: u16 = 16;

    pub(super) fn payload(self) -> Vec<u8> {
        [self.summary.to_be_bytes(), self.target.to_be_bytes()].as_flattened().to_vec()
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { summary: input.u64()?, target: input.u64()? })
    }
}

impl Discard {
    /// The most ranges that QEMU puts into one command (`MAX_DISCARDS_PER_COMMAND`, migration/postcopy-ram.c), and the most that
    /// are written here.
    pub const MOST: usize = 12;

    pub(super) fn payload(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_name(&mut out, &self.block);
        out.push(0);
        for stretch in &self.stretches {
            out.extend_from_slice([stretch.start.to_be_bytes(), stretch.len.to_be_bytes()].as_flattened());
        }
        out
    }

    /// Reads a payload of `length` bytes.
    pub(super) fn read(input: &mut Reader<'_>, length: u16) -> Result<Self> {
        // The whole payload has arrived before memory is allocated for it.
        payload(input, length, |payload| {
            let version = payload.u8()?;
            if version != VERSION {
                return Err(payload.malformed(format!("a discard of version {VERSION} expected, got {version}")));
            }
            let block = payload.name()?.to_owned();
            if payload.u8()? != 0 {
                return Err(payload.malformed(format!("a NUL behind the name {block} expected")));
            }
            let mut stretches = vec![Stretch::read(payload)?];
            while !payload.rest().is_empty() {
                stretches.push(Stretch::read(payload)?);
            }
            Ok(Self { block, stretches })
        })
    }
}

impl Stretch {
    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { start: input.u64()?, len: input.u64()? })
    }
}

impl PageRequest {
    pub(super) const NAMED: u16 = 3;
    pub(super) const SAME_BLOCK: u16 = 4;

    /// Appends type, length and payload of the message.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut payload = self.start.to_be_bytes().to_vec();
        payload.extend_from_slice(&self.len.to_be_bytes());
        if let Some(block) = &self.block {
            put_name(&mut payload, block);
        }
        let number = if self.block.is_some() { Self::NAMED } else { Self::SAME_BLOCK };
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&u16::try_from(payload.len()).unwrap_or_default().to_be_bytes());
        out.extend_from_slice(&payload);
    }

    /// Reads a payload of `length` bytes.
    pub(super) fn read(input: &mut Reader<'_>, number: u16, length: u16) -> Result<Self> {
        payload(input, length, |payload| {
            let (start, len) = (payload.u64()?, payload.u32()?);
            let block = if number == Self::NAMED { Some(payload.name()?.to_owned()) } else { None };
            match payload.rest().len() {
                0 => Ok(Self { block, start, len }),
                more => Err(payload.malformed(format!("{more} bytes behind a request for pages"))),
            }
        })
    }
}

/// Reads a payload of `length` bytes that is the name of a RAM block.
pub(super) fn read_name(input: &mut Reader<'_>, length: u16) -> Result<String> {
    payload(input, length, |payload| {
        let block = payload.name()?.to_owned();
        match payload.rest().len() {
            0 => Ok(block),
            more => Err(payload.malformed(format!("{more} bytes behind the name {block}"))),
        }
    })
}

/// Reads a payload of `length` bytes. The payload is complete: if it is too short, later bytes cannot complete it.
fn payload<T>(input: &mut Reader<'_>, length: u16, read: impl FnOnce(&mut Reader<'_>) -> Result<T>) -> Result<T> {
    let (offset, strictness) = (input.offset(), input.strictness());
    let bytes = input.take(length.into())?;
    read(&mut Reader::new(bytes, offset, strictness, Limits::default()).complete()).map_err(|error| {
        if !error.is_incomplete() {
            return error;
        }
        Error::new(ErrorKind::Malformed, format!("a payload of {length} bytes ends before it is whole")).at(offset)
    })
}
