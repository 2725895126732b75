//! Pages that have arrived and are not in guest memory yet, collected for one call of the guest's memory.

use super::{GuestRam, PAGE_SIZE};
use crate::error::Result;

/// The most pages with contents that are handed over at once: one receive buffer holds no more.
const MOST: usize = 64;

/// Pages with contents, or adjacent zero pages; all of one block.
pub(super) struct Arrived<'a, 'b> {
    ram: &'a dyn GuestRam,
    block: usize,
    whole: Vec<(u64, &'b [u8])>,
    first_zero: u64,
    zeros: u64,
}

impl<'a, 'b> Arrived<'a, 'b> {
    /// Creates an empty collection.
    pub(super) fn new(ram: &'a dyn GuestRam) -> Self {
        Self { ram, block: 0, whole: Vec::new(), first_zero: 0, zeros: 0 }
    }

    /// Adds a page with contents.
    ///
    /// # Errors
    /// Errors of guest memory.
    pub(super) fn add_page(&mut self, block: usize, offset: u64, bytes: &'b [u8]) -> Result<()> {
        if self.block != block || self.zeros > 0 || self.whole.len() == MOST {
            self.put()?;
            self.block = block;
        }
        self.whole.push((offset, bytes));
        Ok(())
    }

    /// Adds a zero page.
    ///
    /// # Errors
    /// Errors of guest memory.
    pub(super) fn zero(&mut self, block: usize, offset: u64) -> Result<()> {
        if self.block != block || !self.whole.is_empty() || self.first_zero + self.zeros * PAGE_SIZE != offset {
            self.put()?;
            (self.block, self.first_zero) = (block, offset);
        }
        self.zeros += 1;
        Ok(())
    }

    /// Hands all pages over to guest memory.
    ///
    /// # Errors
    /// Errors of guest memory.
    pub(super) fn put(&mut self) -> Result<()> {
        if !self.whole.is_empty() {
            self.ram.write_pages(self.block, &self.whole)?;
            self.whole.clear();
        }
        if self.zeros > 0 {
            self.ram.zero_run(self.block, self.first_zero, self.zeros)?;
            self.zeros = 0;
        }
        Ok(())
    }
}
