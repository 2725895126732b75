//! Reads pages from their places in a file, at a destination. All places are checked before a page is read.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::threads::{Action, FileThreads, PagesFile};
use super::{Places, bitmap_bytes};
use crate::codec::{Limits, Reader, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::multifd::batch::{Batch, put_pages};
use crate::ram::page_set::PageSet;
use crate::ram::receiver::{BlockList, RamReceiver};
use crate::ram::record::{read_listed, read_total};
use crate::ram::sender::PageCount;
use crate::ram::{GuestRam, PAGE_SIZE};

/// The longest entry of the list in bytes: name, length and header.
const ENTRY: usize = 512;
/// The most adjacent bytes that are put into batches at once.
const MOST: u64 = 1 << 20;
/// Number of batches, of 512 KiB or less, that are given to threads together.
const TOGETHER: usize = 8;

/// The pages in a file.
pub(crate) struct FilePages {
    file: PagesFile,
    blocks: Vec<Block>,
}

struct Block {
    /// The block's index in memory.
    index: usize,
    places: Places,
    /// Pages that have contents in the file; the others are zero.
    set: PageSet,
}

impl FilePages {
    /// Reads the list of blocks at `at`, and their bitmaps, and returns the offset where the stream continues: at the record that
    /// ends the list. The pages will be read by `threads`, if there are any.
    ///
    /// # Errors
    /// Faults of the list, with their offset in the file.
    pub(crate) fn read(
        receiver: &mut RamReceiver<'_>,
        (file, threads): (File, Option<FileThreads>),
        at: u64,
        strictness: Strictness,
    ) -> Result<(Self, u64)> {
        let file_len = file.metadata()?.len();
        let mut at = Position { file: &file, at, strictness };
        let mut left = at.parse(read_total)?;
        let (mut list, mut blocks) = (BlockList::new(receiver), Vec::new());
        while left > 0 {
            let (index, places) = at.parse(|input| {
                let listed = read_listed(input, false, &mut left)?;
                let index = list.take(receiver, &listed)?;
                let block = receiver.blocks().get(index);
                let block = block.ok_or_else(|| Error::new(ErrorKind::Misuse, "a block that is not there"))?;
                Ok((index, Places::read(input, block, file_len)?))
            })?;
            at.at = places.end();
            let len = receiver.blocks().get(index).map_or(0, |block| block.len);
            let set = read_bitmap(&file, places, len)?;
            blocks.push(Block { index, places, set });
        }
        list.end(receiver, strictness, at.at)?;
        let goes_on = at.at;
        Ok((Self { file: PagesFile::new(file, threads), blocks }, goes_on))
    }

    /// Moves all pages into memory, which maps them or has them read. The file's position stays unchanged.
    ///
    /// # Errors
    /// Errors of guest memory and of the file.
    pub(crate) fn take(&self, ram: &dyn GuestRam) -> Result<PageCount> {
        let mut count = PageCount::default();
        for Block { index, places, set } in &self.blocks {
            let normal = set.count();
            count = count.and(PageCount { normal, zero: set.pages() - normal });
            if !ram.map(*index, self.file.as_fd(), places.pages, set.words())? {
                self.copy(ram, *index, *places, set)?;
            }
        }
        self.file.await_all()?;
        Ok(count)
    }

    /// Reads the pages of one block.
    fn copy(&self, ram: &dyn GuestRam, block: usize, places: Places, set: &PageSet) -> Result<()> {
        let read = |batches: &mut Vec<Batch>| {
            let batches = batches.drain(..).map(|batch| (batch, places.pages));
            self.file.transfer(ram, Action::Read, batches)
        };
        let (mut zero_from, mut batches) = (0, Vec::new());
        while let Some(run) = set.run(zero_from, MOST / PAGE_SIZE) {
            ram.zero_run(block, zero_from * PAGE_SIZE, run.start - zero_from)?;
            zero_from = run.end;
            put_pages(&mut batches, block, run, false);
            if batches.len() >= TOGETHER {
                read(&mut batches)?;
            }
        }
        ram.zero_run(block, zero_from * PAGE_SIZE, set.pages() - zero_from)?;
        read(&mut batches)?;
        Ok(())
    }
}

/// Reads which pages of a block of `len` bytes have contents.
fn read_bitmap(file: &File, places: Places, len: u64) -> Result<PageSet> {
    let mut bytes = vec![0; usize::try_from(bitmap_bytes(len)).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, places.bitmap)?;
    let mut set = PageSet::empty(len / PAGE_SIZE);
    set.edit(|words| {
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
    });
    // A page set drops bits beyond its last page.
    let all: u64 = bytes.as_chunks().0.iter().map(|word| u64::from(u64::from_le_bytes(*word).count_ones())).sum();
    if set.count() != all {
        let message = "the bitmap has pages behind the block's last one";
        return Err(Error::new(ErrorKind::Malformed, message).at(places.bitmap));
    }
    Ok(set)
}

/// A reading position in a file.
struct Position<'f> {
    file: &'f File,
    at: u64,
    strictness: Strictness,
}

impl Position<'_> {
    /// Decodes the bytes at the position, and advances it.
    fn parse<T>(&mut self, decode: impl FnOnce(&mut Reader<'_>) -> Result<T>) -> Result<T> {
        let (mut bytes, mut have) = ([0; ENTRY], 0);
        while let Some(into) = bytes.get_mut(have..).filter(|into| !into.is_empty()) {
            match self.file.read_at(into, self.at + have as u64) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let here = bytes.get(..have).unwrap_or_default();
        let mut input = Reader::new(here, self.at, self.strictness, Limits::default());
        let decoded = decode(&mut input)?;
        self.at += input.consumed() as u64;
        Ok(decoded)
    }
}
