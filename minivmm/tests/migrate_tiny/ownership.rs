//! A destination without the source's own disks or lease is refused while the guest runs on, and a read-only disk that either
//! side has cannot be written.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use minivmm::config::{Disk, RateLimits};
use minivmm::devices::virtio::blk::Image;
use minivmm::vm::{MigrationStatus, Request, RunState};
use vmstate::ownership::{Access, Record, Resource};

use crate::machine::{Machine, TIMEOUT, lab, unix_address, until};

fn image(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, [0; 4096]).unwrap();
    path
}

fn writable(paths: &[&PathBuf]) -> Vec<Disk> {
    paths
        .iter()
        .map(|path| Disk { path: path.to_path_buf(), read_only: false, create: None, limits: RateLimits::default() })
        .collect()
}

fn resource(path: &Path) -> Resource {
    Resource::image(File::options().read(true).write(true).open(path).unwrap(), path, Access::Exclusive)
}

pub(crate) fn generation(path: &Path) -> Option<u64> {
    resource(path).record().unwrap().map(|record: Record| record.generation)
}

/// Migrates from `source` to `destination`, which refuses before the first page and waits for another source; returns the
/// reason. The guest runs on at the source.
fn refused(source: &Machine, destination: Machine, dir: &Path) -> String {
    assert_eq!(
        source.migrate(&unix_address(dir, "incoming")),
        MigrationStatus::Failed,
        "{:?}",
        source.handle.migration()
    );
    let info = source.handle.migration();
    assert_eq!((info.figures.normal_pages, info.figures.zero_pages), (0, 0), "{info:?}");
    let error = || destination.handle.migration().error;
    until(|| error().is_some(), || format!("{:?}", destination.handle.migration()));
    let why = error().unwrap();
    assert!(why.starts_with("a source was turned away: "), "{why}");
    assert_eq!((destination.handle.run_state(), destination.passes()), (RunState::InMigrate, 0));
    destination.quit();
    assert_eq!(source.handle.run_state(), RunState::Running);
    source.await_passes(2);
    why
}

#[test]
fn a_copy_of_the_disk_is_refused_and_the_disk_itself_is_not() {
    let Some(dir) = lab() else { return };
    let (dir, address) = (dir.path(), unix_address(dir.path(), "incoming"));
    let source = Machine::start(dir, None);
    let disk = dir.join("disk");
    assert_eq!(generation(&disk), Some(1), "the boot was recorded");
    let copy = dir.join("copy");
    std::fs::copy(&disk, &copy).unwrap();
    let start = |path: &PathBuf| Machine::start_with(dir, Some(&address), writable(&[path]));

    let why = refused(&source, start(&copy), dir);
    assert!(why.contains("copy) has no ownership record, the source's has"), "{why}");
    // A copy that also has the image's record.
    resource(&copy).write_record(&resource(&disk).record().unwrap().unwrap()).unwrap();
    let why = refused(&source, start(&copy), dir);
    assert!(why.contains("copy) is not the source's file but a copy or another one"), "{why}");

    let destination = start(&disk);
    assert_eq!(source.migrate(&address), MigrationStatus::Completed, "{:?}", source.handle.migration());
    destination.await_passes(2);
    assert_eq!(generation(&disk), Some(2), "the hand-over was recorded, and none of the refused ones");
    destination.quit();
    let refusal = source.handle.ask(Request::Cont).unwrap_err().0;
    assert!(refusal.contains("the guest has run elsewhere since"), "the disk is free, and has moved on: {refusal}");
    source.quit();
}

#[test]
fn swapped_disks_are_named() {
    let Some(dir) = lab() else { return };
    let (dir, address) = (dir.path(), unix_address(dir.path(), "incoming"));
    let (one, two) = (image(dir, "one"), image(dir, "two"));
    let source = Machine::start_with(dir, None, writable(&[&one, &two]));
    source.await_passes(1);
    let swapped = Machine::start_with(dir, Some(&address), writable(&[&two, &one]));
    let why = refused(&source, swapped, dir);
    for (here, path, there) in [(1, &two, 2), (2, &one, 1)] {
        let sentence = format!("disk {here} here ({}) is the source's disk {there}", path.display());
        assert!(why.contains(&sentence), "{why}");
    }
    source.quit();
}

#[test]
fn a_lease_decides_for_a_guest_without_disks() {
    let Some(dir) = lab() else { return };
    let (dir, address) = (dir.path(), unix_address(dir.path(), "incoming"));
    let machine = |incoming, lease: Option<&str>| {
        Machine::start_leased(dir, incoming, Vec::new(), lease.map(|name| dir.join(name)))
    };
    let source = machine(None, Some("lease"));
    source.await_passes(1);
    let why = refused(&source, machine(Some(&address), Some("another")), dir);
    assert!(why.contains("the lease (") && why.contains("another) has no ownership record"), "{why}");
    let why = refused(&source, machine(Some(&address), None), dir);
    assert!(why.contains("the source's guest owns the lease, this machine does not"), "{why}");
    let destination = machine(Some(&address), Some("lease"));
    assert_eq!(source.migrate(&address), MigrationStatus::Completed, "{:?}", source.handle.migration());
    destination.await_passes(2);
    source.quit();
    destination.quit();
}

#[test]
fn nobody_writes_to_a_read_only_disk_before_during_and_after_the_hand_over() {
    let Some(dir) = lab() else { return };
    let (dir, address) = (dir.path(), unix_address(dir.path(), "incoming"));
    let (disk, read_only) = (image(dir, "disk"), image(dir, "read-only"));
    let with = |incoming| {
        let disks = [
            writable(&[&disk]),
            vec![Disk { path: read_only.clone(), read_only: true, create: None, limits: RateLimits::default() }],
        ];
        Machine::start_with(dir, incoming, disks.concat())
    };
    let writer = Image::open(&read_only, false).unwrap();
    let source = with(None);
    let destination = with(Some(&address));
    source.await_passes(1);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attempts = scope.spawn(|| {
            let mut attempts = 0_u64;
            let deadline = Instant::now() + TIMEOUT;
            while !over.load(Ordering::Relaxed) && Instant::now() < deadline {
                assert!(writer.resource().lock().is_err(), "a writer got in");
                attempts += 1;
            }
            attempts
        });
        assert_eq!(source.migrate(&address), MigrationStatus::Completed, "{:?}", source.handle.migration());
        destination.await_passes(1);
        source.quit();
        destination.await_passes(1);
        over.store(true, Ordering::Relaxed);
        assert!(attempts.join().unwrap() > 1000);
    });
    destination.quit();
    until(|| writer.resource().lock().is_ok(), || "the read-only disk is still locked".into());
}

/// A file of procfs cannot be synchronized (EINVAL), like a failing disk.
#[test]
fn a_guest_whose_disk_cannot_be_written_back_stays() {
    let Some(dir) = lab() else { return };
    let (dir, address) = (dir.path(), unix_address(dir.path(), "incoming"));
    let disk = PathBuf::from("/proc/self/oom_score_adj");
    let source = Machine::start_with(dir, None, writable(&[&disk]));
    source.await_passes(1);
    let destination = Machine::start_with(dir, Some(&address), writable(&[&disk]));
    assert_eq!(source.migrate(&address), MigrationStatus::Failed, "{:?}", source.handle.migration());
    let error = source.handle.migration().error.unwrap();
    assert!(error.contains("could not be written back"), "{error}");
    assert_eq!((source.handle.run_state(), destination.passes()), (RunState::Running, 0));
    source.await_passes(2);
    source.quit();
    destination.quit();
}
