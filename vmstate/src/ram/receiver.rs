//! The destination's side of RAM: every name, length, offset and flag is checked before a byte is written.

use super::arrived::Arrived;
use super::record::{Contents, Head, Heads, ListedBlock, NamedBlock, read_list, read_runs};
use super::sender::PageCount;
use super::xbzrle::{self, Page};
use super::{GuestRam, PAGE, PAGE_SIZE, RamBlock, announces_shared};
use crate::codec::{Reader, Strictness};
use crate::error::{Error, ErrorKind, Result};

/// Guest memory that is being received.
pub struct RamReceiver<'a> {
    ram: &'a dyn GuestRam,
    /// The blocks of this side, then adopted blocks of the source.
    blocks: Vec<RamBlock>,
    heads: Heads,
    received: PageCount,
    /// Buffer for a page that is being decoded.
    copy: Box<Page>,
}

impl<'a> RamReceiver<'a> {
    /// Creates a receiver; no pages are received yet.
    pub fn new(ram: &'a dyn GuestRam) -> Self {
        Self::of(ram, ram.blocks().to_vec())
    }

    /// A receiver without a list of blocks of its own: records refer to `blocks`.
    pub(crate) fn of(ram: &'a dyn GuestRam, blocks: Vec<RamBlock>) -> Self {
        let copy = Box::new([0; PAGE]);
        Self { ram, blocks, heads: Heads::default(), received: PageCount::default(), copy }
    }

    /// Pages received so far.
    pub fn received(&self) -> PageCount {
        self.received
    }

    /// The blocks of the source's list, with this side's indices.
    pub(crate) fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// Reads the body of the START section; true if the source has page channels.
    ///
    /// # Errors
    /// `Incompatible` if a block of the source neither exists here nor is adopted. A strict load requires all blocks of this
    /// side.
    pub fn read_blocks(&mut self, input: &mut Reader<'_>) -> Result<bool> {
        let offset = input.offset();
        let mut list = BlockList::new(self);
        read_list(input, announces_shared(self.ram), |listed| list.take(self, &listed).map(|_| ()))?;
        list.end(self, input.strictness(), offset)?;
        self.end_of_list(input)
    }

    /// Reads the records after the list of blocks; true if the source has page channels.
    ///
    /// # Errors
    /// `Malformed` for any other record.
    pub(crate) fn end_of_list(&mut self, input: &mut Reader<'_>) -> Result<bool> {
        self.heads.end_of_list(input, &self.blocks)
    }

    /// Reads the records of a PART or END section up to one that is not a page, and writes the pages. If the bytes end within a
    /// record, that record is left unread, unless it is the first.
    ///
    /// # Errors
    /// `Malformed`, `Incompatible` for records of capabilities that are not supported, errors of guest memory. Pages before such
    /// a record are in memory.
    pub fn read_records(&mut self, input: &mut Reader<'_>) -> Result<RamRecord> {
        let mut arrived = Arrived::new(self.ram);
        let mut is_first = true;
        let read = loop {
            let rest = input.rest();
            match self.read_record(input, &mut arrived) {
                Ok(RamRecord::Page) => is_first = false,
                Err(error) if !is_first && error.is_incomplete() => {
                    input.go_back(rest);
                    break Ok(RamRecord::Page);
                }
                other => break other,
            }
        };
        arrived.put()?;
        read
    }

    fn read_record<'b>(&mut self, input: &mut Reader<'b>, arrived: &mut Arrived<'_, 'b>) -> Result<RamRecord> {
        let place = input.offset();
        let page = match self.heads.next(input, &self.blocks)? {
            Head::Page(page) => page,
            Head::Flush => return Ok(RamRecord::Flush),
            Head::End => return Ok(RamRecord::End),
        };
        if self.ram.shared_at(page.block).is_some() {
            let name = self.blocks.get(page.block).map_or("", |block| &block.name);
            let message = format!("a page of RAM block {name}, whose memory both sides share");
            return Err(Error::new(ErrorKind::Malformed, message).at(place));
        }
        match page.contents {
            Contents::Zero => {
                // The byte that fills the page; values other than 0 went out of use before version 4 (migration/ram.c).
                let fill = input.u8()?;
                if fill != 0 {
                    let message = format!("a zero page is filled with {fill:#04x}");
                    return Err(Error::new(ErrorKind::Malformed, message).at(place));
                }
                arrived.zero(page.block, page.offset)?;
                self.received.zero += 1;
            }
            Contents::Whole => {
                arrived.add_page(page.block, page.offset, input.take(PAGE)?)?;
                self.received.normal += 1;
            }
            Contents::Runs => {
                let (runs, offset) = read_runs(input)?;
                arrived.put()?;
                // Decoded in a copy, so that the guest's page stays unchanged if decoding fails.
                self.ram.read(page.block, page.offset, self.copy.as_mut())?;
                xbzrle::decode(runs, &mut self.copy, offset)?;
                self.ram.write(page.block, page.offset, self.copy.as_ref())?;
                self.received.normal += 1;
            }
        }
        Ok(RamRecord::Page)
    }
}

/// The source's list of blocks, while it is read.
pub(crate) struct BlockList {
    /// For each known block, whether it was listed.
    seen: Vec<bool>,
}

impl BlockList {
    /// Creates a list without blocks.
    pub(crate) fn new(receiver: &RamReceiver<'_>) -> Self {
        Self { seen: vec![false; receiver.blocks.len()] }
    }

    /// Adds the next block, and returns its index in memory.
    ///
    /// # Errors
    /// `Incompatible` if the block neither exists here nor is adopted, `Malformed` if it was listed before.
    pub(super) fn take(&mut self, receiver: &mut RamReceiver<'_>, listed: &ListedBlock<'_>) -> Result<usize> {
        let ListedBlock { name, len, address, offset } = *listed;
        let incompatible = |message: String| Err(Error::new(ErrorKind::Incompatible, message).at(offset));
        let (ram, blocks) = (receiver.ram, &mut receiver.blocks);
        let index = match blocks.iter().position(|block| block.name == name) {
            Some(index) => index,
            None if ram.adopt(name, len).map_err(|error| error.at(offset))? => {
                check_whole_pages(name, len).map_err(|error| error.at(offset))?;
                blocks.push(RamBlock { name: name.to_owned(), len });
                self.seen.push(false);
                blocks.len() - 1
            }
            None => {
                return incompatible(format!("RAM block {name} does not exist here: both sides need the same machine"));
            }
        };
        if let Some(here) = blocks.get(index).map(|block| block.len).filter(|&here| here != len) {
            return incompatible(format!(
                "RAM block {name} has {len} bytes at the source and {here} here: give both sides the same memory"
            ));
        }
        if self.seen.get_mut(index).is_some_and(|seen| std::mem::replace(seen, true)) {
            let message = format!("RAM block {name} comes twice, which does not fit the announced total");
            return Err(Error::new(ErrorKind::Malformed, message).at(offset));
        }
        match (ram.shared_at(index), address) {
            (Some(here), Some(there)) if here != there => {
                incompatible(format!("shared RAM block {name} is at {there:#x} at the source and at {here:#x} here"))
            }
            _ => Ok(index),
        }
    }

    /// Ends the list, at stream offset `offset`.
    ///
    /// # Errors
    /// A strict load requires all blocks of this side.
    pub(crate) fn end(self, receiver: &RamReceiver<'_>, strictness: Strictness, offset: u64) -> Result<()> {
        let mut blocks = receiver.blocks.iter().zip(&self.seen);
        let missing = blocks.find(|(block, seen)| !**seen && block.len > 0);
        if let (Some((block, _)), Strictness::Strict) = (missing, strictness) {
            let message = format!("RAM block {} is not sent: both sides need the same machine", block.name);
            return Err(Error::new(ErrorKind::Incompatible, message).at(offset));
        }
        Ok(())
    }
}

/// Checks that a block consists of whole pages, the unit of records.
fn check_whole_pages(name: &str, len: u64) -> Result<()> {
    if len.is_multiple_of(PAGE_SIZE) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Malformed, format!("RAM block {name} has {len} bytes, which are no whole pages")))
}

impl NamedBlock for RamBlock {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len
    }
}

/// The last record that [`RamReceiver::read_records`] read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamRecord {
    /// A page, now in memory; more may follow.
    Page,
    /// A flush: no later page may be read from a page channel before all earlier ones have arrived.
    Flush,
    /// The end of the section's body.
    End,
}

impl std::fmt::Debug for RamReceiver<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RamReceiver").field("received", &self.received).finish_non_exhaustive()
    }
}
