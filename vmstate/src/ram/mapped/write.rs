//! Writes pages to their places in a file, at a source.

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

/// The most bytes that are written at once.
const MOST: u64 = 1 << 20;

/// A file to which pages are written. Between two calls, the file's position is that of the stream.
pub(crate) struct PlacedPages {
    file: File,
    blocks: Vec<Block>,
    /// Adjacent pages that are not written yet.
    gathered: Option<PageRun>,
}

struct Block {
    places: Places,
    /// Pages that have contents in the file.
    set: PageSet,
}

impl PlacedPages {
    /// Writes to `file`, from its present position on, which is that of the stream.
    pub(crate) fn new(file: File) -> Self {
        Self { file, blocks: Vec::new(), gathered: None }
    }

    /// Writes the contents of `out`, which is the stream so far and has no pages, and then the list of blocks with room for their
    /// pages. The caller writes the record that ends the list.
    ///
    /// # Errors
    /// Errors of the file.
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

    /// Adds pages of `block`, at most 64; those with a bit in `zeros` are zero, bit 0 is the first.
    ///
    /// # Errors
    /// Errors of guest memory and of the file.
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

    /// Writes all added pages, with their present contents.
    ///
    /// # Errors
    /// Errors of guest memory and of the file.
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
                // An error of guest memory is the inner error.
                Err(error) => return Err(error.downcast().unwrap_or_else(Error::from)),
            }
        }
        self.file.seek(SeekFrom::Start(goes_on))?;
        Ok(())
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// Errors of the file.
    pub(crate) fn sync(&self) -> Result<()> {
        Ok(self.file.sync_data()?)
    }

    /// Writes the bitmaps, when no more pages follow.
    ///
    /// # Errors
    /// Errors of guest memory and of the file.
    pub(crate) fn finish(&mut self, ram: &dyn GuestRam) -> Result<()> {
        self.flush(ram)?;
        for Block { places, set } in &self.blocks {
            let bytes: Vec<u8> = set.words().iter().flat_map(|word| word.to_le_bytes()).collect();
            self.file.write_all_at(&bytes, places.bitmap)?;
        }
        Ok(())
    }
}
