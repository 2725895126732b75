//! Changes that users make to the dirty bitmaps of one or more disks: all of them or none, at one instant.
//!
//! The lists of all disks are locked meanwhile. So each write of the guest is marked on its disk before all changes or after all
//! of them, and a write that the guest began once another one was answered is not marked before that one.

use std::sync::MutexGuard;

use super::bitmap::{BitmapError, DirtyBitmap, Use};
use super::bitmaps::Bitmaps;

/// Changes that are made one after the other, and undone unless they are [committed](Self::commit).
#[derive(Debug)]
pub struct Transaction<'a> {
    disks: Vec<Locked<'a>>,
    /// The bitmaps as they were, in the order of the changes.
    undo: Vec<Undo>,
}

/// The bitmaps of a disk.
#[derive(Debug)]
struct Locked<'a> {
    bitmaps: &'a Bitmaps,
    list: MutexGuard<'a, Vec<DirtyBitmap>>,
}

/// How to undo a change of a bitmap.
#[derive(Debug)]
struct Undo {
    disk: usize,
    name: String,
    was: Was,
}

/// A bitmap before a change.
#[derive(Debug)]
enum Was {
    Absent,
    /// It was not about to be removed.
    Free,
    Recording(bool),
    Other(DirtyBitmap),
}

impl<'a> Transaction<'a> {
    /// Begins changes of `disks`, which are then named by their index. Transactions of the same disks have to name them in the
    /// same order, and each disk once.
    pub fn begin(disks: impl IntoIterator<Item = &'a Bitmaps>) -> Self {
        let disks = disks.into_iter().map(|bitmaps| Locked { bitmaps, list: bitmaps.locked() });
        Self { disks: disks.collect(), undo: Vec::new() }
    }

    /// Keeps all changes.
    pub fn commit(mut self) {
        self.undo.clear();
        self.disks.iter_mut().for_each(|disk| disk.list.retain(|bitmap| bitmap.used != Use::Removed));
    }

    /// Adds a bitmap without dirty clusters.
    ///
    /// # Errors
    /// The name or the granularity is not possible, or there are too many bitmaps.
    pub fn add(&mut self, disk: usize, name: &str, granularity: u32, recording: bool) -> Result<(), BitmapError> {
        let Locked { bitmaps, list } = &mut self.disks[disk];
        bitmaps.insert(list, DirtyBitmap::new(name, granularity, bitmaps.bytes, recording)?)?;
        self.undo.push(Undo { disk, name: name.into(), was: Was::Absent });
        Ok(())
    }

    /// Removes a bitmap; its name is in use until the commit.
    ///
    /// # Errors
    /// It does not exist, or is busy.
    pub fn remove(&mut self, disk: usize, name: &str) -> Result<(), BitmapError> {
        self.free(disk, name)?.used = Use::Removed;
        self.undo.push(Undo { disk, name: name.into(), was: Was::Free });
        Ok(())
    }

    /// Makes all clusters clean.
    ///
    /// # Errors
    /// The bitmap does not exist, or is busy.
    pub fn clear(&mut self, disk: usize, name: &str) -> Result<(), BitmapError> {
        let bitmap = self.free(disk, name)?;
        let cleared = bitmap.cleared();
        let was = std::mem::replace(bitmap, cleared);
        self.replaced(disk, was);
        Ok(())
    }

    /// Makes a bitmap busy for a backup of its dirty clusters, which are returned; it then records the guest's changes apart, until
    /// [`Bitmaps::end_backup`].
    ///
    /// # Errors
    /// It does not exist, or is busy.
    pub fn back_up(&mut self, disk: usize, name: &str) -> Result<&DirtyBitmap, BitmapError> {
        let bitmap = self.free(disk, name)?;
        bitmap.used = Use::BackedUp(Box::new(bitmap.cleared()));
        self.undo.push(Undo { disk, name: name.into(), was: Was::Free });
        self.find(disk, name)
    }

    /// Sets whether the guest's writes set bits.
    ///
    /// # Errors
    /// The bitmap does not exist, or is busy.
    pub fn set_recording(&mut self, disk: usize, name: &str, recording: bool) -> Result<(), BitmapError> {
        let was = std::mem::replace(&mut self.free(disk, name)?.recording, recording);
        self.undo.push(Undo { disk, name: name.into(), was: Was::Recording(was) });
        Ok(())
    }

    /// Adds the dirty clusters of other bitmaps, each given as its disk and its name.
    ///
    /// # Errors
    /// A bitmap does not exist or is busy, or the disks have other sizes.
    pub fn merge(&mut self, disk: usize, name: &str, sources: &[(usize, &str)]) -> Result<(), BitmapError> {
        let mut merged = self.find(disk, name)?.clone();
        for (disk, name) in sources {
            let source = self.find(*disk, name)?;
            if source.is_busy() {
                return Err(BitmapError::Busy((*name).into()));
            }
            if source.bytes != merged.bytes {
                return Err(BitmapError::Sizes { target: merged.bytes, source_size: source.bytes });
            }
            merged.add(source);
        }
        let was = std::mem::replace(self.free(disk, name)?, merged);
        self.replaced(disk, was);
        Ok(())
    }

    /// Returns a bitmap to read.
    ///
    /// # Errors
    /// The bitmap does not exist.
    pub fn find(&self, disk: usize, name: &str) -> Result<&DirtyBitmap, BitmapError> {
        let found = self.disks[disk].list.iter().find(|bitmap| bitmap.name() == name);
        found.ok_or_else(|| BitmapError::NotFound(name.into()))
    }

    /// Returns a bitmap that is not busy, to change it.
    fn free(&mut self, disk: usize, name: &str) -> Result<&mut DirtyBitmap, BitmapError> {
        let found = self.disks[disk].list.iter_mut().find(|bitmap| bitmap.name() == name);
        let bitmap = found.ok_or_else(|| BitmapError::NotFound(name.into()))?;
        if bitmap.is_busy() { Err(BitmapError::Busy(name.into())) } else { Ok(bitmap) }
    }

    /// Keeps a bitmap that was replaced, unless an older change of it is undone afterwards anyway. So all of them need no more
    /// memory than the bitmaps themselves.
    fn replaced(&mut self, disk: usize, was: DirtyBitmap) {
        let is_older = |undo: &Undo| matches!(undo.was, Was::Absent | Was::Other(_));
        let mut same = self.undo.iter().filter(|undo| undo.disk == disk && undo.name == was.name());
        if !same.any(is_older) {
            self.undo.push(Undo { disk, name: was.name().into(), was: Was::Other(was) });
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        for Undo { disk, name, was } in self.undo.drain(..).rev() {
            let list = &mut self.disks[disk].list;
            let Some(index) = list.iter().position(|bitmap| bitmap.name() == name) else { continue };
            match was {
                Was::Absent => drop(list.remove(index)),
                Was::Free => list[index].used = Use::None,
                Was::Recording(recording) => list[index].recording = recording,
                Was::Other(bitmap) => list[index] = bitmap,
            }
        }
        self.disks.iter().for_each(|disk| disk.bitmaps.changed(&disk.list));
    }
}

/// Single changes.
impl Bitmaps {
    /// Adds a bitmap without dirty clusters.
    ///
    /// # Errors
    /// The name or the granularity is not possible, or there are too many bitmaps.
    pub fn add(&self, name: &str, granularity: u32, recording: bool) -> Result<(), BitmapError> {
        self.change(|transaction| transaction.add(0, name, granularity, recording))
    }

    /// Removes a bitmap.
    ///
    /// # Errors
    /// It does not exist, or is busy.
    pub fn remove(&self, name: &str) -> Result<(), BitmapError> {
        self.change(|transaction| transaction.remove(0, name))
    }

    /// Makes all clusters clean.
    ///
    /// # Errors
    /// The bitmap does not exist, or is busy.
    pub fn clear(&self, name: &str) -> Result<(), BitmapError> {
        self.change(|transaction| transaction.clear(0, name))
    }

    /// Sets whether the guest's writes set bits.
    ///
    /// # Errors
    /// The bitmap does not exist, or is busy.
    pub fn set_recording(&self, name: &str, recording: bool) -> Result<(), BitmapError> {
        self.change(|transaction| transaction.set_recording(0, name, recording))
    }

    /// Adds the dirty clusters of another bitmap of the disk.
    ///
    /// # Errors
    /// A bitmap does not exist or is busy.
    pub fn merge(&self, name: &str, source: &str) -> Result<(), BitmapError> {
        self.change(|transaction| transaction.merge(0, name, &[(0, source)]))
    }

    fn change(&self, change: impl FnOnce(&mut Transaction<'_>) -> Result<(), BitmapError>) -> Result<(), BitmapError> {
        let mut transaction = Transaction::begin([self]);
        change(&mut transaction)?;
        transaction.commit();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: u64 = 1 << 20;
    const NAMES: [&str; 3] = ["a", "b", "c"];

    /// All bitmaps of a disk, as users see them.
    fn seen(disk: &Bitmaps) -> Vec<(String, u32, u64, bool, bool, Vec<u64>)> {
        disk.each(|bitmap| {
            let (name, words) = (bitmap.name().to_owned(), bitmap.words().to_vec());
            let (recording, busy) = (bitmap.is_recording(), bitmap.is_busy());
            (name, bitmap.granularity(), bitmap.dirty_bytes(), recording, busy, words)
        })
    }

    /// A step: its kind, disk, bitmap, another bitmap.
    type Step = (u8, usize, usize, usize);

    fn step(transaction: &mut Transaction<'_>, (kind, disk, bitmap, other): Step) -> Result<(), BitmapError> {
        let name = NAMES[bitmap];
        match kind {
            0 => transaction.add(disk, name, 512 << other, true),
            1 => transaction.remove(disk, name),
            2 => transaction.clear(disk, name),
            3 => transaction.set_recording(disk, name, other == 0),
            _ => transaction.merge(disk, name, &[(1 - disk, NAMES[other]), (disk, NAMES[0])]),
        }
    }

    proptest! {
        /// A transaction that ends early changes nothing. Carried out to its end, it does the same as its changes alone, except
        /// that a removed bitmap keeps its name to the end.
        #[test]
        fn a_transaction_does_all_or_nothing(
            first in prop::collection::vec((0..5u8, 0..2usize, 0..3usize, 0..3usize), 0..8),
            writes in prop::collection::vec((0..2usize, 0..BYTES), 1..20),
            steps in prop::collection::vec((0..5u8, 0..2usize, 0..3usize, 0..3usize), 1..12),
        ) {
            let machines: Vec<[Bitmaps; 2]> = (0..2).map(|_| [Bitmaps::new(BYTES), Bitmaps::new(BYTES)]).collect();
            for disks in &machines {
                for change in &first {
                    let mut transaction = Transaction::begin(disks);
                    if step(&mut transaction, *change).is_ok() {
                        transaction.commit();
                    }
                }
                writes.iter().for_each(|(disk, offset)| disks[*disk].mark(*offset, 5000));
            }
            let [ours, others] = &machines[..] else { panic!("two machines") };
            let all = |disks: &[Bitmaps; 2]| [seen(&disks[0]), seen(&disks[1])];
            let before = all(ours);

            let mut transaction = Transaction::begin(ours);
            let done = steps.iter().try_for_each(|change| step(&mut transaction, *change));
            drop(transaction);
            prop_assert_eq!(all(ours), before.clone());

            let mut transaction = Transaction::begin(ours);
            prop_assert_eq!(steps.iter().try_for_each(|change| step(&mut transaction, *change)), done.clone());
            if done.is_ok() {
                transaction.commit();
                for change in &steps {
                    let mut transaction = Transaction::begin(others);
                    prop_assert_eq!(step(&mut transaction, *change), Ok(()));
                    transaction.commit();
                }
                prop_assert_eq!(all(ours), all(others));
                // A write is noticed exactly if there is a bitmap.
                ours[0].mark(0, 1);
                let clean = ours[0].each(|bitmap| bitmap.is_recording() && bitmap.words()[0] & 1 == 0);
                prop_assert!(!clean.contains(&true));
            } else {
                drop(transaction);
                prop_assert_eq!(all(ours), before);
            }
        }
    }

    /// The guest writes to the two disks in turn. A write that is in a new bitmap, on either disk, came after all those in the
    /// old ones.
    #[test]
    fn bitmaps_of_two_disks_change_at_one_instant() {
        const WRITES: u64 = 2 * BYTES / 512;
        for _ in 0..50 {
            let disks = [Bitmaps::new(BYTES), Bitmaps::new(BYTES)];
            disks.iter().for_each(|disk| disk.add("old", 512, true).unwrap());
            let write = |number: u64| disks[(number % 2) as usize].mark(number / 2 * 512, 1);
            std::thread::scope(|scope| {
                let (begun, beginning) = std::sync::mpsc::channel();
                scope.spawn(move || {
                    write(0);
                    begun.send(()).unwrap();
                    (1..WRITES).for_each(write);
                });
                beginning.recv().unwrap();
                let mut transaction = Transaction::begin(&disks);
                for disk in 0..2 {
                    transaction.set_recording(disk, "old", false).unwrap();
                    std::thread::yield_now();
                    transaction.add(disk, "new", 512, true).unwrap();
                }
                transaction.commit();
            });
            let writes = |name: &str| -> Vec<u64> {
                let of = |(disk, bitmaps): (u64, &Bitmaps)| {
                    let words = bitmaps.with(name, |bitmap| bitmap.words().to_vec()).unwrap();
                    let is_set = move |cluster: &u64| words[(cluster / 64) as usize] >> (cluster % 64) & 1 == 1;
                    (0..WRITES / 2).filter(is_set).map(move |cluster| 2 * cluster + disk).collect::<Vec<_>>()
                };
                let mut all: Vec<_> = (0..).zip(&disks).flat_map(of).collect();
                all.sort_unstable();
                all
            };
            let old = writes("old");
            assert_eq!([old, writes("new")].concat(), (0..WRITES).collect::<Vec<_>>());
        }
    }
}
