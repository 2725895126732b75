//! Guest memory in QEMU's mapped-ram layout: each page has one fixed place in the file, however often it is written
//! (docs/devel/migration/mapped-ram.rst).
//!
//! In the RAM section's list, the name and length of each block are followed by a header, the block's bitmap, and from the next
//! whole MiB on its pages: `u32 version | u64 page size | u64 offset of the bitmap | u64 offset of the pages`, with offsets from
//! the start of the file. The next block's entry follows the pages. A page whose bit is clear is zero, whatever its place
//! contains (`mapped_ram_setup_ramblock`, `ram_save_file_bmap`, migration/ram.c).

pub(crate) mod read;
mod threads;
pub(crate) mod write;

use super::{PAGE_SIZE, RamBlock};
use crate::codec::Reader;
use crate::error::{Error, ErrorKind, Result};

pub use threads::{FileThreads, FileWorker};

/// `MAPPED_RAM_HDR_VERSION`.
const VERSION: u32 = 1;
/// Size of a header in bytes (`MappedRamHeader`, packed).
const HEADER: u64 = 4 + 3 * 8;
/// The alignment of the first page of a block, `MAPPED_RAM_FILE_OFFSET_ALIGNMENT`; a reader requires only page alignment, as
/// QEMU's does.
const ALIGNMENT: u64 = 1 << 20;

/// The offsets of a block's bitmap and pages in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    bitmap: u64,
    pages: u64,
    /// Offset after the last page.
    end: u64,
}

impl Places {
    /// The places that a writer chooses for a block of `len` bytes whose header is at `header`; `None` if they exceed the largest
    /// file.
    fn behind(header: u64, len: u64) -> Option<Self> {
        let bitmap = header.checked_add(HEADER)?;
        let pages = bitmap.checked_add(bitmap_bytes(len))?.checked_next_multiple_of(ALIGNMENT)?;
        Some(Self { bitmap, pages, end: pages.checked_add(len)? })
    }

    /// Appends the header.
    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&VERSION.to_be_bytes());
        for word in [PAGE_SIZE, self.bitmap, self.pages] {
            out.extend_from_slice(&word.to_be_bytes());
        }
    }

    /// Reads the header of `block` from a file of `file_len` bytes. The bitmap follows the header, and the pages follow the
    /// bitmap, so that no two places overlap.
    ///
    /// # Errors
    /// `Incompatible` for another layout; `Malformed` for impossible places; `Incomplete` if the file ends before them.
    pub(crate) fn read(input: &mut Reader<'_>, block: &RamBlock, file_len: u64) -> Result<Self> {
        let offset = input.offset();
        let RamBlock { name, len } = block;
        let wrong = |kind, what: String| Err(Error::new(kind, format!("RAM block {name}: {what}")).at(offset));
        let (version, page_size, bitmap, pages) = (input.u32()?, input.u64()?, input.u64()?, input.u64()?);
        if version != VERSION {
            return wrong(
                ErrorKind::Incompatible,
                format!("its mapped-ram header has version {version}, not {VERSION}"),
            );
        }
        if page_size != PAGE_SIZE {
            let what = format!("its pages have {page_size} bytes in the file, and {PAGE_SIZE} in this machine");
            return wrong(ErrorKind::Incompatible, what);
        }
        if !pages.is_multiple_of(PAGE_SIZE) {
            return wrong(ErrorKind::Malformed, format!("its pages begin at {pages:#x}, which is no whole page"));
        }
        let ends = bitmap.checked_add(bitmap_bytes(*len)).zip(pages.checked_add(*len));
        let Some((_, end)) = ends.filter(|&(behind, _)| bitmap >= input.offset() && behind <= pages) else {
            let what = format!("its bitmap at {bitmap:#x} is not between its header and its pages at {pages:#x}");
            return wrong(ErrorKind::Malformed, what);
        };
        if end > file_len {
            let what = format!("its pages end at {end:#x}, and the file at {file_len:#x}: it was not written whole");
            return wrong(ErrorKind::Incomplete, what);
        }
        Ok(Self { bitmap, pages, end })
    }

    /// Skips the pages of `block`, whose header was read last, and returns how many have contents.
    ///
    /// # Errors
    /// `Incomplete` if the bytes end before.
    pub(crate) fn skip(self, input: &mut Reader<'_>, block: &RamBlock) -> Result<u64> {
        let length = |to: u64, from: u64| usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
        input.take(length(self.bitmap, input.offset()))?;
        let bitmap = input.take(length(bitmap_bytes(block.len), 0))?;
        let set = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
        input.take(length(self.end, input.offset()))?;
        Ok(set)
    }

    /// The offset after the last page, where the list continues.
    pub(crate) fn end(self) -> u64 {
        self.end
    }
}

/// Size of a bitmap in bytes: whole words of 64 bits, in the byte order of the host that writes it, little-endian on x86.
fn bitmap_bytes(len: u64) -> u64 {
    len.div_ceil(PAGE_SIZE).div_ceil(u64::BITS.into()) * 8
}
