//! RAM records, version 4: `u64 offset | flags`, then data according to the flags (migration/ram.c). The readers of records
//! decide how to use the bytes of pages.

use super::{PAGE_SIZE, RamBlock, xbzrle};
use crate::codec::{Outbox, Reader};
use crate::error::{Error, ErrorKind, Result};

/// Name of the RAM section.
pub const RAM_IDSTR: &str = "ram";
/// Version of the RAM section, and of these records.
pub const RAM_VERSION: u32 = 4;

/// `RAM_SAVE_FLAG_*`, migration/ram.h, in the low bits of a page-aligned offset.
pub(super) mod flag {
    pub(crate) const FULL: u64 = 0x001;
    pub(crate) const ZERO: u64 = 0x002;
    pub(crate) const MEM_SIZE: u64 = 0x004;
    pub(crate) const PAGE: u64 = 0x008;
    pub(crate) const EOS: u64 = 0x010;
    pub(crate) const CONTINUE: u64 = 0x020;
    pub(crate) const XBZRLE: u64 = 0x040;
    pub(crate) const HOOK: u64 = 0x080;
    pub(crate) const COMPRESS_PAGE: u64 = 0x100;
    pub(crate) const MULTIFD_FLUSH: u64 = 0x200;
}

/// Size of the record of a page sent whole, if the previous record was for the same block.
pub const NORMAL_RECORD: u64 = 8 + PAGE_SIZE;
/// Size of the record of a zero page, if the previous record was for the same block.
pub const ZERO_RECORD: u64 = 8 + 1;

/// The flag bits of a record's first word.
const FLAGS: u64 = PAGE_SIZE - 1;

/// The record kinds that exist but are not supported, with advice.
fn unsupported(flags: u64) -> Option<&'static str> {
    const UNSUPPORTED: [(u64, &str); 3] = [
        (flag::HOOK, "HOOK: migrate over tcp or unix, not rdma"),
        (flag::COMPRESS_PAGE, "COMPRESS_PAGE: turn capability compress off at the source"),
        (flag::FULL, "FULL, which no version-4 source sends"),
    ];
    UNSUPPORTED.iter().find(|(bit, _)| flags & bit != 0).map(|&(_, name)| name)
}

/// Appends the end of a RAM section's body.
pub fn put_end_of_section(out: &mut Outbox) {
    out.put(&flag::EOS.to_be_bytes());
}

/// Appends a flush: no later page may be read from a page channel before all earlier ones have arrived.
pub(super) fn put_flush(out: &mut Outbox) {
    out.put(&flag::MULTIFD_FLUSH.to_be_bytes());
}

/// Appends the beginning of the list of blocks: their total size in bytes.
pub(super) fn put_total(out: &mut Vec<u8>, blocks: &[RamBlock]) {
    let total: u64 = blocks.iter().map(|block| block.len).sum();
    out.extend_from_slice(&(total | flag::MEM_SIZE).to_be_bytes());
}

/// A block that records can name.
pub(super) trait NamedBlock {
    /// The block's name.
    fn name(&self) -> &str;
    /// The block's length in bytes.
    fn len(&self) -> u64;
}

/// A block in the list at the start of the RAM section.
pub(super) struct ListedBlock<'a> {
    pub(super) name: &'a str,
    pub(super) len: u64,
    /// Guest-physical address, in a stream with addresses.
    pub(super) address: Option<u64>,
    /// Stream offset of the name.
    pub(super) offset: u64,
}

/// Reads the list of blocks, without the record that ends it, and calls `take` with each block. With `addresses`, each block has
/// an address.
pub(super) fn read_list<'a>(
    input: &mut Reader<'a>,
    addresses: bool,
    mut take: impl FnMut(ListedBlock<'a>) -> Result<()>,
) -> Result<()> {
    let mut left = read_total(input)?;
    while left > 0 {
        take(read_listed(input, addresses, &mut left)?)?;
    }
    Ok(())
}

/// Reads the beginning of the list: the total size of all blocks in bytes.
pub(super) fn read_total(input: &mut Reader<'_>) -> Result<u64> {
    let offset = input.offset();
    let word = input.u64()?;
    if word & FLAGS != flag::MEM_SIZE {
        let message = format!("the list of RAM blocks expected, got flags {:#x}", word & FLAGS);
        return Err(Error::new(ErrorKind::Malformed, message).at(offset));
    }
    Ok(word & !FLAGS)
}

/// Reads the next block of the list; `left` is the unread rest of the announced total.
pub(super) fn read_listed<'a>(input: &mut Reader<'a>, addresses: bool, left: &mut u64) -> Result<ListedBlock<'a>> {
    let offset = input.offset();
    let (name, len) = (input.name()?, input.u64()?);
    let address = if addresses { Some(input.u64()?) } else { None };
    let Some(rest) = left.checked_sub(len) else {
        let message =
            format!("RAM block {name} of {len} bytes does not fit the announced total, of which {left} are left");
        return Err(Error::new(ErrorKind::Malformed, message).at(offset));
    };
    *left = rest;
    Ok(ListedBlock { name, len, address, offset })
}

/// The beginning of a record.
pub(super) enum Head {
    /// The bytes of a page follow.
    Page(PageHead),
    /// A flush: no later page may be read from a page channel before all earlier ones have arrived.
    Flush,
    /// The section's body ends here.
    End,
}

/// The place of a page whose bytes follow.
pub(super) struct PageHead {
    /// Index of the page's block.
    pub(super) block: usize,
    /// Offset in the block; checked to be within it.
    pub(super) offset: u64,
    /// The form of the page's bytes.
    pub(super) contents: Contents,
}

/// The form in which a page is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// One byte, which fills the page.
    Zero,
    /// [`PAGE_SIZE`] bytes.
    Whole,
    /// The differences to the page's previous contents, which [`read_runs`] reads.
    Runs,
}

/// Appends the part of an XBZRLE record after the first word and the block's name.
pub(super) fn put_runs(out: &mut Outbox, runs: &[u8]) {
    let length = u16::try_from(runs.len()).unwrap_or(u16::MAX);
    out.put(&[xbzrle::ENCODING]);
    out.put(&length.to_be_bytes());
    out.put(runs);
}

/// Reads the runs of an XBZRLE record (`load_xbzrle`, migration/ram.c), and returns them with their stream offset.
pub(super) fn read_runs<'a>(input: &mut Reader<'a>) -> Result<(&'a [u8], u64)> {
    let offset = input.offset();
    let malformed = |message: String| Err(Error::new(ErrorKind::Malformed, message).at(offset));
    let (encoding, length) = (input.u8()?, input.u16()?);
    if encoding != xbzrle::ENCODING {
        return malformed(format!(
            "XBZRLE page: encoding {encoding:#04x}, of which only {:#04x} exists",
            xbzrle::ENCODING
        ));
    }
    if u64::from(length) > PAGE_SIZE {
        return malformed(format!("XBZRLE page: {length} bytes, more than the page has"));
    }
    let offset = input.offset();
    Ok((input.take(length.into())?, offset))
}

/// Reads the beginnings of records, before a page's bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Heads {
    /// The block of the last page record, to which CONTINUE refers.
    block: Option<usize>,
}

impl Heads {
    /// Reads the next record's beginning.
    ///
    /// # Errors
    /// `Malformed`, `Incomplete`, `Incompatible` for records of capabilities that are not supported.
    pub(super) fn next(&mut self, input: &mut Reader<'_>, blocks: &[impl NamedBlock]) -> Result<Head> {
        let place = input.offset();
        let malformed = |message: String| Err(Error::new(ErrorKind::Malformed, message).at(place));
        let word = input.u64()?;
        let (offset, flags) = (word & !FLAGS, word & FLAGS);
        if let Some(name) = unsupported(flags) {
            return Err(Error::new(ErrorKind::Incompatible, format!("RAM record with flag {name}")).at(place));
        }
        let contents = match flags & !flag::CONTINUE {
            flag::EOS => return Ok(Head::End),
            flag::MULTIFD_FLUSH if word == flag::MULTIFD_FLUSH => return Ok(Head::Flush),
            flag::ZERO => Contents::Zero,
            flag::PAGE => Contents::Whole,
            flag::XBZRLE => Contents::Runs,
            _ => return malformed(format!("a page or the end of the section expected, got flags {flags:#x}")),
        };
        if flags & flag::CONTINUE == 0 {
            let name = input.name()?;
            self.block = blocks.iter().position(|block| block.name() == name);
            if self.block.is_none() {
                return malformed(format!("page of RAM block {name}, which does not exist here"));
            }
        }
        let Some((index, block)) = self.block.and_then(|index| Some((index, blocks.get(index)?))) else {
            return malformed("a page that continues a block before any block was named".to_owned());
        };
        if offset >= block.len() {
            let (name, len) = (block.name(), block.len());
            return malformed(format!("page at {offset:#x} of RAM block {name}, which has {len:#x} bytes"));
        }
        Ok(Head::Page(PageHead { block: index, offset, contents }))
    }

    /// Reads the records after the list of blocks; true if there is a flush.
    ///
    /// # Errors
    /// As for [`next`](Self::next); `Malformed` if there is a page.
    pub(super) fn end_of_list(&mut self, input: &mut Reader<'_>, blocks: &[impl NamedBlock]) -> Result<bool> {
        let mut flushes = false;
        loop {
            match self.next(input, blocks)? {
                Head::End => return Ok(flushes),
                Head::Flush => flushes = true,
                Head::Page(_) => return Err(input.malformed("a page inside the list of RAM blocks")),
            }
        }
    }
}
