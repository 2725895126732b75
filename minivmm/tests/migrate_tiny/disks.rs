//! A guest whose disk is not shared migrates with the disk's content, or stays with all of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use minivmm::config::{Address, Disk, ListenAt, RateLimits};
use minivmm::devices::virtio::blk::{Image, Mark};
use minivmm::vm::{DiskCopies, MigrationStatus, ParameterChange, Request, RunState, Terms};
use vmstate_lab::tmpfs::Tmpfs;
use vmstate_lab::{skip, tiny};

use crate::machine::{Machine, PAGES, lab, unix_address, until};
use crate::ownership::generation;
use crate::proxy::{Proxy, Word};

/// Bytes of the guest's disk, no whole number of granules.
pub(crate) const BYTES: u64 = (6 << 20) + 0x1200;
/// Bytes of a piece of data on the disk.
pub(crate) const PIECE: u64 = 0x3_4000;

pub(crate) fn disk(path: &Path, create: Option<u64>) -> Disk {
    Disk { path: path.into(), read_only: false, create, limits: RateLimits::default() }
}

/// Offsets of the pieces of data that the guest does not touch. It rewrites the first sector.
fn pieces() -> impl Iterator<Item = u64> {
    (0..4).map(|piece| 0x1_0000 + piece * 0x15_0000)
}

fn content(at: u64) -> Vec<u8> {
    (0..PIECE).map(|byte| (byte.wrapping_mul(0x9e37_79b9) >> 11) as u8 ^ (at >> 16) as u8 | 1).collect()
}

/// Makes the image of a guest that has not booted yet.
pub(crate) fn original(path: PathBuf) -> PathBuf {
    let file = File::create(&path).unwrap();
    file.set_len(BYTES).unwrap();
    pieces().for_each(|at| file.write_all_at(&content(at), at).unwrap());
    path
}

/// Returns the pass that the guest has written to the first sector.
pub(crate) fn pass(path: &Path) -> u64 {
    let mut found = [0; 8];
    File::open(path).unwrap().read_exact_at(&mut found, 0).unwrap();
    let found = u64::from_le_bytes(found);
    (0..1 << 20).find(|pass| tiny::expected_on_disk(*pass) == found).expect("the guest has written something else")
}

/// The image has the content that the guest did not touch, and uses no more space than the data.
pub(crate) fn assert_copied(path: &Path) {
    let found = std::fs::read(path).unwrap();
    let mut expected = vec![0; BYTES as usize];
    pieces().for_each(|at| expected[at as usize..(at + PIECE) as usize].copy_from_slice(&content(at)));
    // The sector that the guest writes.
    expected[..512].copy_from_slice(&found[..512]);
    assert!(found == expected, "the content differs");
    let (most, blocks) = (4 * PIECE + 0x1_0000, path.metadata().unwrap().blocks() * 512);
    assert!(blocks <= most, "{blocks:#x} bytes are in use, for {most:#x} of data");
}

pub(crate) fn marks(path: &Path) -> Vec<Mark> {
    let file = File::open(path).unwrap();
    let has = |mark: &Mark| rustix::fs::fgetxattr(&file, mark.attribute(), &mut [0; 8][..]).is_ok();
    Mark::ALL.into_iter().filter(has).collect()
}

/// Returns why no machine boots from the image.
fn refusal(path: &Path) -> String {
    minivmm::error::chain(&Image::open(path, false).unwrap_err())
}

fn copy() -> Terms {
    Terms { copies: DiskCopies::All, ..Terms::default() }
}

/// A guest in `source` with a disk of its own, and the path of a destination's image.
struct Ground {
    dir: tempfile::TempDir,
    source: Machine,
    original: PathBuf,
    copy: PathBuf,
    address: Address,
}

impl Ground {
    fn new(lease: bool) -> Option<Self> {
        let dir = lab()?;
        let original = original(dir.path().join("original"));
        let lease = lease.then(|| dir.path().join("lease"));
        let source = Machine::start_writing(dir.path(), None, disk(&original, None), lease);
        source.await_passes(1);
        let (copy, address) = (dir.path().join("copy"), unix_address(dir.path(), "incoming"));
        Some(Self { dir, source, original, copy, address })
    }

    fn destination(&self, lease: bool) -> Machine {
        let lease = lease.then(|| self.dir.path().join("lease"));
        Machine::start_writing(self.dir.path(), Some(&self.address), disk(&self.copy, Some(BYTES)), lease)
    }

    fn begin(&self, to: &Address) {
        self.source.handle.ask(Request::Migrate(to.clone(), copy())).unwrap();
    }

    fn migrate(&self) -> MigrationStatus {
        self.begin(&self.address);
        self.source.await_end()
    }

    /// The guest runs on at the source, and its image has no mark.
    fn assert_stayed(&self) {
        assert_eq!(self.source.handle.run_state(), RunState::Running);
        self.source.await_passes(2);
        assert_eq!(marks(&self.original), []);
    }

    fn arrives(self) {
        let destination = self.destination(false);
        assert_eq!(self.migrate(), MigrationStatus::Completed, "{:?}", self.source.handle.migration());
        destination.await_passes(3);
        destination.quit();
        self.source.quit();
        assert_copied(&self.copy);
    }
}

#[test]
fn a_guest_goes_on_with_a_copy_of_its_disk() {
    let Some(ground) = Ground::new(false) else { return };
    let destination = ground.destination(false);
    assert_eq!(marks(&ground.copy), [Mark::Incomplete]);
    let left = pass(&ground.original);
    assert_eq!(ground.migrate(), MigrationStatus::Completed, "{:?}", ground.source.handle.migration());
    let figures = ground.source.handle.migration().disk.unwrap();
    assert_eq!((figures.total, figures.remaining), (BYTES, 0));
    // Pieces are whole blocks; of the rest of the disk the guest has written one block, maybe several times.
    let beyond = figures.transferred - 4 * PIECE;
    assert!(beyond > 0 && beyond.is_multiple_of(4096), "{figures:?}");
    assert_eq!(destination.handle.migration().disk, None, "no disk is sent from there");
    destination.await_passes(3);
    // While the source exists, its lock refuses; afterwards the mark does.
    assert!(refusal(&ground.original).contains("user.minivmm.stale: its guest has gone to another host"));
    let refused = ground.source.handle.ask(Request::Cont).unwrap_err().0;
    assert!(refused.contains("nothing can prove"), "{refused}");
    ground.source.quit();
    destination.quit();
    assert_copied(&ground.copy);
    let (gone, arrived) = (pass(&ground.original), pass(&ground.copy));
    assert!(left <= gone && gone + 2 <= arrived, "{left}, {gone}, {arrived}");
    assert_eq!((marks(&ground.original), marks(&ground.copy)), (vec![Mark::Stale], vec![]));
    assert_eq!(generation(&ground.copy), Some(1), "the guest's start on it was recorded");
    // The guest migrates on to a third place: the copy is an ordinary image.
    let again = Machine::start_writing(ground.dir.path(), None, disk(&ground.copy, None), None);
    again.await_line();
    again.quit();
}

/// The disk has arrived completely before the guest runs there, while pages are still missing.
#[test]
fn a_guest_in_post_copy_goes_on_with_a_copy_of_its_disk() {
    if let Err(error) = minivmm::memory::Ram::new(1 << 20).unwrap().check_postcopy() {
        return skip::skip(error);
    }
    let Some(ground) = Ground::new(false) else { return };
    let change = ParameterChange::default().with("postcopy-ram", true).with("downtime-limit", Duration::ZERO);
    ground.source.handle.ask(Request::MigrateSetParameters(change)).unwrap();
    let destination = ground.destination(false);
    ground.begin(&ground.address);
    ground.source.handle.ask(Request::MigrateStartPostcopy).unwrap();
    assert_eq!(ground.source.await_end(), MigrationStatus::Completed, "{:?}", ground.source.handle.migration());
    destination.await_passes(3);
    assert_eq!((marks(&ground.original), marks(&ground.copy)), (vec![Mark::Stale], vec![]));
    destination.quit();
    ground.source.quit();
    assert_copied(&ground.copy);
}

#[test]
fn sides_that_do_not_agree_on_what_comes_along_are_refused() {
    let Some(ground) = Ground::new(false) else { return };
    let (dir, address) = (ground.dir.path(), &ground.address);
    let shared = dir.join("shared");
    File::create(&shared).unwrap().set_len(BYTES).unwrap();
    let fine = disk(&ground.copy, Some(BYTES));
    for (terms, there, why) in [
        (copy(), disk(&shared, None), "shared was here before: start this machine with --disk FILE,create=6296064"),
        (Terms::default(), fine.clone(), "is expected from the source (create=), which does not send it"),
        (copy(), disk(&ground.copy, Some(BYTES + 512)), "the image here 6296576: give create=6296064"),
    ] {
        let destination = Machine::start_writing(dir, Some(address), there, None);
        ground.source.handle.ask(Request::Migrate(address.clone(), terms)).unwrap();
        assert_eq!(ground.source.await_end(), MigrationStatus::Failed);
        let error = ground.source.handle.migration().error.unwrap();
        assert!(error.contains(why), "{error}");
        assert_eq!((destination.handle.run_state(), destination.passes()), (RunState::InMigrate, 0));
        destination.quit();
        ground.assert_stayed();
    }
    assert!(refusal(&ground.copy).contains("user.minivmm.incomplete"), "{}", refusal(&ground.copy));
    let exists = minivmm::error::chain(&Image::create(&shared, BYTES).unwrap_err());
    assert!(exists.contains("it exists, and create= makes a new file"), "{exists}");
    let file = Address::File { path: dir.join("file"), offset: 0 };
    let refused = ground.source.handle.ask(Request::Migrate(file, copy())).unwrap_err().0;
    assert!(
        refused.contains("disks are copied to another machine, or beside the file of a guest that keeps running"),
        "{refused}"
    );
    // Left-over images of failed attempts are replaced.
    ground.arrives();
}

/// A QEMU answers the handshake with `PONG` and the same number.
#[test]
fn a_qemu_is_refused() {
    let Some(ground) = Ground::new(false) else { return };
    let Address::Unix(path) = &ground.address else { unreachable!() };
    let listener = UnixListener::bind(path).unwrap();
    ground.begin(&ground.address);
    let mut peer = listener.accept().unwrap().0;
    let mut heard = [0; 16];
    peer.read_exact(&mut heard).unwrap();
    peer.write_all(b"\0\x02\0\x04who?").unwrap();
    assert_eq!(ground.source.await_end(), MigrationStatus::Failed);
    let error = ground.source.handle.migration().error.unwrap();
    assert!(error.contains("the destination is a QEMU, which takes no content of a disk"), "{error}");
    ground.assert_stayed();
    ground.source.quit();
}

#[test]
fn a_guest_whose_migration_is_cancelled_while_its_disk_goes_stays_and_goes_later() {
    let Some(ground) = Ground::new(false) else { return };
    let destination = ground.destination(false);
    ground.source.limit(Duration::from_millis(500), 4 << 20);
    ground.begin(&ground.address);
    let has_data = || ground.copy.metadata().unwrap().blocks() > 0x1_0000 / 512;
    until(has_data, || format!("{:?}", ground.source.handle.migration()));
    let info = ground.source.handle.migration();
    let (figures, memory) = (info.disk.unwrap(), info.figures);
    assert!(figures.transferred > 0x1_0000 && figures.remaining < BYTES && figures.total == BYTES, "{info:?}");
    assert!(memory.remaining_bytes <= memory.ram_bytes, "the disk is not counted as memory: {info:?}");
    ground.source.handle.ask(Request::MigrateCancel).unwrap();
    assert_eq!(ground.source.await_end(), MigrationStatus::Cancelled);
    destination.end();
    ground.assert_stayed();
    assert!(refusal(&ground.copy).contains("user.minivmm.incomplete"));
    ground.source.limit(Duration::from_secs(60), 0);
    ground.arrives();
}

/// The wire is cut at each message of the commit, without and with a shared lease: which side has the guest then.
#[test]
fn a_wire_that_is_cut_leaves_one_guest_or_none_and_a_person_decides() {
    let ends = BTreeMap::from([
        ((0, false), MigrationStatus::Failed),
        ((0, true), MigrationStatus::Failed),
        ((1, false), MigrationStatus::Undecided),
        ((1, true), MigrationStatus::Failed),
        ((2, false), MigrationStatus::Undecided),
        ((2, true), MigrationStatus::Unacknowledged),
    ]);
    for ((word, lease), end) in ends {
        let Some(ground) = Ground::new(lease) else { return };
        let destination = ground.destination(lease);
        let proxy = Proxy::holding([Word::Ready, Word::End, Word::TakesOver][word], ground.dir.path(), &ground.address);
        ground.begin(&proxy.address);
        until(|| proxy.holds(), || format!("{:?}", ground.source.handle.migration()));
        proxy.cut();
        let status = ground.source.await_end();
        let info = ground.source.handle.migration();
        assert_eq!(status, end, "word {word}, lease {lease}: {info:?}");
        if status == MigrationStatus::Failed {
            ground.assert_stayed();
        } else {
            assert_eq!(ground.source.handle.run_state(), RunState::PostMigrate);
            assert_eq!(marks(&ground.original), [Mark::Stale]);
            assert!(ground.source.handle.ask(Request::Cont).is_err());
        }
        if word == 2 {
            // The destination had confirmed that it takes over.
            destination.await_passes(3);
            assert_eq!(marks(&ground.copy), []);
            destination.quit();
        } else {
            destination.end();
            assert_eq!(marks(&ground.copy), [Mark::Incomplete]);
        }
        if status == MigrationStatus::Undecided {
            // A person has checked that no guest runs there any more.
            ground.source.handle.ask(Request::ContUnproved).unwrap();
            ground.assert_stayed();
        }
        ground.source.quit();
    }
}

#[test]
fn a_full_file_system_at_the_destination_leaves_the_guest_at_the_source() {
    let Some(mut ground) = Ground::new(false) else { return };
    let small = match Tmpfs::mount(&ground.dir.path().join("small"), 2 << 20) {
        Ok(small) => small,
        Err(error) => return skip::skip(format_args!("a small file system cannot be mounted: {error}")),
    };
    ground.copy = small.path().join("copy");
    let fill = |bytes: usize| std::fs::write(small.path().join("other"), vec![7; bytes]).unwrap();
    // The lack of space is found at the beginning.
    fill(3 << 19);
    if let Err(error) = Image::create(&ground.copy, BYTES) {
        return skip::skip(minivmm::error::chain(&error));
    }
    let destination = ground.destination(false);
    assert_eq!(ground.migrate(), MigrationStatus::Failed);
    let error = ground.source.handle.migration().error.unwrap();
    assert!(error.contains("its file system has room for") && error.contains("make room there"), "{error}");
    ground.assert_stayed();
    // Another process fills the file system while the content arrives.
    fill(0);
    ground.source.limit(Duration::from_millis(500), 4 << 20);
    ground.begin(&ground.address);
    let has_data = || ground.copy.metadata().unwrap().blocks() > 0x1_0000 / 512;
    until(has_data, || format!("{:?}", ground.source.handle.migration()));
    let mut other = File::create(small.path().join("other")).unwrap();
    while other.write_all(&[7; 4096]).is_ok() {}
    assert_eq!(ground.source.await_end(), MigrationStatus::Failed);
    let error = ground.source.handle.migration().error.unwrap();
    assert!(error.contains("could not be written: No space left on device"), "{error}");
    destination.end();
    ground.assert_stayed();
    ground.source.quit();
}

/// A guest with two disks, of which it writes the first one; the destination creates images for some of them and shares the others.
pub(crate) struct TwoDisks {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) source: Machine,
    pub(crate) originals: [PathBuf; 2],
    address: Address,
}

impl TwoDisks {
    pub(crate) fn new() -> Option<Self> {
        let dir = lab()?;
        let originals = ["first", "second"].map(|name| original(dir.path().join(name)));
        let source = Self::start(dir.path(), None, originals.each_ref().map(|path| disk(path, None)));
        source.await_passes(1);
        let address = unix_address(dir.path(), "incoming");
        Some(Self { dir, source, originals, address })
    }

    pub(crate) fn start(dir: &Path, incoming: Option<&Address>, disks: [Disk; 2]) -> Machine {
        Machine::start_config(dir, &tiny::bzimage(), |config| {
            config.incoming = incoming.cloned().map(ListenAt::Address);
            (config.append, config.disks) = (tiny::command_line_with_disk(PAGES, 0x800), disks.into());
        })
    }

    fn copy(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("copy{index}"))
    }

    /// Starts the destination, which creates images for these disks.
    fn destination(&self, created: &[usize]) -> Machine {
        let mut disks = self.originals.each_ref().map(|path| disk(path, None));
        created.iter().for_each(|index| disks[*index] = disk(&self.copy(*index), Some(BYTES)));
        Self::start(self.dir.path(), Some(&self.address), disks)
    }

    fn migrate(&self, to: &Address, names: &[&str]) {
        let copies = DiskCopies::Named(names.iter().map(|name| (*name).into()).collect());
        self.source.handle.ask(Request::Migrate(to.clone(), Terms { copies, ..Terms::default() })).unwrap();
    }
}

#[test]
fn one_of_two_disks_is_copied_and_the_other_one_is_shared() {
    for copied in [0, 1] {
        let Some(ground) = TwoDisks::new() else { return };
        let second = std::fs::read(&ground.originals[1]).unwrap();
        let destination = ground.destination(&[copied]);
        ground.migrate(&ground.address, &[&format!("virtio{copied}")]);
        assert_eq!(ground.source.await_end(), MigrationStatus::Completed, "{:?}", ground.source.handle.migration());
        assert_eq!(ground.source.handle.migration().disk.unwrap().total, BYTES, "one disk is sent");
        let left = pass(&ground.originals[0]);
        destination.await_passes(3);
        let mut images = ground.originals.clone();
        images[copied] = ground.copy(copied);
        ground.source.quit();
        destination.quit();
        assert!(pass(&images[0]) >= left + 2);
        assert_copied(&images[copied]);
        assert!(std::fs::read(&images[1]).unwrap() == second, "the disk that the guest does not write");
        let marks = |path: &PathBuf| marks(path);
        assert_eq!(ground.originals.each_ref().map(marks)[copied], [Mark::Stale]);
        assert_eq!(images.each_ref().map(marks), [[]; 2]);
        // Both images record that the guest has gone on, the new one for the first time.
        assert_eq!((generation(&images[copied]), generation(&images[1 - copied])), (Some(1), Some(2)));
    }
}

#[test]
fn sides_that_do_not_agree_on_the_copied_disks_are_refused_with_the_disks_name() {
    let Some(ground) = TwoDisks::new() else { return };
    let copies = DiskCopies::Named(vec!["virtio1".into(), "virtio2".into()]);
    let unknown = Request::Migrate(ground.address.clone(), Terms { copies, ..Terms::default() });
    let refused = ground.source.handle.ask(unknown).unwrap_err().0;
    assert_eq!(refused, "disk 'virtio2' cannot be copied: the writable disks are virtio0, virtio1");
    for (names, created, why) in [
        (&["virtio0"][..], &[0, 1][..], "the content of disk 'virtio1'"),
        (&[], &[1], "minivmm migrate --copy-disk or --copy-disk=virtio1 there"),
        (&["virtio0", "virtio1"], &[1], "minivmm/disk/0: the source sends the content of this disk, but"),
        (&["virtio1"], &[0], "minivmm/disk/1: the source sends the content of this disk, but"),
    ] {
        let destination = ground.destination(created);
        ground.migrate(&ground.address, names);
        assert_eq!(ground.source.await_end(), MigrationStatus::Failed, "{names:?}");
        let error = ground.source.handle.migration().error.unwrap();
        assert!(error.contains(why), "{names:?}: {error}");
        assert_eq!(destination.passes(), 0);
        destination.quit();
        assert_eq!(ground.source.handle.run_state(), RunState::Running);
        ground.source.await_passes(2);
        assert!(ground.originals.iter().all(|path| marks(path).is_empty()));
    }
    ground.source.quit();
}

/// The disk that both sides share decides, as a lease would: see the test of a wire that is cut, above.
#[test]
fn a_shared_disk_decides_which_side_has_the_copied_one() {
    for (word, end) in [
        (Word::Ready, MigrationStatus::Failed),
        (Word::End, MigrationStatus::Failed),
        (Word::TakesOver, MigrationStatus::Unacknowledged),
    ] {
        let Some(ground) = TwoDisks::new() else { return };
        let destination = ground.destination(&[1]);
        let proxy = Proxy::holding(word, ground.dir.path(), &ground.address);
        ground.migrate(&proxy.address, &["virtio1"]);
        until(|| proxy.holds(), || format!("{:?}", ground.source.handle.migration()));
        proxy.cut();
        assert_eq!(ground.source.await_end(), end, "{:?}", ground.source.handle.migration());
        let arrives = end == MigrationStatus::Unacknowledged;
        if arrives {
            destination.await_passes(3);
            destination.quit();
        } else {
            ground.source.await_passes(2);
            destination.end();
        }
        assert_eq!(marks(&ground.originals[1]).contains(&Mark::Stale), arrives);
        assert_eq!(marks(&ground.copy(1)).contains(&Mark::Incomplete), !arrives);
        ground.source.quit();
    }
}
