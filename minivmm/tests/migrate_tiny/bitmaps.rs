//! Named dirty bitmaps of the guest's disk migrate with the guest, between two minivmms (here) and through a QEMU
//! (`bitmaps/with_qemu.rs`). The guest rewrites the first sector of the disk in each pass, and nothing else.

mod with_qemu;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use minivmm::config::{Address, Disk, RateLimits};
use minivmm::devices::virtio::blk::Bitmaps;
use minivmm::migration::bitmaps::{BitmapAlias, BitmapMapping, NodeAlias};
use minivmm::vm::{DiskCopies, MigrationStatus, Request, RunState, Terms};
use ring::digest::{SHA256, digest};

use crate::machine::{Machine, TIMEOUT, lab, unix_address, until};
use crate::proxy::{Proxy, Word};

/// Bytes of the guest's disk.
const BYTES: u64 = 40 << 20;

fn disk(path: &Path) -> Disk {
    Disk { path: path.into(), read_only: false, create: None, limits: RateLimits::default() }
}

fn bitmaps(machine: &Machine) -> Arc<Bitmaps> {
    Arc::clone(&machine.handle.inventory().disks[0].bitmaps)
}

/// A bitmap: its name, dirty bytes, granularity, whether it records, whether it is busy, and the SHA-256 of its bits.
type Seen = (String, u64, u64, bool, bool, String);

fn seen(bitmaps: &Bitmaps) -> Vec<Seen> {
    let mut all = bitmaps.each(|bitmap| {
        let bytes: Vec<u8> = bitmap.words().iter().flat_map(|word| word.to_le_bytes()).collect();
        let hash = digest(&SHA256, &bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let (name, granularity) = (bitmap.name().to_owned(), bitmap.granularity().into());
        (name, bitmap.dirty_bytes(), granularity, bitmap.is_recording(), bitmap.is_busy(), hash)
    });
    all.sort();
    all
}

/// A machine whose guest writes to its disk, with three bitmaps.
struct Ground {
    dir: tempfile::TempDir,
    source: Machine,
    disk: PathBuf,
    address: Address,
}

impl Ground {
    fn new() -> Option<Self> {
        let dir = lab()?;
        let path = dir.path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(BYTES).unwrap();
        let source = Machine::start_writing(dir.path(), None, disk(&path), None);
        source.await_passes(1);
        let bitmaps = bitmaps(&source);
        bitmaps.add("fine", 512, true).unwrap();
        bitmaps.add("coarse", 1 << 20, true).unwrap();
        // As if the guest had written there.
        [(4096, 5 << 20), (20 << 20, 1), (BYTES - 1, 1)]
            .into_iter()
            .for_each(|(offset, len)| bitmaps.mark(offset, len));
        // So the guest's own write is in them, and its further writes change nothing.
        source.await_passes(2);
        bitmaps.add("off", 65536, false).unwrap();
        bitmaps.merge("off", "fine").unwrap();
        source.handle.set_sends_dirty_bitmaps(true);
        let address = unix_address(dir.path(), "incoming");
        Some(Self { dir, source, disk: path, address })
    }

    fn destination(&self) -> Machine {
        Machine::start_writing(self.dir.path(), Some(&self.address), disk(&self.disk), None)
    }

    /// Checks that the source still has the bitmaps, that users can change them, and that the guest's writes are recorded.
    fn assert_stayed(&self) {
        assert_eq!(self.source.handle.run_state(), RunState::Running);
        let bitmaps = bitmaps(&self.source);
        let off = seen(&bitmaps).into_iter().find(|bitmap| bitmap.0 == "off").unwrap();
        bitmaps.clear("fine").unwrap();
        self.source.await_passes(2);
        bitmaps.set_recording("fine", false).unwrap();
        let all = seen(&bitmaps);
        assert_eq!((all[1].0.as_str(), all[1].1), ("fine", 512));
        assert_eq!(all[2], off);
    }
}

/// The guest's writes before and after the migration are in the bitmaps that record, and no others.
fn check(before: &[Seen], bitmaps: &Bitmaps, passes: impl FnOnce()) {
    assert_eq!(seen(bitmaps), before);
    bitmaps.clear("fine").unwrap();
    passes();
    let now = seen(bitmaps);
    assert_eq!(now[0], before[0]);
    assert_eq!((now[1].0.as_str(), now[1].1, now[1].3), ("fine", 512, true), "the first sector");
    assert_eq!(now[2], before[2]);
}

#[test]
fn bitmaps_go_with_the_guest_and_go_on_recording() {
    let Some(ground) = Ground::new() else { return };
    let destination = ground.destination();
    assert_eq!(ground.source.migrate(&ground.address), MigrationStatus::Completed);
    // All places that the guest writes were dirty before.
    let before = seen(&bitmaps(&ground.source));
    let count = |name: &str| before.iter().find(|bitmap| bitmap.0 == name).unwrap().1;
    assert_eq!((count("fine"), count("coarse")), ((5 << 20) + 3 * 512, 8 << 20));
    check(&before, &bitmaps(&destination), || destination.await_passes(2));
    destination.quit();
    ground.source.quit();
}

#[test]
fn bitmaps_go_through_a_file_and_stay_with_a_guest_that_is_taken_back() {
    let Some(ground) = Ground::new() else { return };
    let file = |name: &str| Address::File { path: ground.dir.path().join(name), offset: 0 };
    assert_eq!(ground.source.migrate(&file("first")), MigrationStatus::Completed);
    ground.source.handle.ask(Request::Cont).unwrap();
    ground.assert_stayed();
    bitmaps(&ground.source).set_recording("fine", true).unwrap();
    assert_eq!(ground.source.migrate(&file("second")), MigrationStatus::Completed);
    let restored = Machine::start_writing(ground.dir.path(), Some(&file("second")), disk(&ground.disk), None);
    restored.await_passes(1);
    check(&seen(&bitmaps(&ground.source)), &bitmaps(&restored), || restored.await_passes(2));
    restored.quit();
    ground.source.quit();
}

/// The steps of the page on devices, before and after a migration. Oracle: the image.
#[test]
fn an_incremental_backup_goes_on_after_a_migration() {
    let Some(ground) = Ground::new() else { return };
    let backup = ground.dir.path().join("backup");
    let image = || std::fs::read(&ground.disk).unwrap();
    // The full backup.
    ground.source.handle.ask(Request::Stop).unwrap();
    std::fs::copy(&ground.disk, &backup).unwrap();
    bitmaps(&ground.source).add("backup", 512, true).unwrap();
    ground.source.handle.ask(Request::Cont).unwrap();
    ground.source.await_passes(2);
    let destination = ground.destination();
    let increment = |machine: &Machine| {
        machine.await_passes(2);
        machine.handle.ask(Request::Stop).unwrap();
        let bitmaps = bitmaps(machine);
        let ranges: Vec<_> = bitmaps.with("backup", |bitmap| bitmap.ranges(0).collect()).unwrap();
        let file = std::fs::File::options().write(true).open(&backup).unwrap();
        assert!(image() != std::fs::read(&backup).unwrap(), "the guest has written");
        for range in &ranges {
            let part = &image()[range.start as usize..range.end as usize];
            file.write_all_at(part, range.start).unwrap();
        }
        assert!(image() == std::fs::read(&backup).unwrap());
        bitmaps.clear("backup").unwrap();
        machine.handle.ask(Request::Cont).unwrap();
        ranges.into_iter().map(|range| (range.start, range.end)).collect::<Vec<_>>()
    };
    assert_eq!(increment(&ground.source), [(0, 512)]);
    assert_eq!(ground.source.migrate(&ground.address), MigrationStatus::Completed);
    assert_eq!(increment(&destination), [(0, 512)]);
    destination.quit();
    ground.source.quit();
}

/// The copier of the disk's content writes to all of the destination's image, which is not the guest's doing.
#[test]
fn bitmaps_go_with_a_copied_disk() {
    let Some(ground) = Ground::new() else { return };
    let copy = Disk { create: Some(BYTES), ..disk(&ground.dir.path().join("copy")) };
    let destination = Machine::start_writing(ground.dir.path(), Some(&ground.address), copy, None);
    let terms = Terms { copies: DiskCopies::All, ..Terms::default() };
    ground.source.handle.ask(Request::Migrate(ground.address.clone(), terms)).unwrap();
    assert_eq!(ground.source.await_end(), MigrationStatus::Completed, "{:?}", ground.source.handle.migration());
    destination.await_passes(1);
    check(&seen(&bitmaps(&ground.source)), &bitmaps(&destination), || destination.await_passes(2));
    destination.quit();
    ground.source.quit();
}

#[test]
fn bitmaps_stay_without_the_capability() {
    let Some(ground) = Ground::new() else { return };
    ground.source.handle.set_sends_dirty_bitmaps(false);
    let destination = ground.destination();
    assert_eq!(ground.source.migrate(&ground.address), MigrationStatus::Completed);
    destination.await_passes(1);
    assert!(seen(&bitmaps(&destination)).is_empty());
    destination.quit();
    ground.source.quit();
}

#[test]
fn bitmaps_go_in_post_copy() {
    let Some(ground) = Ground::new() else { return };
    let destination = ground.destination();
    let parameters = minivmm::vm::ParameterChange::default().with("postcopy-ram", true);
    ground.source.handle.ask(Request::MigrateSetParameters(parameters)).unwrap();
    ground.source.limit(Duration::from_millis(1), 4 << 20);
    ground.source.handle.ask(Request::Migrate(ground.address.clone(), Terms::default())).unwrap();
    ground.source.handle.ask(Request::MigrateStartPostcopy).unwrap();
    assert_eq!(ground.source.await_end(), MigrationStatus::Completed);
    check(&seen(&bitmaps(&ground.source)), &bitmaps(&destination), || destination.await_passes(2));
    destination.quit();
    ground.source.quit();
}

#[test]
fn bitmaps_stay_with_a_guest_whose_migration_is_cancelled() {
    let Some(ground) = Ground::new() else { return };
    let destination = ground.destination();
    ground.source.limit(Duration::from_millis(1), 4 << 20);
    ground.source.handle.ask(Request::Migrate(ground.address.clone(), Terms::default())).unwrap();
    let busy = || seen(&bitmaps(&ground.source)).iter().all(|bitmap| bitmap.4);
    until(busy, || format!("{:?}", ground.source.handle.migration()));
    until(|| !seen(&bitmaps(&destination)).is_empty(), || format!("{:?}", ground.source.handle.migration()));
    ground.source.handle.ask(Request::MigrateCancel).unwrap();
    ground.assert_stayed();
    destination.end();
    // A second migration of the same bitmaps.
    ground.source.limit(TIMEOUT, 0);
    let destination = ground.destination();
    assert_eq!(ground.source.migrate(&ground.address), MigrationStatus::Completed);
    assert_eq!(seen(&bitmaps(&destination)), seen(&bitmaps(&ground.source)));
    destination.quit();
    ground.source.quit();
}

#[test]
fn bitmaps_stay_with_a_guest_whose_destination_is_lost_once_it_has_loaded_everything() {
    let Some(ground) = Ground::new() else { return };
    let destination = ground.destination();
    let proxy = Proxy::holding(Word::Ready, ground.dir.path(), &ground.address);
    ground.source.handle.ask(Request::Migrate(proxy.address.clone(), Terms::default())).unwrap();
    until(|| proxy.holds(), || format!("{:?}", ground.source.handle.migration()));
    assert!(seen(&bitmaps(&destination)).iter().all(|bitmap| bitmap.4));
    proxy.cut();
    assert_eq!(ground.source.await_end(), MigrationStatus::Failed);
    ground.assert_stayed();
    destination.end();
    ground.source.quit();
}

/// Maps bitmaps of the only disk to their aliases.
fn set_mapping(machine: &Machine, alias: &str, bitmaps: &[(&str, &str)]) {
    let bitmap =
        |&(name, alias): &(&str, &str)| BitmapAlias { name: name.into(), alias: alias.into(), persistent: None };
    let node = NodeAlias { node: "virtio0".into(), alias: alias.into(), bitmaps: bitmaps.iter().map(bitmap).collect() };
    machine.handle.set_bitmap_mapping(BitmapMapping::new(vec![node]).unwrap());
}

/// The bitmaps of a mapping, with the names that it gives them.
fn renamed(all: &[Seen], names: &[(&str, &str)]) -> Vec<Seen> {
    let rename = |(old, new): &(&str, &str)| {
        let mut bitmap = all.iter().find(|bitmap| bitmap.0 == *old).unwrap().clone();
        bitmap.0 = (*new).into();
        bitmap
    };
    let mut renamed: Vec<_> = names.iter().map(rename).collect();
    renamed.sort();
    renamed
}

#[test]
fn mapped_bitmaps_arrive_under_the_names_of_the_destination() {
    let Some(ground) = Ground::new() else { return };
    let destination = ground.destination();
    set_mapping(&ground.source, "disk", &[("fine", "1"), ("coarse", "2")]);
    set_mapping(&destination, "disk", &[("coarse", "1"), ("rough", "2"), ("no-such", "3")]);
    assert_eq!(ground.source.migrate(&ground.address), MigrationStatus::Completed);
    destination.await_passes(1);
    let sent = seen(&bitmaps(&ground.source));
    assert_eq!(seen(&bitmaps(&destination)), renamed(&sent, &[("fine", "coarse"), ("coarse", "rough")]));
    destination.quit();
    ground.source.quit();
}

#[test]
fn a_bitmap_that_the_destination_does_not_map_keeps_the_guest_at_the_source() {
    let Some(ground) = Ground::new() else { return };
    let destination = ground.destination();
    set_mapping(&destination, "virtio0", &[("fine", "fine")]);
    assert_eq!(ground.source.migrate(&ground.address), MigrationStatus::Failed);
    let why = format!("{:?}", ground.source.handle.migration());
    assert!(why.contains("block-bitmap-mapping maps no bitmap here"), "{why}");
    ground.assert_stayed();
    set_mapping(&destination, "virtio0", &[("fine", "fine"), ("off", "off"), ("coarse", "coarse")]);
    bitmaps(&ground.source).set_recording("fine", true).unwrap();
    assert_eq!(ground.source.migrate(&ground.address), MigrationStatus::Completed);
    destination.await_passes(1);
    check(&seen(&bitmaps(&ground.source)), &bitmaps(&destination), || destination.await_passes(2));
    destination.quit();
    ground.source.quit();
}
