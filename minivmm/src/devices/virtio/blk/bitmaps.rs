//! Named dirty bitmaps of a disk, which users make for incremental backups, as QEMU's (block/dirty-bitmap.c). They are kept in
//! memory only: a raw image has no place for them.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::changes::masks;
use crate::sync::lock;

/// Granularity of a bitmap if none is given, in bytes: QEMU's for raw images.
pub const GRANULARITY: u32 = 64 << 10;
/// Smallest granularity, a sector.
const GRANULARITY_MIN: u32 = 512;
/// Longest name, in bytes (`BDRV_BITMAP_MAX_NAME_SIZE`).
const NAME_MAX: usize = 1023;
/// Most bitmaps of a disk.
const COUNT_MAX: usize = 1024;
/// Most memory of a disk's bitmaps, in bytes.
const MEMORY_MAX: u64 = 1 << 30;
/// Clusters in a word.
const WORD: u64 = u64::BITS as u64;

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
}

/// A bitmap: one bit for each cluster of `granularity` bytes of the disk.
#[derive(Clone, Debug)]
pub struct DirtyBitmap {
    name: String,
    granularity: u32,
    /// Bytes of the disk.
    bytes: u64,
    words: Vec<u64>,
    /// Number of set bits.
    count: u64,
    recording: bool,
    busy: bool,
}

impl DirtyBitmap {
    fn new(name: &str, granularity: u32, bytes: u64, recording: bool) -> Result<Self, BitmapError> {
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
        Ok(Self { name: name.into(), granularity, bytes, words, count: 0, recording, busy: false })
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

    /// Whether a migration uses the bitmap, so that no user may change it.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// The bits: the lowest bit of the first word is the first cluster.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Sets the bits of all clusters that have a byte of the range.
    fn mark(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.bytes);
        if offset < end {
            let granularity = u64::from(self.granularity);
            self.set(offset / granularity..=(end - 1) / granularity);
        }
    }

    fn set(&mut self, clusters: RangeInclusive<u64>) {
        for (index, mask) in masks(clusters) {
            let Some(word) = self.words.get_mut(index) else { return };
            self.count += u64::from((mask & !*word).count_ones());
            *word |= mask;
        }
    }

    fn clear(&mut self) {
        self.words.fill(0);
        self.count = 0;
    }

    /// Adds the dirty clusters of `other`, which may have another granularity.
    fn add(&mut self, other: &Self) {
        let granularity = u64::from(other.granularity);
        for (index, word) in (0..).zip(&other.words).filter(|(_, word)| **word != 0) {
            let bits = (0..WORD).filter(|bit| word >> bit & 1 == 1);
            bits.for_each(|bit| self.mark((index * WORD + bit) * granularity, granularity));
        }
    }
}

/// All bitmaps of a disk.
#[derive(Debug)]
pub struct Bitmaps {
    /// Bytes of the disk.
    bytes: u64,
    /// The newest first, as QEMU lists and sends them.
    list: Mutex<Vec<DirtyBitmap>>,
    /// Whether the list may have a bitmap.
    some: AtomicBool,
}

impl Bitmaps {
    /// No bitmaps yet, of a disk of `bytes` bytes.
    pub fn new(bytes: u64) -> Self {
        Self { bytes, list: Mutex::default(), some: AtomicBool::new(false) }
    }

    /// Marks a range as written in each bitmap that records. Called after the write and before the guest is answered, so that
    /// the write is in an image that is read after a bitmap was added or cleared, or in the bitmap.
    pub fn mark(&self, offset: u64, len: u64) {
        if self.some.load(Ordering::SeqCst) {
            lock(&self.list).iter_mut().filter(|bitmap| bitmap.recording).for_each(|bitmap| bitmap.mark(offset, len));
        }
    }

    /// Adds a bitmap without dirty clusters.
    ///
    /// # Errors
    /// The name or the granularity is not possible, or there are too many bitmaps.
    pub fn add(&self, name: &str, granularity: u32, recording: bool) -> Result<(), BitmapError> {
        let bitmap = DirtyBitmap::new(name, granularity, self.bytes, recording)?;
        let mut list = lock(&self.list);
        if list.iter().any(|other| other.name == name) {
            return Err(BitmapError::Exists(name.into()));
        }
        if list.len() >= COUNT_MAX {
            return Err(BitmapError::TooMany);
        }
        let words: usize = list.iter().chain([&bitmap]).map(|bitmap| bitmap.words.len()).sum();
        if words as u64 > MEMORY_MAX / 8 {
            return Err(BitmapError::TooLarge);
        }
        list.insert(0, bitmap);
        self.some.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Removes a bitmap.
    ///
    /// # Errors
    /// It does not exist, or is busy.
    pub fn remove(&self, name: &str) -> Result<(), BitmapError> {
        let mut list = lock(&self.list);
        let index = Self::index(&list, name)?;
        list.remove(index);
        self.some.store(!list.is_empty(), Ordering::SeqCst);
        Ok(())
    }

    /// Makes all clusters clean.
    ///
    /// # Errors
    /// The bitmap does not exist, or is busy.
    pub fn clear(&self, name: &str) -> Result<(), BitmapError> {
        self.change(name, DirtyBitmap::clear)
    }

    /// Sets whether the guest's writes set bits.
    ///
    /// # Errors
    /// The bitmap does not exist, or is busy.
    pub fn set_recording(&self, name: &str, recording: bool) -> Result<(), BitmapError> {
        self.change(name, |bitmap| bitmap.recording = recording)
    }

    /// Adds the dirty clusters of other bitmaps: names, each with the bitmaps of its disk.
    ///
    /// # Errors
    /// A bitmap does not exist or is busy, or the disks have other sizes. Nothing is changed then.
    pub fn merge(&self, name: &str, sources: &[(Arc<Self>, &str)]) -> Result<(), BitmapError> {
        let mut sum = self.with(name, |bitmap| DirtyBitmap::new(name, bitmap.granularity, self.bytes, false))??;
        for (bitmaps, name) in sources {
            bitmaps.with(name, |source| {
                if source.busy {
                    return Err(BitmapError::Busy(source.name.clone()));
                }
                if source.bytes != self.bytes {
                    return Err(BitmapError::Sizes { target: self.bytes, source_size: source.bytes });
                }
                sum.add(source);
                Ok(())
            })??;
        }
        self.change(name, |bitmap| bitmap.add(&sum))
    }

    /// Calls `read` with a bitmap.
    ///
    /// # Errors
    /// The bitmap does not exist.
    pub fn with<R>(&self, name: &str, read: impl FnOnce(&DirtyBitmap) -> R) -> Result<R, BitmapError> {
        let list = lock(&self.list);
        let found = list.iter().find(|bitmap| bitmap.name == name);
        found.map(read).ok_or_else(|| BitmapError::NotFound(name.into()))
    }

    /// Calls `read` with each bitmap, the newest first.
    pub fn each<R>(&self, read: impl FnMut(&DirtyBitmap) -> R) -> Vec<R> {
        lock(&self.list).iter().map(read).collect()
    }

    fn change<R>(&self, name: &str, change: impl FnOnce(&mut DirtyBitmap) -> R) -> Result<R, BitmapError> {
        let mut list = lock(&self.list);
        let index = Self::index(&list, name)?;
        Ok(change(&mut list[index]))
    }

    /// Index of a bitmap that is not busy.
    fn index(list: &[DirtyBitmap], name: &str) -> Result<usize, BitmapError> {
        match list.iter().position(|bitmap| bitmap.name == name) {
            None => Err(BitmapError::NotFound(name.into())),
            Some(index) if list[index].busy => Err(BitmapError::Busy(name.into())),
            Some(index) => Ok(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// No whole number of clusters, in which a cluster of the largest granularity begins.
    const BYTES: u64 = (1 << 21) + 0x1200;

    /// Dirty sectors of a bitmap.
    fn sectors(bitmap: &DirtyBitmap) -> BTreeSet<u64> {
        let bit = |cluster: u64| bitmap.words()[(cluster / 64) as usize] >> (cluster % 64) & 1 == 1;
        (0..BYTES / 512).filter(|sector| bit(sector * 512 / u64::from(bitmap.granularity()))).collect()
    }

    /// A step: its kind, the bitmap that it concerns, offset and length of a write.
    type Step = (u8, usize, u64, u64);

    proptest! {
        /// The model is a set of sectors for each bitmap, into which each write puts the sectors of its clusters one by one.
        #[test]
        fn bitmaps_are_those_of_a_model(
            granularities in [9..22u32, 9..22, 9..22],
            steps in prop::collection::vec((0..6u8, 0..3usize, 0..BYTES, 0..BYTES / 8), 1..60),
        ) {
            let names = ["a", "b", "c"];
            let bitmaps = Arc::new(Bitmaps::new(BYTES));
            let mut model = Vec::new();
            for (name, shift) in names.iter().zip(granularities) {
                bitmaps.add(name, 1 << shift, true).unwrap();
                model.push((true, BTreeSet::<u64>::new()));
            }
            let clusters = |set: &BTreeSet<u64>, shift: u32| -> BTreeSet<u64> {
                let found: BTreeSet<_> = set.iter().map(|sector| (sector * 512) >> shift).collect();
                (0..BYTES / 512).filter(|sector| found.contains(&((sector * 512) >> shift))).collect()
            };
            for (kind, index, offset, len) in steps as Vec<Step> {
                let other = (index + 1) % 3;
                match kind {
                    0 => {
                        bitmaps.clear(names[index]).unwrap();
                        model[index].1.clear();
                    }
                    1 => {
                        bitmaps.set_recording(names[index], len % 2 == 0).unwrap();
                        model[index].0 = len % 2 == 0;
                    }
                    2 => {
                        bitmaps.merge(names[index], &[(Arc::clone(&bitmaps), names[other])]).unwrap();
                        let added = clusters(&model[other].1, granularities[index]);
                        model[index].1.extend(added);
                    }
                    _ => {
                        let len = len.min(BYTES - offset);
                        bitmaps.mark(offset, len);
                        let written: BTreeSet<_> = (offset / 512..(offset + len).div_ceil(512)).filter(|_| len > 0).collect();
                        for ((recording, dirty), shift) in model.iter_mut().zip(granularities) {
                            if *recording {
                                dirty.extend(clusters(&written, shift));
                            }
                        }
                    }
                }
            }
            for ((name, (recording, dirty)), shift) in names.iter().zip(&model).zip(granularities) {
                let found = bitmaps.with(name, Clone::clone).unwrap();
                prop_assert_eq!(&sectors(&found), dirty);
                let count = dirty.iter().map(|sector| (sector * 512) >> shift).collect::<BTreeSet<_>>().len() as u64;
                prop_assert_eq!((found.dirty_bytes(), found.is_recording()), (count << shift, *recording));
            }
        }
    }

    #[test]
    fn the_bitmaps_of_a_disk_are_limited() {
        let bitmaps = Bitmaps::new(1 << 42);
        assert_eq!(bitmaps.add("a", 512, true), Ok(()), "exactly the limit");
        assert_eq!(bitmaps.add("b", 1 << 31, true), Err(BitmapError::TooLarge));
        bitmaps.remove("a").unwrap();
        (0..1024).for_each(|index| bitmaps.add(&index.to_string(), 1 << 31, true).unwrap());
        assert_eq!(bitmaps.add("b", 1 << 31, true), Err(BitmapError::TooMany));
        assert_eq!(Bitmaps::new(1 << 43).add("a", 512, true), Err(BitmapError::TooLarge));
    }
}
