//! Parses RAM sections, version 4: the block list, then page records. The low 12 bits of an offset are flags.

use std::collections::BTreeMap;
use std::ops::Range;

use super::cursor::{Cursor, Result, error};

const PAGE_SIZE: u64 = 4096;

const ZERO: u64 = 0x002;
const MEM_SIZE: u64 = 0x004;
const PAGE: u64 = 0x008;
const EOS: u64 = 0x010;
const CONTINUE: u64 = 0x020;

/// The RAM of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ram {
    /// The blocks, in the order of the list.
    pub blocks: Vec<RamBlock>,
    /// Number of PART and END sections.
    pub parts: u64,
    current: Option<usize>,
}

/// One block of guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RamBlock {
    /// The block's name.
    pub name: String,
    /// The block's size in bytes.
    pub length: u64,
    /// The block's guest-physical address, if the stream's capabilities include it.
    pub address: Option<u64>,
    /// Number of records of whole pages.
    pub normal: u64,
    /// Number of records of zero pages.
    pub zero: u64,
    /// The last record of each page, by offset in bytes.
    pub pages: BTreeMap<u64, Page>,
}

/// Contents of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// All bytes are zero.
    Zero,
    /// The bytes of the stream in this range.
    Normal(Range<usize>),
}

impl Ram {
    /// The block called `name`.
    pub fn block(&self, name: &str) -> Option<&RamBlock> {
        self.blocks.iter().find(|block| block.name == name)
    }

    pub(super) fn start(&mut self, cursor: &mut Cursor<'_>, addresses: bool) -> Result<()> {
        let at = cursor.at;
        let header = cursor.u64("size of RAM")?;
        if header & (PAGE_SIZE - 1) != MEM_SIZE {
            return error(at, "size of RAM with the flag 0x004 alone", format!("{header:#x}"));
        }
        let mut left = header - MEM_SIZE;
        while left > 0 {
            let at = cursor.at;
            let name = cursor.counted_text("RAM block name")?;
            let length = cursor.u64("RAM block length")?;
            if length == 0 || length % PAGE_SIZE != 0 || length > left {
                return error(
                    at,
                    format!("a RAM block of whole pages, at most {left:#x} bytes"),
                    format!("{length:#x}"),
                );
            }
            if name.is_empty() || self.block(&name).is_some() {
                return error(at, "a RAM block with a name of its own", format!("'{name}'"));
            }
            let address = if addresses { Some(cursor.u64("RAM block address")?) } else { None };
            self.blocks.push(RamBlock { name, length, address, ..RamBlock::default() });
            left -= length;
        }
        cursor.exactly(Cursor::u64, &EOS, "end of the block list")
    }

    pub(super) fn part(&mut self, cursor: &mut Cursor<'_>) -> Result<()> {
        self.parts += 1;
        loop {
            let at = cursor.at;
            let header = cursor.u64("page record")?;
            let (offset, flags) = (header & !(PAGE_SIZE - 1), header & (PAGE_SIZE - 1));
            if header == EOS {
                return Ok(());
            }
            if !matches!(flags & !CONTINUE, ZERO | PAGE) {
                return error(at, "a zero page, a normal page or the end of the part", format!("flags {flags:#x}"));
            }
            if flags & CONTINUE == 0 {
                let name_at = cursor.at;
                let name = cursor.counted_text("RAM block name")?;
                self.current = self.blocks.iter().position(|block| block.name == name);
                if self.current.is_none() {
                    return error(name_at, "the name of a block in the list", format!("'{name}'"));
                }
            }
            let Some(block) = self.current.map(|index| &mut self.blocks[index]) else {
                return error(at, "a block name in the first record", "a record that continues");
            };
            if offset >= block.length {
                return error(
                    at,
                    format!("an offset below {:#x} in {}", block.length, block.name),
                    format!("{offset:#x}"),
                );
            }
            if flags & ZERO != 0 {
                cursor.exactly(Cursor::u8, &0, "fill byte of a zero page")?;
                block.zero += 1;
                block.pages.insert(offset, Page::Zero);
            } else {
                let start = cursor.at;
                cursor.take(PAGE_SIZE as usize, "page")?;
                block.normal += 1;
                block.pages.insert(offset, Page::Normal(start..cursor.at));
            }
        }
    }
}
