//! Pages into their places in a file, by a source.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::Places;
use crate::codec::{Outbox, PageRun, Piece, put_name};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::page_set::PageSet;
use crate::ram::record::put_total;
use crate::ram::{GuestRam, PAGE_SIZE};

/// Bytes written at once.
const MOST: u64 = 1 << 20;

/// A file that pages are written to. Its position is where the stream goes on, between two calls.
pub(crate) struct PlacedPages {
    file: File,
    blocks: Vec<Block>,
    /// Pages that follow each other and are not written yet.
    gathered: Option<PageRun>,
}

struct Block {
    places: Places,
    /// Pages that have contents in the file.
    set: PageSet,
}

impl PlacedPages {
    /// Into `file`, from where it stands; its position is the stream's.
    pub(crate) fn new(file: File) -> Self {
        Self { file, blocks: Vec::new(), gathered: None }
    }

    /// Writes what is in `out`, which is the stream so far and has no pages, and then the list of blocks with room for their pages. The
    /// record that ends the list is the caller's.
    ///
    /// # Errors
    /// What the file has.
    pub(crate) fn begin(&mut self, out: &mut Outbox, ram: &dyn GuestRam) -> Result<()> {
        let mut list = Vec::new();
        for piece in out.pieces() {
            if let Piece::Bytes(bytes) = piece {
                list.extend_from_slice(bytes);
            }
        }
        out.clear();
        put_total(&mut list, ram.blocks());
        let mut at = self.file.stream_position()?;
        for block in ram.blocks() {
            put_name(&mut list, &block.name);
            list.extend_from_slice(&block.len.to_be_bytes());
            let places = Places::behind(at.saturating_add(list.len() as u64), block.len);
            let places = places.ok_or_else(|| {
                Error::new(
                    ErrorKind::Misuse,
                    format!("no file has room for RAM block {} of {} bytes", block.name, block.len),
                )
            })?;
            places.put(&mut list);
            self.file.write_all(&list)?;
            list.clear();
            at = self.file.seek(SeekFrom::Start(places.end))?;
            self.blocks.push(Block { places, set: PageSet::empty(block.len / PAGE_SIZE) });
        }
        self.file.write_all(&list)?;
        Ok(())
    }

    /// Takes pages of `block`, at most 64; those with a bit in `zeros` are zero, bit 0 is the first.
    ///
    /// # Errors
    /// What memory or file have.
    pub(crate) fn put(&mut self, ram: &dyn GuestRam, block: usize, pages: Range<u64>, zeros: u64) -> Result<()> {
        let Some(known) = self.blocks.get_mut(block) else { return Ok(()) };
        known.set.remove(pages.clone());
        for (bit, page) in pages.enumerate() {
            if zeros >> bit & 1 == 1 {
                continue;
            }
            let Some(known) = self.blocks.get_mut(block) else { return Ok(()) };
            known.set.insert(page);
            let offset = page * PAGE_SIZE;
            match &mut self.gathered {
                Some(run) if (run.block, run.offset + run.len) == (block, offset) && run.len < MOST => {
                    run.len += PAGE_SIZE
                }
                _ => {
                    self.flush(ram)?;
                    self.gathered = Some(PageRun { block, offset, len: PAGE_SIZE });
                }
            }
        }
        Ok(())
    }

    /// Writes all pages that were put, as they are in memory now.
    ///
    /// # Errors
    /// What memory or file have.
    pub(crate) fn flush(&mut self, ram: &dyn GuestRam) -> Result<()> {
        let Some(run) = self.gathered.take() else { return Ok(()) };
        let Some(Block { places, .. }) = self.blocks.get(run.block) else { return Ok(()) };
        let goes_on = self.file.stream_position()?;
        self.file.seek(SeekFrom::Start(places.pages + run.offset))?;
        let mut outbox = Outbox::new();
        outbox.put_pages(run);
        while !outbox.is_empty() {
            match ram.send(self.file.as_fd(), &outbox) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(count) => outbox.advance(count as u64),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What memory refused is within.
                Err(error) => return Err(error.downcast().unwrap_or_else(Error::from)),
            }
        }
        self.file.seek(SeekFrom::Start(goes_on))?;
        Ok(())
    }

    /// Waits until all of it is on the disk.
    ///
    /// # Errors
    /// What the file has.
    pub(crate) fn sync(&self) -> Result<()> {
        Ok(self.file.sync_data()?)
    }

    /// Writes the bitmaps: no page comes any more.
    ///
    /// # Errors
    /// What memory or file have.
    pub(crate) fn finish(&mut self, ram: &dyn GuestRam) -> Result<()> {
        self.flush(ram)?;
        for Block { places, set } in &self.blocks {
            let bytes: Vec<u8> = set.words().iter().flat_map(|word| word.to_le_bytes()).collect();
            self.file.write_all_at(&bytes, places.bitmap)?;
        }
        Ok(())
    }
}
