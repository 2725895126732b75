//! Writes pages to their places in a file, at a source.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use super::Places;
use super::threads::{Action, FileThreads, PagesFile};
use crate::codec::{Outbox, PageRun, Piece, put_name};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::multifd::batch::Batch;
use crate::ram::multifd::packet::{PacketPages, runs};
use crate::ram::page_set::PageSet;
use crate::ram::record::put_total;
use crate::ram::{GuestRam, PAGE_SIZE, PageCount, write_all_bytes_at};

/// A file to which pages are written. The file's position is that of the stream.
pub(crate) struct PlacedPages {
    file: PagesFile,
    blocks: Vec<Block>,
}

struct Block {
    places: Places,
    /// Pages that have contents in the file.
    set: PageSet,
}

impl PlacedPages {
    /// Writes to `file`, from its present position on, which is that of the stream; pages are written by `threads`, if there are
    /// any.
    pub(crate) fn new(file: File, threads: Option<FileThreads>) -> Self {
        Self { file: PagesFile::new(file, threads), blocks: Vec::new() }
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
        let mut file: &File = &self.file;
        let mut at = file.stream_position()?;
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
            write_all_bytes_at(file, at, &list)?;
            list.clear();
            at = places.end;
            self.blocks.push(Block { places, set: PageSet::empty(block.len / PAGE_SIZE) });
        }
        write_all_bytes_at(file, at, &list)?;
        file.seek(SeekFrom::Start(at + list.len() as u64))?;
        Ok(())
    }

    /// Writes pages. With other threads, returns before the last ones are written. Returns how many have been written since the last
    /// call.
    ///
    /// # Errors
    /// Errors of guest memory and of the file.
    pub(crate) fn put(&mut self, ram: &dyn GuestRam, batches: Vec<Batch>) -> Result<PageCount> {
        let places = batches.into_iter().filter_map(|batch| {
            let pages_at = self.blocks.get(batch.block)?.places.pages;
            Some((batch, pages_at))
        });
        let written = self.file.transfer(ram, Action::Write, places)?;
        Ok(self.mark(&written))
    }

    /// Waits until all pages are written. Returns how many have been written since the last call.
    ///
    /// # Errors
    /// Errors of guest memory and of the file.
    pub(crate) fn await_written(&mut self) -> Result<PageCount> {
        let written = self.file.await_all()?;
        Ok(self.mark(&written))
    }

    /// Sets the bits of pages that have contents in the file, clears those of zero pages, and counts both.
    fn mark(&mut self, written: &[PacketPages]) -> PageCount {
        let mut count = PageCount::default();
        for pages in written {
            let Some(Block { set, .. }) = self.blocks.get_mut(pages.block) else { continue };
            let range = |run: PageRun| run.offset / PAGE_SIZE..(run.offset + run.len) / PAGE_SIZE;
            runs(pages.block, &pages.zero).for_each(|run| set.remove(range(run)));
            runs(pages.block, &pages.normal).for_each(|run| set.add(range(run)));
            count = count.and(pages.count());
        }
        count
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
    /// Errors of the file.
    pub(crate) fn finish(&self) -> Result<()> {
        for Block { places, set } in &self.blocks {
            let bytes: Vec<u8> = set.words().iter().flat_map(|word| word.to_le_bytes()).collect();
            write_all_bytes_at(&self.file, places.bitmap, &bytes)?;
        }
        Ok(())
    }
}
