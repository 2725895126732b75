//! Named dirty bitmaps of a disk, which users make for incremental backups, as QEMU's (block/dirty-bitmap.c). They are kept in
//! memory only: a raw image has no place for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::bitmap::{BitmapError, COUNT_MAX, Chunk, DirtyBitmap, MEMORY_MAX, Use};
use crate::sync::lock;

/// All bitmaps of a disk.
#[derive(Debug)]
pub struct Bitmaps {
    /// Bytes of the disk.
    pub(super) bytes: u64,
    /// The newest first, as QEMU lists and sends them.
    list: Mutex<Vec<DirtyBitmap>>,
    /// False only while the list is empty.
    may_have_any: AtomicBool,
}

/// Clusters that were dirty when a backup began, once it is over.
#[derive(Debug)]
pub enum Earlier {
    /// The backup has all of them.
    Copied,
    /// The next backup is to have them, whether this one has them or not.
    Kept,
    /// The backup has all but these.
    CopiedExcept(DirtyBitmap),
}

impl Bitmaps {
    /// No bitmaps yet, of a disk of `bytes` bytes.
    pub fn new(bytes: u64) -> Self {
        Self { bytes, list: Mutex::default(), may_have_any: AtomicBool::new(false) }
    }

    /// Marks a range as written in each bitmap that records. Called after the write and before the guest is answered, so that
    /// the write is in an image that is read after a bitmap was added or cleared, or in the bitmap.
    pub fn mark(&self, offset: u64, len: u64) {
        if self.may_have_any.load(Ordering::SeqCst) {
            lock(&self.list).iter_mut().filter(|bitmap| bitmap.recording).for_each(|bitmap| bitmap.mark(offset, len));
        }
    }

    /// Locks the list, whose changes have to be reported to [`changed`](Self::changed).
    pub(super) fn locked(&self) -> MutexGuard<'_, Vec<DirtyBitmap>> {
        lock(&self.list)
    }

    /// Inserts a new bitmap of the disk into the locked `list`.
    ///
    /// # Errors
    /// The disk has a bitmap of this name already, or too many.
    pub(super) fn insert(&self, list: &mut Vec<DirtyBitmap>, bitmap: DirtyBitmap) -> Result<(), BitmapError> {
        let name = bitmap.name();
        if list.iter().any(|other| other.name() == name) {
            return Err(BitmapError::Exists(name.into()));
        }
        if list.len() >= COUNT_MAX {
            return Err(BitmapError::TooMany);
        }
        let words: usize = list.iter().chain([&bitmap]).map(|bitmap| bitmap.words().len()).sum();
        if words as u64 > MEMORY_MAX / 8 {
            return Err(BitmapError::TooLarge);
        }
        list.insert(0, bitmap);
        self.changed(list);
        Ok(())
    }

    /// Notices that the locked `list` has changed.
    pub(super) fn changed(&self, list: &[DirtyBitmap]) {
        self.may_have_any.store(!list.is_empty(), Ordering::SeqCst);
    }

    /// Calls `read` with a bitmap.
    ///
    /// # Errors
    /// The bitmap does not exist.
    pub fn with<R>(&self, name: &str, read: impl FnOnce(&DirtyBitmap) -> R) -> Result<R, BitmapError> {
        let list = lock(&self.list);
        let found = list.iter().find(|bitmap| bitmap.name() == name);
        found.map(read).ok_or_else(|| BitmapError::NotFound(name.into()))
    }

    /// Calls `read` with each bitmap, the newest first.
    pub fn each<R>(&self, read: impl FnMut(&DirtyBitmap) -> R) -> Vec<R> {
        lock(&self.list).iter().map(read).collect()
    }

    /// Source: makes those bitmaps busy for whose name `wanted` returns something, and returns that, for the newest bitmap first.
    /// All their dirty clusters are to be sent.
    ///
    /// # Errors
    /// One of them is busy already.
    pub fn leave<R>(&self, wanted: impl Fn(&str) -> Option<R>) -> Result<Vec<R>, BitmapError> {
        let mut list = lock(&self.list);
        let mut leaving: Vec<_> = list.iter_mut().filter_map(|bitmap| Some((wanted(bitmap.name())?, bitmap))).collect();
        if let Some((_, busy)) = leaving.iter().find(|(_, bitmap)| bitmap.is_busy()) {
            return Err(BitmapError::Busy(busy.name().into()));
        }
        leaving.iter_mut().for_each(|(_, bitmap)| bitmap.leave());
        Ok(leaving.into_iter().map(|(wanted, _)| wanted).collect())
    }

    /// Source: takes the chunks of a leaving bitmap that have changed since they were last taken, in their order.
    ///
    /// # Errors
    /// The bitmap does not exist.
    pub fn take_changed(&self, name: &str) -> Result<Vec<usize>, BitmapError> {
        self.find(name, |bitmap| Ok(bitmap.take_changed()))
    }

    /// Source: copies a chunk of a bitmap.
    ///
    /// # Errors
    /// The bitmap does not exist.
    pub fn chunk(&self, name: &str, index: usize) -> Result<Chunk, BitmapError> {
        self.with(name, |bitmap| bitmap.chunk(index))
    }

    /// Destination: adds a bitmap whose bits will arrive.
    ///
    /// # Errors
    /// As for [`add`](Self::add).
    pub fn begin_arrival(&self, name: &str, granularity: u32, recording: bool) -> Result<(), BitmapError> {
        let mut bitmap = DirtyBitmap::new(name, granularity, self.bytes, recording)?;
        bitmap.used = Use::Arriving { is_complete: false };
        self.insert(&mut lock(&self.list), bitmap)
    }

    /// Destination: adds the bits of a chunk to an arriving bitmap.
    ///
    /// # Errors
    /// The bitmap does not arrive, or cannot have such a chunk.
    pub fn add_chunk(&self, name: &str, chunk: &Chunk) -> Result<(), BitmapError> {
        self.find(name, |bitmap| bitmap.add_chunk(chunk))
    }

    /// Destination: all bits of a bitmap have arrived.
    ///
    /// # Errors
    /// The bitmap does not arrive.
    pub fn complete(&self, name: &str) -> Result<(), BitmapError> {
        self.find(name, |bitmap| {
            bitmap.used = match bitmap.used {
                Use::Arriving { is_complete: false } => Use::Arriving { is_complete: true },
                Use::ArrivingInPostcopy => Use::None,
                _ => return Err(BitmapError::NotArriving(name.into())),
            };
            Ok(())
        })
    }

    /// Destination: the guest goes on here, and users may change the bitmaps that have arrived.
    pub fn arrived(&self) {
        for bitmap in lock(&self.list).iter_mut() {
            bitmap.used = match std::mem::replace(&mut bitmap.used, Use::None) {
                Use::Arriving { is_complete: true } => Use::None,
                Use::Arriving { is_complete: false } => Use::ArrivingInPostcopy,
                other => other,
            };
        }
    }

    /// The migration has ended. At a source users may change the bitmaps again. At a destination bitmaps of a guest that did not
    /// go on here are removed, and incomplete ones.
    pub fn end_migration(&self) {
        let mut list = lock(&self.list);
        list.retain_mut(|bitmap| match bitmap.used {
            Use::None | Use::BackedUp(_) | Use::Removed => true,
            Use::Leaving { .. } => {
                bitmap.used = Use::None;
                true
            }
            Use::Arriving { .. } | Use::ArrivingInPostcopy => false,
        });
        self.changed(&list);
    }

    /// The backup by a bitmap, which it made busy, is over. The clusters that the guest has changed since it began are dirty, and
    /// those that `earlier` says.
    pub fn end_backup(&self, name: &str, earlier: &Earlier) {
        let end = |bitmap: &mut DirtyBitmap| {
            if let Use::BackedUp(mut later) = std::mem::replace(&mut bitmap.used, Use::None) {
                match earlier {
                    Earlier::Copied => {}
                    Earlier::Kept => later.add(bitmap),
                    Earlier::CopiedExcept(pending) => later.add(pending),
                }
                *bitmap = *later;
            }
            Ok(())
        };
        // The bitmap is there, since a busy bitmap cannot be removed.
        let _ = self.find(name, end);
    }

    fn find<R>(
        &self,
        name: &str,
        change: impl FnOnce(&mut DirtyBitmap) -> Result<R, BitmapError>,
    ) -> Result<R, BitmapError> {
        let mut list = lock(&self.list);
        let found = list.iter_mut().find(|bitmap| bitmap.name() == name);
        found.map_or_else(|| Err(BitmapError::NotFound(name.into())), change)
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
            let bitmaps = Bitmaps::new(BYTES);
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
                        bitmaps.merge(names[index], names[other]).unwrap();
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
                for start in [0, BYTES / 3, BYTES] {
                    let ranges: Vec<_> = found.ranges(start).collect();
                    prop_assert!(ranges.windows(2).all(|two| two[0].end < two[1].start));
                    prop_assert!(ranges.iter().all(|range| start <= range.start && range.start < range.end && range.end <= BYTES));
                    let listed: BTreeSet<_> = ranges.into_iter().flat_map(|range| range.start / 512..range.end / 512).collect();
                    prop_assert_eq!(listed, dirty.range(start / 512..).copied().collect::<BTreeSet<_>>());
                }
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
