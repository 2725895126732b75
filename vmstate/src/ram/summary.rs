//! RAM sections without a guest: how many pages of each block came, and how.

use super::PAGE_SIZE;
use super::receiver::Record;
use super::record::{FLAGS, flag, unsupported};
use super::sender::PageCount;
use crate::codec::Reader;
use crate::error::{Error, ErrorKind, Result};

/// Most blocks in a list; QEMU has one for each memory region with contents.
const MAX_BLOCKS: usize = 4096;

/// Pages of a stream, by block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RamSummary {
    blocks: Vec<BlockSummary>,
    /// The block of the last page record: what CONTINUE means.
    block: Option<usize>,
}

/// Pages of one block; a page that was sent twice counts twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSummary {
    /// Name.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
    /// Guest-physical address, where a source with capability `x-ignore-shared` says it.
    pub address: Option<u64>,
    /// Records of pages.
    pub pages: PageCount,
}

impl RamSummary {
    /// The blocks, in the order of the list.
    pub fn blocks(&self) -> &[BlockSummary] {
        &self.blocks
    }

    /// Reads the body of the START section. With `addresses`, each block has one (capability `x-ignore-shared`).
    ///
    /// # Errors
    /// `Malformed` or `Incomplete`; the blocks before it are kept.
    pub fn read_blocks(&mut self, input: &mut Reader<'_>, addresses: bool) -> Result<()> {
        let offset = input.offset();
        let word = input.u64()?;
        if word & FLAGS != flag::MEM_SIZE {
            let message = format!("the list of RAM blocks expected, got flags {:#x}", word & FLAGS);
            return Err(Error::new(ErrorKind::Malformed, message).at(offset));
        }
        let mut left = word & !FLAGS;
        while left > 0 {
            let offset = input.offset();
            let (name, len) = (input.name()?.to_owned(), input.u64()?);
            let address = if addresses { Some(input.u64()?) } else { None };
            if len > left || self.blocks.iter().any(|block| block.name == name) {
                let message = format!("RAM block {name} of {len} bytes does not fit the {left} left of the total");
                return Err(Error::new(ErrorKind::Malformed, message).at(offset));
            }
            if self.blocks.len() == MAX_BLOCKS {
                let message = format!("more than {MAX_BLOCKS} RAM blocks");
                return Err(Error::new(ErrorKind::Malformed, message).at(offset));
            }
            left -= len;
            self.blocks.push(BlockSummary { name, len, address, pages: PageCount::default() });
        }
        let offset = input.offset();
        match input.u64()? {
            flag::EOS => Ok(()),
            word => {
                let message = format!("the end of the list of RAM blocks {:#x} expected, got {word:#x}", flag::EOS);
                Err(Error::new(ErrorKind::Malformed, message).at(offset))
            }
        }
    }

    /// Reads one record of a PART or END section.
    ///
    /// # Errors
    /// `Malformed`, `Incomplete`, `Incompatible` for records whose length is not known here.
    pub fn read_record(&mut self, input: &mut Reader<'_>) -> Result<Record> {
        let place = input.offset();
        let malformed = |message: String| Err(Error::new(ErrorKind::Malformed, message).at(place));
        let word = input.u64()?;
        let (offset, flags) = (word & !FLAGS, word & FLAGS);
        if let Some(name) = unsupported(flags) {
            return Err(Error::new(ErrorKind::Incompatible, format!("RAM record with flag {name}")).at(place));
        }
        let kind = flags & !flag::CONTINUE;
        if kind == flag::EOS {
            return Ok(Record::End);
        }
        if kind != flag::PAGE && kind != flag::ZERO {
            return malformed(format!("a page or the end of the section expected, got flags {flags:#x}"));
        }
        if flags & flag::CONTINUE == 0 {
            let name = input.name()?;
            self.block = self.blocks.iter().position(|block| block.name == name);
            if self.block.is_none() {
                return malformed(format!("page of RAM block {name}, which the list does not have"));
            }
        }
        let Some(block) = self.block.and_then(|index| self.blocks.get_mut(index)) else {
            return malformed("a page that continues a block before any block was named".to_owned());
        };
        if offset >= block.len {
            return malformed(format!(
                "page at {offset:#x} of RAM block {}, which has {:#x} bytes",
                block.name, block.len
            ));
        }
        if kind == flag::PAGE {
            input.take(usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX))?;
            block.pages.normal += 1;
        } else {
            input.u8()?;
            block.pages.zero += 1;
        }
        Ok(Record::Page)
    }
}
