//! Counts the pages of RAM sections without a guest, by block and kind.

use super::mapped::Places;
use super::receiver::RamRecord;
use super::record::{Contents, Head, Heads, ListedBlock, NamedBlock, read_list, read_listed, read_runs, read_total};
use super::sender::PageCount;
use super::{PAGE_SIZE, RamBlock};
use crate::codec::Reader;
use crate::error::{Error, ErrorKind, Result};

/// The most blocks in a list; QEMU has one for each memory region with contents.
const MAX_BLOCKS: usize = 4096;

/// The page counts of a stream, by block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RamSummary {
    blocks: Vec<BlockSummary>,
    heads: Heads,
}

/// The pages of one block; a page that was sent twice counts twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSummary {
    /// Name.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
    /// Guest-physical address, if the source sends it (capability `x-ignore-shared`).
    pub address: Option<u64>,
    /// The number of page records.
    pub pages: PageCount,
}

impl RamSummary {
    /// The blocks, in the order of the list.
    pub fn blocks(&self) -> &[BlockSummary] {
        &self.blocks
    }

    /// Reads the body of the START section. With `addresses`, each block has an address (capability `x-ignore-shared`).
    ///
    /// # Errors
    /// `Malformed` or `Incomplete`; the blocks before it are kept.
    pub fn read_blocks(&mut self, input: &mut Reader<'_>, addresses: bool) -> Result<()> {
        read_list(input, addresses, |listed| self.push(&listed))?;
        self.heads.end_of_list(input, &self.blocks).map(|_| ())
    }

    /// As for [`read_blocks`](Self::read_blocks), for a file in which each block is followed by the places of its pages
    /// (capability `mapped-ram`). The file must begin where the stream does.
    ///
    /// # Errors
    /// `Malformed`, `Incompatible` or `Incomplete`; the blocks before it are kept.
    pub fn read_placed(&mut self, input: &mut Reader<'_>) -> Result<()> {
        let mut left = read_total(input)?;
        while left > 0 {
            let listed = read_listed(input, false, &mut left)?;
            self.push(&listed)?;
            let block = RamBlock { name: listed.name.to_owned(), len: listed.len };
            let file_len = input.offset().saturating_add(input.rest().len() as u64);
            let places = Places::read(input, &block, file_len)?;
            let normal = places.skip(input, &block)?;
            if let Some(block) = self.blocks.last_mut() {
                block.pages = PageCount { normal, zero: (block.len / PAGE_SIZE).saturating_sub(normal) };
            }
        }
        self.heads.end_of_list(input, &self.blocks).map(|_| ())
    }

    fn push(&mut self, listed: &ListedBlock<'_>) -> Result<()> {
        let malformed = |message: String| Err(Error::new(ErrorKind::Malformed, message).at(listed.offset));
        if self.blocks.iter().any(|block| block.name == listed.name) {
            return malformed(format!("RAM block {} comes twice", listed.name));
        }
        if self.blocks.len() == MAX_BLOCKS {
            return malformed(format!("more than {MAX_BLOCKS} RAM blocks"));
        }
        let (name, pages) = (listed.name.to_owned(), PageCount::default());
        self.blocks.push(BlockSummary { name, len: listed.len, address: listed.address, pages });
        Ok(())
    }

    /// Reads one record of a PART or END section.
    ///
    /// # Errors
    /// `Malformed`, `Incomplete`, `Incompatible` for records of unknown length.
    pub fn read_record(&mut self, input: &mut Reader<'_>) -> Result<RamRecord> {
        let page = match self.heads.next(input, &self.blocks)? {
            Head::Page(page) => page,
            Head::Flush => return Ok(RamRecord::Flush),
            Head::End => return Ok(RamRecord::End),
        };
        match page.contents {
            Contents::Zero => drop(input.u8()?),
            Contents::Whole => drop(input.take(usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX))?),
            Contents::Runs => drop(read_runs(input)?),
        }
        if let Some(block) = self.blocks.get_mut(page.block) {
            let count = if page.contents == Contents::Zero { &mut block.pages.zero } else { &mut block.pages.normal };
            *count += 1;
        }
        Ok(RamRecord::Page)
    }
}

impl NamedBlock for BlockSummary {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len
    }
}
