//! Backups against the image as it was when they began, while a guest changes the disk.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;

use super::super::bitmaps::Earlier;
use super::super::disk::{Disk, Erase};
use super::super::transaction::Transaction;
use super::*;

/// No whole number of clusters.
const BYTES: u64 = 40 * CLUSTER + 0x1200;

/// A disk with data in some places, and a directory for its backups.
struct Ground {
    dir: tempfile::TempDir,
    disk: Disk,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("disk")).unwrap();
        file.set_len(BYTES).unwrap();
        [(3, 1), (9, 18), (BYTES / CLUSTER, 0)].into_iter().for_each(|(cluster, more)| {
            let data = vec![0xd1; (more * CLUSTER + 512) as usize];
            file.write_all_at(&data, cluster * CLUSTER).unwrap();
        });
        let image = Image::open(&dir.path().join("disk"), false).unwrap();
        Self { disk: Disk::new(Arc::new(image)), dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("backup")
    }

    /// Makes a backup to the file at [`path`](Self::path), which is made if it is not there.
    fn backup(&self) -> Backup {
        let is_new = !self.path().exists();
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(self.path()).unwrap();
        file.set_len(BYTES).unwrap();
        Backup::new(Image::locked(file, &self.path(), BYTES).unwrap(), is_new).unwrap()
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("disk")).unwrap()
    }

    /// Begins a backup, of the dirty clusters of bitmap `b` or of everything.
    fn begin(&self, backup: Backup, everything: bool) -> Arc<Backup> {
        let backup = Arc::new(backup);
        let mut transaction = Transaction::begin([&**self.disk.image.bitmaps()]);
        let parts = transaction.back_up(0, "b").unwrap();
        backup.set_parts((!everything).then_some(parts));
        self.disk.image.copy_before_write().begin_backup(&backup);
        transaction.commit();
        backup
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.disk.change(offset, data.len() as u64, |image| image.write(data, offset)).unwrap();
    }

    /// A change of the guest: its kind, offset and length.
    fn change(&mut self, (kind, offset, len): Change) {
        let len = len.min(BYTES - offset) / 512 * 512;
        match kind {
            0 => drop(self.disk.erase(Erase::Unmap, offset / 512 * 512, len).unwrap()),
            1 => drop(self.disk.erase(Erase::Zero, offset / 512 * 512, len).unwrap()),
            2 => self.write(offset / 512 * 512, &vec![0; len as usize]),
            fill => self.write(offset / 512 * 512, &vec![fill; len as usize]),
        }
    }
}

type Change = (u8, u64, u64);

fn changes(most: usize) -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec((0..9u8, 0..BYTES, 0..4 * CLUSTER), 0..most)
}

/// Data that a backup uses, in bytes.
fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A full backup, and increments to the same file, some of which are cancelled. Each complete one equals the image as it was
    /// when the backup began; a cancelled one leaves what it lacks to the next one.
    #[test]
    fn each_backup_of_a_chain_is_the_image_at_its_begin(
        granularity in 9..19u32,
        rounds in prop::collection::vec((changes(6), changes(12), 0..4u8, 0..12usize), 1..6),
    ) {
        let mut ground = Ground::new();
        ground.disk.image.bitmaps().add("b", 1 << granularity, true).unwrap();
        let mut has_base = false;
        for (before, during, fate, copied) in rounds {
            before.into_iter().for_each(|change| ground.change(change));
            let everything = !has_base;
            let backup = ground.begin(ground.backup(), everything);
            let model = ground.image();
            for (number, change) in (0..).zip(during) {
                if number % 3 == copied % 3 {
                    backup.step(&ground.disk.image, 2 * CLUSTER);
                }
                ground.change(change);
            }
            let is_complete = fate > 0;
            if is_complete {
                while backup.step(&ground.disk.image, 2 * CLUSTER).is_some() {}
                prop_assert_eq!(backup.finish(), Ok(()));
                let (done, all) = backup.progress();
                prop_assert_eq!(done, all);
            } else {
                for _ in 0..copied / 2 {
                    backup.step(&ground.disk.image, 2 * CLUSTER);
                }
                backup.cancel();
                prop_assert_eq!(backup.step(&ground.disk.image, 2 * CLUSTER), None);
                prop_assert_eq!(backup.finish(), Err(Stop::Cancelled));
            }
            ground.disk.image.copy_before_write().end_backup();
            backup.release();
            let earlier = match fate {
                // QEMU's modes `on-success` and `always` of a backup that was cancelled.
                0 if copied % 2 == 0 => Earlier::Kept,
                0 => Earlier::CopiedExcept(backup.pending()),
                1 => Earlier::Kept,
                _ => Earlier::Copied,
            };
            ground.disk.image.bitmaps().end_backup("b", &earlier);
            if is_complete {
                prop_assert!(std::fs::read(ground.path()).unwrap() == model, "the backup is not the image");
                has_base = true;
            } else if everything {
                // Without a base the next backup is a full one again.
                std::fs::remove_file(ground.path()).unwrap();
            }
        }
    }
}

/// The guest writes all the time. The backup is the image after one of the writes that were under way when it began.
#[test]
fn a_backup_is_the_image_between_two_writes_of_a_running_guest() {
    for round in 1..9 {
        let ground = Ground::new();
        ground.disk.image.bitmaps().add("b", 65536, true).unwrap();
        let place = |number: usize| (number as u64 * 7919 * 512) % (BYTES - 70_000) / 512 * 512;
        let data = |number: usize| vec![(number % 251) as u8 + 1; 512 * (1 + number % 130)];
        let first = ground.image();
        let (begun, ended, is_over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let (from, to, finished) = std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in (0..).take_while(|_| !is_over.load(Ordering::SeqCst)) {
                    begun.store(number + 1, Ordering::SeqCst);
                    ground.write(place(number), &data(number));
                    ended.store(number + 1, Ordering::SeqCst);
                }
            });
            while ended.load(Ordering::SeqCst) < 10 * round {
                std::thread::yield_now();
            }
            let made = ground.backup();
            let from = ended.load(Ordering::SeqCst);
            let backup = ground.begin(made, true);
            let to = begun.load(Ordering::SeqCst);
            ground.disk.image.copy_before_write().await_earlier_change();
            while backup.step(&ground.disk.image, 16 * CLUSTER).is_some() {}
            is_over.store(true, Ordering::SeqCst);
            (from, to, backup.finish())
        });
        assert_eq!(finished, Ok(()));
        let found = std::fs::read(ground.path()).unwrap();
        let mut model = first;
        let mut is_like = |number: usize| {
            if number > 0 {
                let (at, data) = (place(number - 1) as usize, data(number - 1));
                model[at..at + data.len()].copy_from_slice(&data);
            }
            number >= from && model == found
        };
        assert!((0..=to).any(&mut is_like), "round {round}: not the image after {from} to {to} writes");
    }
}

/// The copier would read a part of the change only.
#[test]
fn the_copier_waits_for_a_change_that_began_before_the_backup() {
    let ground = Ground::new();
    ground.disk.image.bitmaps().add("b", 65536, true).unwrap();
    let copy_before_write = ground.disk.image.copy_before_write();
    assert!(copy_before_write.begin_change().is_none());
    ground.begin(ground.backup(), true);
    let is_over = AtomicBool::new(false);
    let is_awaited = std::thread::scope(|scope| {
        let copier = scope.spawn(|| {
            copy_before_write.await_earlier_change();
            is_over.load(Ordering::SeqCst)
        });
        // A copier that does not wait gets some time to be wrong.
        std::thread::sleep(Duration::from_millis(20));
        is_over.store(true, Ordering::SeqCst);
        copy_before_write.end_change();
        copier.join().unwrap()
    });
    assert!(is_awaited);
    assert!(copy_before_write.begin_change().is_some(), "a later change needs the backup");
    copy_before_write.await_earlier_change();
}

#[test]
fn holes_and_zeros_use_no_space_in_a_backup() {
    let mut ground = Ground::new();
    ground.disk.image.bitmaps().add("b", 65536, true).unwrap();
    ground.change((2, 30 * CLUSTER, 3 * CLUSTER));
    let copy = |everything| {
        let backup = ground.begin(ground.backup(), everything);
        while backup.step(&ground.disk.image, 2 * CLUSTER).is_some() {}
        assert_eq!(backup.finish(), Ok(()));
        ground.disk.image.copy_before_write().end_backup();
        backup.release();
        ground.disk.image.bitmaps().end_backup("b", &Earlier::Copied);
        assert!(std::fs::read(ground.path()).unwrap() == ground.image());
        allocated(&ground.path())
    };
    // The data of the disk, without the zeros that were written, in blocks.
    assert_eq!(copy(true), (1 + 18) * CLUSTER + 3 * 4096);
    ground.write(9 * CLUSTER, &vec![0; 4 * CLUSTER as usize]);
    assert_eq!(copy(false), (1 + 18 - 4) * CLUSTER + 3 * 4096, "an increment releases what has become zero");
}

#[test]
fn a_change_of_the_piece_that_is_being_copied_waits() {
    let ground = Ground::new();
    ground.disk.image.bitmaps().add("b", 65536, true).unwrap();
    let backup = ground.begin(ground.backup(), true);
    lock(&backup.state).copying = CLUSTER..2 * CLUSTER;
    // Changes of other clusters do not wait.
    [0, 2 * CLUSTER].into_iter().for_each(|offset| ground.write(offset, &[7; 512]));
    let is_over = AtomicBool::new(false);
    let has_waited = std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            ground.write(2 * CLUSTER - 512, &[8; 512]);
            is_over.load(Ordering::SeqCst)
        });
        // A change that does not wait gets some time to be wrong.
        std::thread::sleep(Duration::from_millis(20));
        is_over.store(true, Ordering::SeqCst);
        lock(&backup.state).copying = 0..0;
        backup.changed.notify_all();
        guest.join().unwrap()
    });
    assert!(has_waited);
}

/// The guest writes to the two disks in turn. A write that is in a backup, of either disk, came after none that is missing.
#[test]
fn backups_of_two_disks_begin_at_one_instant() {
    const WRITES: u64 = 2 * 10 * CLUSTER / 512;
    for _ in 0..20 {
        let grounds = [Ground::new(), Ground::new()];
        grounds.iter().for_each(|ground| ground.disk.image.bitmaps().add("b", 65536, true).unwrap());
        let backups = grounds.each_ref().map(|ground| Arc::new(ground.backup()));
        let (ended, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in (0..WRITES).take_while(|_| !is_over.load(Ordering::SeqCst)) {
                    grounds[(number % 2) as usize].write(number / 2 * 512, &[9; 512]);
                    ended.fetch_add(1, Ordering::SeqCst);
                }
            });
            while ended.load(Ordering::SeqCst) < 5 {
                std::thread::yield_now();
            }
            let mut transaction = Transaction::begin(grounds.iter().map(|ground| &**ground.disk.image.bitmaps()));
            for (disk, (ground, backup)) in grounds.iter().zip(&backups).enumerate() {
                transaction.back_up(disk, "b").unwrap();
                backup.set_parts(None);
                ground.disk.image.copy_before_write().begin_backup(backup);
                // The guest goes on if it can.
                std::thread::sleep(Duration::from_millis(1));
            }
            transaction.commit();
            for (ground, backup) in grounds.iter().zip(&backups) {
                ground.disk.image.copy_before_write().await_earlier_change();
                while backup.step(&ground.disk.image, CLUSTER).is_some() {}
            }
            is_over.store(true, Ordering::SeqCst);
        });
        let found = grounds.each_ref().map(|ground| std::fs::read(ground.path()).unwrap());
        let has = |number: &u64| found[(number % 2) as usize][(number / 2 * 512) as usize] == 9;
        let first = (0..WRITES).take_while(has).count();
        assert_eq!((0..WRITES).filter(has).count(), first);
        assert!(first >= 5, "{first}");
    }
}
