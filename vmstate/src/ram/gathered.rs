//! Copies pages out of guest memory and into it, for channels that cannot access guest memory themselves.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{GuestRam, PAGE, PAGE_SIZE};
use crate::codec::{Outbox, PageRun, Piece};
use crate::error::Result;

/// The most bytes that are copied at once: they stay in the second-level cache until they are sent.
const COPY: usize = 256 << 10;

/// Passes the first bytes of `outbox`, at most 256 KiB, to `take`, with the present contents of its pages: the implementation of
/// [`GuestRam::send`] for memory that the system cannot access. Returns the result of `take`.
///
/// # Errors
/// Errors of guest memory, as the inner error; errors of `take`.
pub fn copied_out<T>(
    ram: &(impl GuestRam + ?Sized),
    outbox: &Outbox,
    take: impl FnOnce(&[u8]) -> io::Result<T>,
) -> io::Result<T> {
    let mut pieces = outbox.pieces().peekable();
    if let Some(&Piece::Bytes(bytes)) = pieces.peek()
        && (bytes.len() >= COPY || bytes.len() as u64 == outbox.len())
    {
        return take(bytes);
    }
    let mut copy = Vec::with_capacity(COPY);
    // Part of the first page may have been sent already; guest memory is read in whole pages all the same.
    let mut skipped = 0;
    for piece in pieces {
        let room = COPY.saturating_sub(copy.len());
        let all = match piece {
            Piece::Bytes(bytes) => {
                copy.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
                bytes.len() <= room
            }
            Piece::Pages(PageRun { block, offset, len }) => {
                let before = offset % PAGE_SIZE;
                skipped += usize::try_from(before).unwrap_or_default();
                let (start, wanted) = (copy.len(), before + len);
                // The end of the last page may remain for later, too.
                let rounded = wanted.next_multiple_of(PAGE_SIZE);
                let taken = usize::try_from(rounded).unwrap_or(usize::MAX).min(room / PAGE * PAGE);
                // In builds without optimisation, `resize` is a loop over bytes, which took a fifth of the tests' time.
                (0..taken / PAGE).for_each(|_| copy.extend_from_slice(&[0; PAGE]));
                match copy.get_mut(start..) {
                    Some(into) if taken > 0 => ram.read(block, offset - before, into).map_err(io::Error::other)?,
                    _ => break,
                }
                let all = taken as u64 == rounded;
                if all {
                    copy.truncate(start + usize::try_from(wanted).unwrap_or(usize::MAX));
                }
                all
            }
        };
        if !all {
            break;
        }
    }
    take(copy.get(skipped..).unwrap_or_default())
}

/// Lets `take` receive into a buffer, and writes the received bytes to `runs`: the implementation of [`GuestRam::receive`] for
/// memory that the system cannot access.
///
/// # Errors
/// Errors of `take`; errors of guest memory, as the inner error.
pub fn copied_in(
    ram: &(impl GuestRam + ?Sized),
    runs: &[PageRun],
    take: impl FnOnce(&mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let all: u64 = runs.iter().map(|run| run.len).sum();
    let mut copy = vec![0; usize::try_from(all).unwrap_or(usize::MAX).min(COPY)];
    let count = take(&mut copy)?;
    let mut left = copy.get(..count).unwrap_or(&copy);
    for &PageRun { block, offset, len } in runs {
        let cut = usize::try_from(len).unwrap_or(usize::MAX).min(left.len());
        let (bytes, rest) = left.split_at(cut);
        write(ram, block, offset, bytes).map_err(io::Error::other)?;
        left = rest;
    }
    Ok(count)
}

/// Copies the first bytes of `run`, at most 256 KiB, and writes them to `file` at `offset`: the implementation of
/// [`GuestRam::send_at`] for memory that the system cannot access. The copy begins at a multiple of the page size in memory, as
/// direct I/O needs (open(2), O_DIRECT).
///
/// # Errors
/// Errors of the file; errors of guest memory, as the inner error.
pub fn copied_out_at(
    ram: &(impl GuestRam + ?Sized),
    file: &File,
    offset: u64,
    PageRun { block, offset: first, len }: PageRun,
) -> io::Result<usize> {
    let (before, len) = (size(first % PAGE_SIZE), size(len));
    let mut buffer = Vec::new();
    let copy = aligned(&mut buffer, before.saturating_add(len).next_multiple_of(PAGE).min(COPY));
    ram.read(block, first - before as u64, copy).map_err(io::Error::other)?;
    file.write_at(copy.get(before..copy.len().min(before.saturating_add(len))).unwrap_or_default(), offset)
}

/// Reads from `file` at `offset` into the first bytes of `run`, at most 256 KiB, by way of a copy: the implementation of
/// [`GuestRam::receive_at`] for memory that the system cannot access. The copy is aligned as in [`copied_out_at`].
///
/// # Errors
/// Errors of the file; errors of guest memory, as the inner error.
pub fn copied_in_at(ram: &(impl GuestRam + ?Sized), file: &File, offset: u64, run: PageRun) -> io::Result<usize> {
    let (mut buffer, before) = (Vec::new(), size(run.offset % PAGE_SIZE));
    let copy = aligned(&mut buffer, before.saturating_add(size(run.len)).min(COPY));
    let copy = copy.get_mut(before..).unwrap_or_default();
    let count = file.read_at(copy, offset)?;
    write(ram, run.block, run.offset, copy.get(..count).unwrap_or_default()).map_err(io::Error::other)?;
    Ok(count)
}

/// Writes the first of `bytes` to `file` at `offset`, and returns how many. If the file is open for direct I/O, which takes whole
/// pages only, the pages around the bytes are read and written back with them: no other thread may write these pages.
///
/// # Errors
/// Errors of the file.
pub(crate) fn write_bytes_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
    match file.write_at(bytes, offset) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
        written => return written,
    }
    let (mut buffer, before) = (Vec::new(), size(offset % PAGE_SIZE));
    let first = offset - before as u64;
    let end = COPY.min(before.saturating_add(bytes.len()));
    let pages = aligned(&mut buffer, end.next_multiple_of(PAGE));
    let mut have = 0;
    while let Some(into) = pages.get_mut(have..).filter(|into| !into.is_empty()) {
        match file.read_at(into, first + have as u64)? {
            0 => break,
            // Behind a part of a page there is only the end of the file.
            count if !count.is_multiple_of(PAGE) => break,
            count => have += count,
        }
    }
    let len = file.metadata()?.len().max(first + end as u64);
    for (into, byte) in pages.iter_mut().skip(before).zip(bytes) {
        *into = *byte;
    }
    file.write_all_at(pages, first)?;
    // The last page may be longer than the file.
    file.set_len(len)?;
    Ok(end - before)
}

/// Writes all of `bytes`, as [`write_bytes_at`] does.
///
/// # Errors
/// Errors of the file.
pub(crate) fn write_all_bytes_at(file: &File, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = match write_bytes_at(file, offset, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            written => written?,
        };
        (offset, bytes) = (offset + count as u64, bytes.get(count..).unwrap_or_default());
    }
    Ok(())
}

/// Makes `len` zero bytes in `buffer` that begin at a multiple of the page size.
fn aligned(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    *buffer = vec![0; len + PAGE];
    let start = buffer.as_ptr().align_offset(PAGE);
    buffer.get_mut(start..start + len).unwrap_or_default()
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Writes by whole pages: the part of a page that was not received yet stays unchanged.
fn write(ram: &(impl GuestRam + ?Sized), block: usize, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let before = usize::try_from(offset % PAGE_SIZE).unwrap_or_default();
        let cut = if before == 0 && bytes.len() >= PAGE { bytes.len() / PAGE * PAGE } else { PAGE - before };
        let (now, rest) = bytes.split_at(cut.min(bytes.len()));
        if before == 0 && now.len() >= PAGE {
            ram.write(block, offset, now)?;
        } else {
            let mut page = [0; PAGE];
            let first = offset - before as u64;
            ram.read(block, first, &mut page)?;
            for (into, byte) in page.iter_mut().skip(before).zip(now) {
                *into = *byte;
            }
            ram.write(block, first, &page)?;
        }
        (offset, bytes) = (offset + now.len() as u64, rest);
    }
    Ok(())
}
