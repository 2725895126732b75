//! One named dirty bitmap: its bits, and its part in a migration.

use std::ops::{Range, RangeInclusive};

use super::changes::masks;
use super::image::SECTOR;

/// Granularity of a bitmap if none is given, in bytes: QEMU's for raw images.
pub const GRANULARITY: u32 = 64 << 10;
/// Smallest granularity, a sector.
const GRANULARITY_MIN: u32 = 512;
/// Longest name, in bytes (`BDRV_BITMAP_MAX_NAME_SIZE`).
const NAME_MAX: usize = 1023;
/// Most bitmaps of a disk.
pub(super) const COUNT_MAX: usize = 1024;
/// Most memory of a disk's bitmaps, in bytes.
pub(super) const MEMORY_MAX: u64 = 1 << 30;
/// Clusters in a word.
const WORD: u64 = u64::BITS as u64;
/// Most words that are sent at once: QEMU's chunks have 1 KiB.
const CHUNK_WORDS: u64 = 128;
/// A chunk has a multiple of this number of words.
pub(super) const PADDING: usize = 4;
/// Most sectors of a chunk, whose number of sectors has 32 bits.
const CHUNK_SECTORS: u64 = 1 << 31;

/// Why a bitmap cannot be used. The texts are QEMU's, except those of limits that QEMU lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum BitmapError {
    #[error("Dirty bitmap '{0}' not found")]
    NotFound(String),
    #[error("Bitmap already exists: {0}")]
    Exists(String),
    #[error("Bitmap name cannot be empty")]
    NoName,
    #[error("Bitmap name too long: {0}")]
    LongName(String),
    #[error("Granularity must be power of 2 and at least 512")]
    Granularity,
    #[error("Bitmap '{0}' is currently in use by another operation and cannot be used")]
    Busy(String),
    #[error(
        "Bitmaps are of different sizes (destination size is {target}, source size is {source_size}) and can't be merged"
    )]
    Sizes { target: u64, source_size: u64 },
    #[error("a disk has at most {COUNT_MAX} bitmaps: remove one first")]
    TooMany,
    #[error(
        "the bitmaps of a disk have at most {MEMORY_MAX} bytes of memory: give a larger granularity, or remove one first"
    )]
    TooLarge,
    #[error("the bitmap '{0}' is complete, or does not arrive in this migration")]
    NotArriving(String),
    #[error("{sectors} sectors from {start} on are no whole words of the bitmap, or are not on the disk")]
    Range { start: u64, sectors: u32 },
    #[error("{words} words were sent for {sectors} sectors of the bitmap, or bits beyond its end are set")]
    Words { words: usize, sectors: u32 },
}

/// Part of a bitmap in a migration or in a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// None: users may change the bitmap.
    None,
    /// A source sends it.
    Leaving {
        /// Chunks that have changed since they were last taken to be sent, a bit for each.
        changed: Vec<u64>,
    },
    /// It arrives at a destination, whose guest does not run yet.
    Arriving {
        /// Whether all bits have arrived.
        is_complete: bool,
    },
    /// Bits are still to arrive, at a destination whose guest runs.
    ArrivingInPostcopy,
    /// A backup copies its clusters; the guest's changes since the backup began are in this bitmap.
    BackedUp(Box<DirtyBitmap>),
    /// It is removed if its transaction succeeds.
    Removed,
}

/// A part of a bitmap as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First sector of its part of the disk.
    pub start: u64,
    /// Number of sectors.
    pub sectors: u32,
    /// Its words, with zeros after the last one up to a multiple of four; none if all are zero.
    pub words: Vec<u64>,
}

/// A bitmap: one bit for each cluster of `granularity` bytes of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyBitmap {
    name: String,
    granularity: u32,
    /// Bytes of the disk.
    pub(super) bytes: u64,
    words: Vec<u64>,
    /// Number of set bits.
    count: u64,
    pub(super) recording: bool,
    pub(super) used: Use,
}

impl DirtyBitmap {
    pub(super) fn new(name: &str, granularity: u32, bytes: u64, recording: bool) -> Result<Self, BitmapError> {
        if name.is_empty() {
            return Err(BitmapError::NoName);
        }
        if name.len() > NAME_MAX {
            return Err(BitmapError::LongName(name.into()));
        }
        if granularity < GRANULARITY_MIN || !granularity.is_power_of_two() {
            return Err(BitmapError::Granularity);
        }
        let words = bytes.div_ceil(granularity.into()).div_ceil(WORD).max(1);
        if words > MEMORY_MAX / 8 {
            return Err(BitmapError::TooLarge);
        }
        // The zeros are not in the host's memory until a bit is set.
        let words = vec![0; words as usize];
        Ok(Self { name: name.into(), granularity, bytes, words, count: 0, recording, used: Use::None })
    }

    /// Name, which is unique on the disk.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of a cluster, a power of two.
    pub fn granularity(&self) -> u32 {
        self.granularity
    }

    /// Bytes of all dirty clusters; the last cluster of the disk counts whole.
    pub fn dirty_bytes(&self) -> u64 {
        self.count * u64::from(self.granularity)
    }

    /// Whether the guest's writes set bits.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// Whether a migration, a backup or a transaction uses the bitmap, so that no user may change it.
    pub fn is_busy(&self) -> bool {
        self.used != Use::None
    }

    /// The bits: the lowest bit of the first word is the first cluster.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Returns the dirty parts of the disk from `start` on, in bytes: as few ranges as possible, in their order.
    pub fn ranges(&self, start: u64) -> impl Iterator<Item = Range<u64>> {
        let granularity = u64::from(self.granularity);
        let mut next = start / granularity;
        std::iter::from_fn(move || {
            let first = self.find(next, true)?;
            next = self.find(first, false).unwrap_or(self.words.len() as u64 * WORD);
            Some((first * granularity).max(start)..(next * granularity).min(self.bytes))
        })
        // If `start` is beyond the end.
        .filter(|range| !range.is_empty())
    }

    /// First cluster from `from` on that is dirty, or clean.
    fn find(&self, from: u64, dirty: bool) -> Option<u64> {
        let wanted = |index: u64, word: &u64| {
            let bits = if dirty { *word } else { !*word };
            if index == from / WORD { bits & u64::MAX << (from % WORD) } else { bits }
        };
        let mut words = (from / WORD..).zip(self.words.get((from / WORD) as usize..)?);
        words.find_map(|(index, word)| {
            let bits = wanted(index, word);
            (bits != 0).then(|| index * WORD + u64::from(bits.trailing_zeros()))
        })
    }

    /// Sets the bits of all clusters that have a byte of the range; if a backup copies the bitmap's clusters, those of the
    /// bitmap of later changes.
    pub(super) fn mark(&mut self, offset: u64, len: u64) {
        if let Use::BackedUp(later) = &mut self.used {
            return later.mark(offset, len);
        }
        let end = offset.saturating_add(len).min(self.bytes);
        if offset < end {
            let granularity = u64::from(self.granularity);
            self.set(offset / granularity..=(end - 1) / granularity);
        }
    }

    /// Clears the bits of all clusters of a range that begins and ends with a cluster, or ends with the disk.
    pub(super) fn unmark(&mut self, range: &Range<u64>) {
        let granularity = u64::from(self.granularity);
        let Some(last) = range.end.checked_sub(1).filter(|last| range.start <= *last) else { return };
        for (index, mask) in masks(range.start / granularity..=last / granularity) {
            let Some(word) = self.words.get_mut(index) else { return };
            self.count -= u64::from((*word & mask).count_ones());
            *word &= !mask;
        }
    }

    fn set(&mut self, clusters: RangeInclusive<u64>) {
        masks(clusters).for_each(|(index, mask)| self.set_in_word(index, mask));
    }

    fn set_in_word(&mut self, index: usize, mask: u64) {
        let Some(word) = self.words.get_mut(index) else { return };
        self.count += u64::from((mask & !*word).count_ones());
        if *word & mask != mask {
            *word |= mask;
            self.changed(index);
        }
    }

    /// Remembers that a word has to be sent, at a source.
    fn changed(&mut self, word: usize) {
        let chunk = word / self.chunk_words();
        if let Use::Leaving { changed } = &mut self.used
            && let Some(bits) = changed.get_mut(chunk / 64)
        {
            *bits |= 1 << (chunk % 64);
        }
    }

    fn sectors_of_word(&self) -> u64 {
        WORD * u64::from(self.granularity) / SECTOR
    }

    fn chunk_words(&self) -> usize {
        CHUNK_WORDS.min(CHUNK_SECTORS / self.sectors_of_word()).max(1) as usize
    }

    /// Source: begins to send the bitmap; all chunks with dirty clusters are to be sent.
    pub(super) fn leave(&mut self) {
        let chunks = self.words.len().div_ceil(self.chunk_words());
        self.used = Use::Leaving { changed: vec![0; chunks.div_ceil(64)] };
        for index in 0..self.words.len() {
            if self.words.get(index).is_some_and(|word| *word != 0) {
                self.changed(index);
            }
        }
    }

    /// Source: takes the chunks that have changed since they were last taken, in their order.
    pub(super) fn take_changed(&mut self) -> Vec<usize> {
        let Use::Leaving { changed } = &mut self.used else { return Vec::new() };
        let taken = (0..).zip(changed).flat_map(|(index, bits): (usize, &mut u64)| {
            let bits = std::mem::take(bits);
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| index * 64 + bit)
        });
        taken.collect()
    }

    /// Source: copies a chunk.
    pub(super) fn chunk(&self, index: usize) -> Chunk {
        let first = index * self.chunk_words();
        let mut words: Vec<_> = self.words.iter().skip(first).take(self.chunk_words()).copied().collect();
        let start = first as u64 * self.sectors_of_word();
        let sectors = (self.bytes / SECTOR).saturating_sub(start).min(words.len() as u64 * self.sectors_of_word());
        words.resize(words.len().next_multiple_of(PADDING), 0);
        if words.iter().all(|word| *word == 0) {
            words.clear();
        }
        Chunk { start, sectors: sectors.try_into().unwrap_or(u32::MAX), words }
    }

    /// Destination: adds the bits of a chunk, to those that the guest has set here since it runs.
    pub(super) fn add_chunk(&mut self, chunk: &Chunk) -> Result<(), BitmapError> {
        if !matches!(self.used, Use::Arriving { is_complete: false } | Use::ArrivingInPostcopy) {
            return Err(BitmapError::NotArriving(self.name.clone()));
        }
        let Chunk { start, sectors, ref words } = *chunk;
        let (disk, of_word) = (self.bytes / SECTOR, self.sectors_of_word());
        let end = start.saturating_add(sectors.into());
        if sectors == 0 || !start.is_multiple_of(of_word) || end > disk || !end.is_multiple_of(of_word) && end != disk {
            return Err(BitmapError::Range { start, sectors });
        }
        let clusters = (u64::from(sectors) * SECTOR).div_ceil(self.granularity.into());
        let needed = clusters.div_ceil(WORD) as usize;
        let beyond = if clusters.is_multiple_of(WORD) { 0 } else { u64::MAX << (clusters % WORD) };
        let over = words.iter().skip(needed).any(|word| *word != 0)
            || words.get(needed - 1).is_some_and(|word| word & beyond != 0);
        if !words.is_empty() && !(needed..=needed.next_multiple_of(PADDING)).contains(&words.len()) || over {
            return Err(BitmapError::Words { words: words.len(), sectors });
        }
        let first = (start / of_word) as usize;
        for (word, sent) in self.words.iter_mut().skip(first).zip(words) {
            self.count += u64::from((sent & !*word).count_ones());
            *word |= sent;
        }
        Ok(())
    }

    /// The bitmap without dirty clusters.
    pub(super) fn cleared(&self) -> Self {
        let words = vec![0; self.words.len()];
        Self { name: self.name.clone(), words, count: 0, used: Use::None, ..*self }
    }

    /// Adds the dirty clusters of `other`, which may have another granularity.
    pub(super) fn add(&mut self, other: &Self) {
        if self.granularity == other.granularity {
            let words = other.words.iter().enumerate().filter(|(_, word)| **word != 0);
            words.for_each(|(index, word)| self.set_in_word(index, *word));
        } else {
            other.ranges(0).for_each(|range| self.mark(range.start, range.end - range.start));
        }
    }
}
