//! The destination's side of RAM: every name, length, offset and flag is checked before a byte is written.

use super::record::{FLAGS, flag, unsupported};
use super::sender::PageCount;
use super::{GuestRam, PAGE_SIZE};
use crate::codec::{Reader, Strictness};
use crate::error::{Error, ErrorKind, Result};

/// Guest memory being filled.
pub struct RamReceiver<'a> {
    ram: &'a dyn GuestRam,
    /// The block of the last page record: what CONTINUE means.
    block: Option<usize>,
    received: PageCount,
}

impl<'a> RamReceiver<'a> {
    /// Nothing received yet.
    pub fn new(ram: &'a dyn GuestRam) -> Self {
        Self { ram, block: None, received: PageCount::default() }
    }

    /// Pages received so far.
    pub fn received(&self) -> PageCount {
        self.received
    }

    /// Reads the body of the START section.
    ///
    /// # Errors
    /// `Incompatible` if the source's blocks are not the ones here. A strict load wants all of them.
    pub fn read_blocks(&mut self, input: &mut Reader<'_>) -> Result<()> {
        let offset = input.offset();
        let incompatible = |message: String| Err(Error::new(ErrorKind::Incompatible, message).at(offset));
        let word = input.u64()?;
        if word & FLAGS != flag::MEM_SIZE {
            let message = format!("the list of RAM blocks expected, got flags {:#x}", word & FLAGS);
            return Err(Error::new(ErrorKind::Malformed, message).at(offset));
        }
        let blocks = self.ram.blocks();
        let mut seen = vec![false; blocks.len()];
        let mut left = word & !FLAGS;
        while left > 0 {
            let name = input.name()?;
            let length = input.u64()?;
            let found = blocks.iter().zip(&mut seen).find(|(block, _)| block.name == name);
            let Some((block, seen)) = found else {
                return incompatible(format!("RAM block {name} does not exist here: both sides need the same machine"));
            };
            if length != block.len {
                let here = block.len;
                return incompatible(format!(
                    "RAM block {name} has {length} bytes at the source and {here} here: give both sides the same memory"
                ));
            }
            if std::mem::replace(seen, true) || length > left {
                return Err(input.malformed(format!("RAM block {name} does not fit the announced total")));
            }
            left -= length;
        }
        let missing = blocks.iter().zip(&seen).find(|(block, seen)| !**seen && block.len > 0);
        if let (Some((block, _)), Strictness::Strict) = (missing, input.strictness()) {
            return incompatible(format!("RAM block {} is not sent: both sides need the same machine", block.name));
        }
        match self.read_record(input)? {
            Record::End => Ok(()),
            Record::Page => Err(input.malformed("a page inside the list of RAM blocks")),
        }
    }

    /// Reads one record of a PART or END section, and writes the page it holds.
    ///
    /// # Errors
    /// `Malformed`, `Incompatible` for records of capabilities that are not supported, what the memory refuses.
    pub fn read_record(&mut self, input: &mut Reader<'_>) -> Result<Record> {
        let place = input.offset();
        let malformed = |message: String| Err(Error::new(ErrorKind::Malformed, message).at(place));
        let word = input.u64()?;
        let (offset, flags) = (word & !FLAGS, word & FLAGS);
        if let Some(name) = unsupported(flags) {
            let message = format!("RAM record with flag {name}");
            return Err(Error::new(ErrorKind::Incompatible, message).at(place));
        }
        let kind = flags & !flag::CONTINUE;
        if kind == flag::EOS {
            return Ok(Record::End);
        }
        if kind != flag::PAGE && kind != flag::ZERO {
            return malformed(format!("RAM record with flags {flags:#x}"));
        }
        let index = match (flags & flag::CONTINUE != 0, self.block) {
            (true, Some(block)) => block,
            (true, None) => return malformed("a page that continues a block before any block was named".to_owned()),
            (false, _) => self.find(input)?,
        };
        let Some(block) = self.ram.blocks().get(index) else {
            return malformed("no such RAM block".to_owned());
        };
        if offset >= block.len {
            return malformed(format!(
                "page at {offset:#x} of RAM block {}, which has {:#x} bytes",
                block.name, block.len
            ));
        }
        if kind == flag::PAGE {
            let bytes = input.take(usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX))?;
            self.ram.write(index, offset, bytes)?;
            self.received.normal += 1;
        } else {
            // The byte that fills the page: other values went out of use before version 4 (migration/ram.c).
            let fill = input.u8()?;
            if fill != 0 {
                return malformed(format!("a zero page is filled with {fill:#04x}"));
            }
            self.ram.zero_page(index, offset)?;
            self.received.zero += 1;
        }
        self.block = Some(index);
        Ok(Record::Page)
    }

    fn find(&self, input: &mut Reader<'_>) -> Result<usize> {
        let place = input.offset();
        let name = input.name()?;
        let found = self.ram.blocks().iter().position(|block| block.name == name);
        found.ok_or_else(|| {
            Error::new(ErrorKind::Malformed, format!("page of RAM block {name}, which does not exist here")).at(place)
        })
    }
}

/// What [`RamReceiver::read_record`] has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A page, now in memory.
    Page,
    /// The end of the section's body.
    End,
}

impl std::fmt::Debug for RamReceiver<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RamReceiver").field("received", &self.received).finish_non_exhaustive()
    }
}
