//! A copy of a disk as it was at one instant, made while the guest writes to the disk: before the guest changes a part that is not
//! copied yet, the old content goes to the copy.
//!
//! Facts: QEMU's `block/backup.c`, `block/copy-before-write.c` and `block/block-copy.c`.

use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::bitmap::{BitmapError, DirtyBitmap, GRANULARITY};
use super::disk::cannot;
use super::image::Image;
use crate::error::reason;
use crate::sync::{lock, wait, wait_within};

/// Bytes of a cluster, which is copied as a whole, as QEMU's (`BLOCK_COPY_CLUSTER_SIZE_DEFAULT`).
const CLUSTER: u64 = GRANULARITY as u64;
/// Bytes that are left out together if all of them are zero.
const BLOCK: usize = 4096;

/// A backup of a disk, whose image is named in each call.
#[derive(Debug)]
pub struct Backup {
    target: Image,
    /// The target is new: it reads as zeros wherever nothing was written.
    is_new: bool,
    state: Mutex<State>,
    /// A piece is copied, or the backup is stopped.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Clusters that are to be copied.
    pending: DirtyBitmap,
    /// First byte at which the copier finds pending clusters.
    next: u64,
    /// Piece that the copier copies, without the lock.
    copying: Range<u64>,
    /// Bytes of all clusters of the backup.
    total: u64,
    stopped: Option<Stop>,
}

/// Why a backup has ended before its last cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A user cancelled it.
    Cancelled,
    /// The disk could not be read, for this reason.
    Read(String),
    /// The target could not be written, for this reason.
    Write(String),
}

impl Stop {
    fn read(error: io::Error) -> Self {
        Self::Read(reason(&error))
    }

    /// The target failed.
    pub fn write(error: io::Error) -> Self {
        Self::Write(reason(&error))
    }
}

impl Backup {
    /// Makes a backup to `target`, of which nothing is to be copied yet; `is_new`: the target reads as zeros.
    ///
    /// # Errors
    /// The disk is too large for a bitmap of its clusters.
    pub fn new(target: Image, is_new: bool) -> Result<Self, BitmapError> {
        let pending = DirtyBitmap::new("pending", GRANULARITY, target.bytes(), false)?;
        let state = State { pending, next: 0, copying: 0..0, total: 0, stopped: None };
        Ok(Self { target, is_new, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Sets what is to be copied: the dirty parts of a bitmap, in whole clusters, or everything.
    pub fn set_parts(&self, parts: Option<&DirtyBitmap>) {
        let mut state = lock(&self.state);
        match parts {
            Some(parts) => state.pending.add(parts),
            None => state.pending.mark(0, self.target.bytes()),
        }
        state.total = state.pending.dirty_bytes();
    }

    /// Copies what the guest is about to change and was not copied yet. If that fails, the backup has failed, and the guest goes on.
    pub(super) fn before_change(&self, source: &Image, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let clusters = offset / CLUSTER * CLUSTER..end.next_multiple_of(CLUSTER);
        let mut state = lock(&self.state);
        while state.copying.start < clusters.end && clusters.start < state.copying.end {
            state = wait(&self.changed, state);
        }
        while let Some(part) = state.pending_from(clusters.start).filter(|part| part.start < clusters.end) {
            let piece = part.start..part.end.min(clusters.end);
            let copied = self.copy(source, &piece);
            self.done(&mut state, &piece, copied);
        }
    }

    /// Copies the next piece, of at most `most` bytes, which are whole clusters; a change of the piece has to wait meanwhile. Returns
    /// its number of bytes; `None`: the backup is complete or was stopped.
    pub fn step(&self, source: &Image, most: u64) -> Option<u64> {
        let piece = {
            let mut state = lock(&self.state);
            let part = state.pending_from(state.next)?;
            let piece = part.start..part.end.min(part.start + most);
            (state.next, state.copying) = (piece.end, piece.clone());
            piece
        };
        let copied = match source.data(piece.start) {
            Ok(data) if data.as_ref().is_none_or(|data| data.start >= piece.end) => self.write_zeros(&piece),
            // A block device has no holes to seek.
            _ => self.copy(source, &piece),
        };
        let mut state = lock(&self.state);
        state.copying = 0..0;
        self.done(&mut state, &piece, copied);
        Some(piece.end - piece.start)
    }

    fn done(&self, state: &mut MutexGuard<'_, State>, piece: &Range<u64>, copied: Result<(), Stop>) {
        match copied {
            Ok(()) => state.pending.unmark(piece),
            Err(stop) => drop(state.stopped.get_or_insert(stop)),
        }
        self.changed.notify_all();
    }

    fn copy(&self, source: &Image, piece: &Range<u64>) -> Result<(), Stop> {
        let mut data = vec![0; (piece.end - piece.start) as usize];
        source.read(&mut data, piece.start).map_err(Stop::read)?;
        let is_zero = |block: &[u8]| *block == [0; BLOCK][..block.len()];
        let blocks: Vec<_> = data.chunks(BLOCK).collect();
        let mut at = piece.start;
        for run in blocks.chunk_by(|one, other| is_zero(one) == is_zero(other)) {
            let end = at + run.iter().map(|block| block.len() as u64).sum::<u64>();
            match run.first().is_some_and(|block| is_zero(block)) {
                true => self.write_zeros(&(at..end))?,
                false => self.target.write(&run.concat(), at).map_err(Stop::write)?,
            }
            at = end;
        }
        Ok(())
    }

    /// Makes a piece of the target read as zeros, and use no space where the file system can.
    fn write_zeros(&self, piece: &Range<u64>) -> Result<(), Stop> {
        let len = piece.end - piece.start;
        let written = match self.is_new {
            true => Ok(()),
            false => match self.target.punch(piece.start, len) {
                Err(error) if cannot(&error) => self.target.write(&vec![0; len as usize], piece.start),
                punched => punched,
            },
        };
        written.map_err(Stop::write)
    }

    /// Ends the backup early.
    pub fn cancel(&self) {
        lock(&self.state).stopped.get_or_insert(Stop::Cancelled);
        self.changed.notify_all();
    }

    /// Waits for some time, or until the backup is stopped.
    pub fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut state = lock(&self.state);
        while state.stopped.is_none() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = wait_within(&self.changed, state, left);
        }
    }

    /// Bytes that are copied, and all bytes of the backup.
    pub fn progress(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.total - state.pending.dirty_bytes(), state.total)
    }

    /// Writes the complete backup back.
    ///
    /// # Errors
    /// The backup was stopped, or the target failed.
    pub fn finish(&self) -> Result<(), Stop> {
        if let Some(stop) = lock(&self.state).stopped.clone() {
            return Err(stop);
        }
        self.target.flush().map_err(Stop::write)
    }

    /// Releases the target's lock, which the client's descriptor would keep if the target was passed.
    pub fn release(&self) {
        // A lock that stays is gone with the last descriptor.
        let _ = self.target.resource().unlock();
    }

    /// The clusters that were not copied.
    pub fn pending(&self) -> DirtyBitmap {
        lock(&self.state).pending.clone()
    }
}

impl State {
    /// The first pending part from `start` on, unless the backup is stopped.
    fn pending_from(&self, start: u64) -> Option<Range<u64>> {
        self.pending.ranges(start).next().filter(|_| self.stopped.is_none())
    }
}

#[cfg(test)]
mod tests;
