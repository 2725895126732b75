//! Who may run a guest: two sets of resources, each with its own open file of the same or of copied files, as in two processes.
//! Tests read records directly from the file, without the library.
#![cfg(feature = "engine")]

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use tempfile::TempDir;
use vmstate::ownership::{ATTRIBUTE, Access, Claim, Mismatch, Ownership, OwnershipError, Resource, Role};

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn image(folder: &TempDir, name: &str, bytes: usize) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, vec![7; bytes]).unwrap();
    path
}

fn open(path: &Path, access: Access) -> Arc<Resource> {
    let file = File::options().read(true).write(access == Access::Exclusive).open(path).unwrap();
    Arc::new(Resource::image(file, path, access))
}

/// A guest's set with these writable disks, newly opened.
fn guest(disks: &[&Path]) -> Ownership {
    let named = (0..).zip(disks).map(|(index, path)| (Role::Disk(index), open(path, Access::Exclusive)));
    Ownership::new(named.collect::<Vec<_>>()).unwrap()
}

fn with_lease(path: &Path) -> Ownership {
    Ownership::new([(Role::Lease, Arc::new(Resource::lease(path).unwrap()))]).unwrap()
}

/// A set whose guest runs.
fn booted(disks: &[&Path]) -> Ownership {
    let set = guest(disks);
    set.take().unwrap();
    set.advance().unwrap();
    set
}

/// The 36 bytes of the record, read from the file system.
fn attribute(path: &Path) -> Vec<u8> {
    let mut bytes = [0; 256];
    let len = fgetxattr(File::open(path).unwrap(), ATTRIBUTE, &mut bytes[..]).unwrap();
    bytes[..len].to_vec()
}

fn generation(path: &Path) -> u64 {
    u64::from_be_bytes(attribute(path)[28..].try_into().unwrap())
}

/// Copies a file with its attributes. Not by `cp`: a new child process briefly shares all open files, and so holds locks that
/// other tests release.
fn copy(from: &Path, to: &str) -> PathBuf {
    let to = from.with_file_name(to);
    std::fs::copy(from, &to).unwrap();
    fsetxattr(File::options().write(true).open(&to).unwrap(), ATTRIBUTE, &attribute(from), XattrFlags::empty())
        .unwrap();
    to
}

fn only(wrong: Result<(), Vec<Mismatch>>) -> Mismatch {
    let mut wrong = wrong.unwrap_err();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    wrong.remove(0)
}

#[test]
fn a_guest_moves_to_the_destination_and_the_source_finds_out() {
    let folder = folder();
    let disk = image(&folder, "disk", 4096);
    let source = booted(&[&disk]);
    assert_eq!(generation(&disk), 1);
    let tickets = source.begin().unwrap();
    assert_eq!((tickets.len(), tickets[0].role, tickets[0].bytes), (1, Role::Disk(0), 4096));
    let destination = guest(&[&disk]);
    destination.prove(Some(&tickets)).unwrap();
    assert_eq!(destination.claim().unwrap(), Claim::Held, "the source has not let go");
    source.release().unwrap();
    assert_eq!(destination.claim().unwrap(), Claim::Won);
    assert_eq!(source.claim().unwrap(), Claim::Held);
    destination.advance().unwrap();
    assert_eq!(generation(&disk), 2);
    assert!(destination.is_provable() && source.is_provable());
    drop(destination);
    assert_eq!(source.claim().unwrap(), Claim::Moved, "the guest ran there, whoever has it now");
    assert!(!open(&disk, Access::Exclusive).held_by_another().unwrap(), "a stale side keeps no lock");
}

#[test]
fn a_destination_that_never_ran_leaves_the_guest_to_the_source_and_comes_too_late_then() {
    let folder = folder();
    let disk = image(&folder, "disk", 4096);
    let source = booted(&[&disk]);
    let destination = guest(&[&disk]);
    destination.prove(Some(&source.begin().unwrap())).unwrap();
    source.release().unwrap();
    // Here the destination was killed after it took the lock, and another one has the same knowledge.
    assert_eq!(source.claim().unwrap(), Claim::Won);
    source.advance().unwrap();
    assert_eq!(source.claim().unwrap(), Claim::Won, "who holds the locks may ask again");
    drop(source);
    assert_eq!(destination.claim().unwrap(), Claim::Moved, "the source ran on and ended");
}

#[test]
fn a_boot_in_between_makes_both_sides_stale() {
    let folder = folder();
    let disk = image(&folder, "disk", 4096);
    let source = booted(&[&disk]);
    let destination = guest(&[&disk]);
    destination.prove(Some(&source.begin().unwrap())).unwrap();
    source.release().unwrap();
    let third = booted(&[&disk]);
    assert_eq!((source.claim().unwrap(), destination.claim().unwrap()), (Claim::Held, Claim::Held));
    drop(third);
    assert_eq!((source.claim().unwrap(), destination.claim().unwrap()), (Claim::Moved, Claim::Moved));
}

/// A reader of the image or a backup program delays the guest, which is not lost.
#[test]
fn a_lock_without_a_start_only_delays() {
    let folder = folder();
    let disk = image(&folder, "disk", 4096);
    let source = booted(&[&disk]);
    source.begin().unwrap();
    source.release().unwrap();
    let reader = open(&disk, Access::Shared);
    reader.lock().unwrap();
    assert_eq!(source.claim().unwrap(), Claim::Held);
    drop(reader);
    assert_eq!(source.claim().unwrap(), Claim::Won);
}

#[test]
fn all_locks_are_taken_or_none() {
    let folder = folder();
    let (first, second) = (image(&folder, "first", 512), image(&folder, "second", 512));
    let other = booted(&[&second]);
    let set = guest(&[&first, &second]);
    let error = set.take().unwrap_err();
    assert!(matches!(&error, OwnershipError::InUse { path } if *path == second), "{error}");
    assert_eq!(set.claim().unwrap(), Claim::Held);
    assert!(!open(&first, Access::Exclusive).held_by_another().unwrap());
    drop(other);
    assert_eq!(set.claim().unwrap(), Claim::Won, "nothing is known of earlier guests: the locks decide");
    assert!(open(&first, Access::Exclusive).held_by_another().unwrap());
}

/// The guest runs here: a failure with one disk must not let others take the rest.
#[test]
fn a_migration_that_cannot_begin_keeps_the_locks_that_are_held() {
    let folder = folder();
    let (first, second) = (image(&folder, "first", 512), image(&folder, "second", 512));
    let held = open(&first, Access::Exclusive);
    let set =
        Ownership::new([(Role::Disk(0), held.clone()), (Role::Disk(1), open(&second, Access::Exclusive))]).unwrap();
    held.lock().unwrap();
    let another = open(&second, Access::Exclusive);
    another.lock().unwrap();
    assert!(matches!(set.begin(), Err(OwnershipError::InUse { .. })));
    assert!(matches!(open(&first, Access::Exclusive).lock(), Err(OwnershipError::InUse { .. })));
}

#[test]
fn copies_are_refused() {
    let folder = folder();
    let disk = image(&folder, "disk", 4096);
    let source = booted(&[&disk]);
    let earlier = copy(&disk, "earlier");
    let tickets = source.begin().unwrap();
    let later = copy(&disk, "later");
    let plain = image(&folder, "plain", 4096);
    assert_eq!(attribute(&later), attribute(&disk), "the copy has the record");
    let refused = |path: &Path| only(guest(&[path]).prove(Some(&tickets)));
    assert!(matches!(refused(&earlier), Mismatch::Other { .. }), "made before the token");
    assert!(matches!(refused(&later), Mismatch::NotHeld { .. }), "its lock is free");
    assert!(matches!(refused(&plain), Mismatch::NoRecord { .. }));
    let reader = open(&later, Access::Shared);
    reader.lock().unwrap();
    assert!(matches!(refused(&later), Mismatch::NotHeld { .. }), "a reader's lock is not the source's");
    guest(&[&disk]).prove(Some(&tickets)).unwrap();
}

#[test]
fn everything_that_differs_is_named() {
    let folder = folder();
    let (first, second) = (image(&folder, "first", 4096), image(&folder, "second", 4096));
    let source = booted(&[&first, &second]);
    let tickets = source.begin().unwrap();
    let texts = |disks: &[&Path]| -> Vec<String> {
        guest(disks).prove(Some(&tickets)).unwrap_err().iter().map(ToString::to_string).collect()
    };
    let (one, two) = (first.display(), second.display());
    assert_eq!(
        texts(&[&second, &first]),
        [
            format!("disk 1 here ({two}) is the source's disk 2: give the disks in the same order"),
            format!("disk 2 here ({one}) is the source's disk 1: give the disks in the same order"),
        ]
    );
    let missing = texts(&[&second]);
    assert!(missing[0].starts_with("the source's guest owns disk 2, this machine does not"), "{missing:?}");
    assert!(missing[1].contains("is the source's disk 2"), "{missing:?}");
    let extra = only(guest(&[&first, &second, &image(&folder, "third", 512)]).prove(Some(&tickets)));
    assert!(matches!(extra, Mismatch::Extra { role: Role::Disk(2) }));
    source.advance().unwrap();
    let moved = guest(&[&first, &second]).prove(Some(&tickets)).unwrap_err();
    assert!(moved.iter().all(|wrong| matches!(wrong, Mismatch::MovedOn { .. })) && moved.len() == 2, "{moved:?}");
}

#[test]
fn another_size_is_refused_although_the_record_is_the_same() {
    let folder = folder();
    let disk = image(&folder, "disk", 4096);
    let source = booted(&[&disk]);
    let tickets = source.begin().unwrap();
    File::options().write(true).open(&disk).unwrap().set_len(8192).unwrap();
    let wrong = only(guest(&[&disk]).prove(Some(&tickets)));
    assert!(matches!(wrong, Mismatch::Size { here: 8192, there: 4096, .. }), "{wrong}");
}

#[test]
fn shared_resources_stay_locked_throughout() {
    let folder = folder();
    let (disk, read_only) = (image(&folder, "disk", 512), image(&folder, "read-only", 512));
    let writer = open(&read_only, Access::Exclusive);
    let set = |folder: &TempDir| {
        let reader = open(&folder.path().join("read-only"), Access::Shared);
        let named = [(Role::Disk(0), open(&disk, Access::Exclusive)), (Role::Disk(1), reader.clone())];
        (Ownership::new(named).unwrap(), reader)
    };
    let (source, at_source) = set(&folder);
    source.take().unwrap();
    let (destination, at_destination) = set(&folder);
    let tickets = source.begin().unwrap();
    assert_eq!(tickets.len(), 1, "only what is written moves");
    destination.prove(Some(&tickets)).unwrap();
    source.release().unwrap();
    assert!(writer.lock().is_err(), "both read");
    assert_eq!(destination.claim().unwrap(), Claim::Won);
    drop((source, at_source));
    assert!(writer.lock().is_err(), "the destination reads");
    drop((destination, at_destination));
    writer.lock().unwrap();
    assert!(matches!(
        Ownership::new([(Role::Disk(0), open(&read_only, Access::Shared))]),
        Err(OwnershipError::InUse { .. })
    ));
}

#[test]
fn a_lease_is_a_record_with_a_lock_on_any_file_system() {
    let shared_memory = Path::new("/dev/shm");
    for base in [std::env::temp_dir().as_path(), shared_memory] {
        let folder = tempfile::tempdir_in(base).unwrap();
        let path = folder.path().join("lease");
        let source = with_lease(&path);
        source.take().unwrap();
        source.advance().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(
            (bytes.len(), &bytes[..12], &bytes[28..]),
            (36, &b"VMOWNER\0\0\0\0\x01"[..], &1u64.to_be_bytes()[..])
        );
        let destination = with_lease(&path);
        destination.prove(Some(&source.begin().unwrap())).unwrap();
        assert!(source.is_provable());
        source.release().unwrap();
        assert_eq!(destination.claim().unwrap(), Claim::Won);
        destination.advance().unwrap();
        drop(destination);
        assert_eq!(source.claim().unwrap(), Claim::Moved);
    }
}

#[test]
fn what_is_no_record_is_never_overwritten() {
    let folder = folder();
    let path = image(&folder, "notes", 100);
    assert!(matches!(Resource::lease(&path), Err(OwnershipError::Record { place: "content", .. })));
    assert_eq!(std::fs::read(&path).unwrap(), [7; 100]);
    let disk = image(&folder, "disk", 512);
    let file = File::options().write(true).open(&disk).unwrap();
    for foreign in [&b"somebody else's"[..], &[b'x'; 37], &[b'x'; 200]] {
        fsetxattr(&file, ATTRIBUTE, foreign, XattrFlags::empty()).unwrap();
        let set = guest(&[&disk]);
        set.take().unwrap();
        for error in [set.advance().unwrap_err(), set.begin().unwrap_err()] {
            assert!(matches!(error, OwnershipError::Record { .. }), "{error}");
        }
        assert_eq!(attribute(&disk), foreign);
    }
}

/// A file of procfs has locks and no extended attributes; this one belongs to this process only.
#[test]
fn without_a_place_for_a_record_the_lock_alone_decides() {
    let path = Path::new("/proc/self/oom_score_adj");
    let source = booted(&[path]);
    let tickets = source.begin().unwrap();
    assert_eq!(tickets[0].record, None);
    let destination = guest(&[path]);
    destination.prove(Some(&tickets)).unwrap();
    assert!(!source.is_provable() && !destination.is_provable());
    assert_eq!(destination.claim().unwrap(), Claim::Held);
    source.release().unwrap();
    assert_eq!(destination.claim().unwrap(), Claim::Won);
    assert_eq!(source.claim().unwrap(), Claim::Held);
    destination.advance().unwrap();
    drop(destination);
    assert_eq!(source.claim().unwrap(), Claim::Won, "nothing tells that the guest ran there");
    let unlocked = guest(&[path]);
    source.release().unwrap();
    assert!(
        matches!(only(unlocked.prove(Some(&tickets))), Mismatch::NotHeld { .. }),
        "a free lock is noticed all the same"
    );
}

/// Runs `work` on a thread without capabilities, where file modes apply to root as well.
fn without_capabilities<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let drop_all = || {
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).unwrap();
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            drop_all();
            work()
        });
        thread.join().unwrap()
    })
}

/// xattr(7): access to user attributes depends on the mode of the file, whoever opened it.
#[test]
fn an_image_that_was_received_open_has_a_record_only_if_its_mode_allows() {
    let folder = folder();
    let disk = image(&folder, "disk", 512);
    let set_mode = |mode| std::fs::set_permissions(&disk, Permissions::from_mode(mode)).unwrap();
    let handed = guest(&[&disk]);
    set_mode(0);
    without_capabilities(|| {
        handed.take().unwrap();
        handed.advance().unwrap();
        assert_eq!(handed.begin().unwrap()[0].record, None);
        assert!(!handed.is_provable());
        handed.release().unwrap();
    });
    set_mode(0o600);
    let owner = booted(&[&disk]);
    owner.release().unwrap();
    set_mode(0o400);
    without_capabilities(|| {
        handed.take().unwrap();
        for error in [handed.advance().unwrap_err(), handed.begin().unwrap_err()] {
            assert!(matches!(error, OwnershipError::RecordIo { .. }), "the record would not move on: {error}");
        }
        handed.release().unwrap();
    });
    set_mode(0o600);
    let tickets = owner.begin().unwrap();
    set_mode(0);
    without_capabilities(|| {
        let wrong = only(handed.prove(Some(&tickets)));
        assert!(matches!(wrong, Mismatch::NoRecord { .. }), "the source has one: {wrong}");
    });
}

#[test]
fn a_lease_may_be_handed_over_open() {
    let folder = folder();
    let path = folder.path().join("lease");
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
    let set = |file| Ownership::new([(Role::Lease, Arc::new(Resource::lease_of(file, &path).unwrap()))]).unwrap();
    let source = set(open());
    source.take().unwrap();
    source.advance().unwrap();
    let destination = with_lease(&path);
    destination.prove(Some(&source.begin().unwrap())).unwrap();
    assert_eq!(destination.claim().unwrap(), Claim::Held);
    source.release().unwrap();
    assert_eq!(destination.claim().unwrap(), Claim::Won);
    std::fs::write(&path, "somebody else's").unwrap();
    assert!(matches!(Resource::lease_of(open(), &path).unwrap_err(), OwnershipError::Record { .. }));
}

#[test]
fn a_lease_decides_for_images_without_record() {
    let folder = folder();
    let lease = Arc::new(Resource::lease(&folder.path().join("lease")).unwrap());
    // A device file may have no user attributes, like a block device.
    let device = open(Path::new("/dev/null"), Access::Exclusive);
    assert!(!device.write_record(&Default::default()).unwrap());
    let set = Ownership::new([(Role::Disk(0), device), (Role::Lease, lease)]).unwrap();
    set.take().unwrap();
    assert!(!set.is_provable(), "nothing was written yet");
    set.advance().unwrap();
    assert!(set.is_provable());
}

#[test]
fn a_source_without_tickets_is_not_compared_with_an_earlier_one() {
    let folder = folder();
    let disk = image(&folder, "disk", 512);
    let source = booted(&[&disk]);
    let destination = guest(&[&disk]);
    destination.prove(Some(&source.begin().unwrap())).unwrap();
    drop(source);
    drop(booted(&[&disk]));
    destination.prove(None).unwrap();
    assert_eq!(destination.claim().unwrap(), Claim::Won);
}

/// The source has released the locks, as one that wrote a file; so has the guest of the file once it has run.
#[test]
fn a_guest_in_a_file_is_recognized_by_its_records_while_nobody_holds_its_locks() {
    let folder = folder();
    let (disk, other) = (image(&folder, "disk", 512), image(&folder, "other", 512));
    let source = booted(&[&disk]);
    let tickets = source.begin().unwrap();
    source.release().unwrap();
    let reader = guest(&[&disk]);
    let wrong = reader.prove(Some(&tickets)).unwrap_err();
    assert!(matches!(wrong[..], [Mismatch::NotHeld { .. }]), "{wrong:?}");
    reader.recognize(Some(&tickets)).unwrap();
    assert_eq!(reader.claim().unwrap(), Claim::Won);
    reader.advance().unwrap();
    reader.release().unwrap();
    assert_eq!(source.claim().unwrap(), Claim::Moved);
    let wrong = guest(&[&disk]).recognize(Some(&tickets)).unwrap_err();
    assert!(matches!(wrong[..], [Mismatch::MovedOnSinceFile { .. }]), "{wrong:?}");
    drop(booted(&[&other]));
    let wrong = guest(&[&other]).recognize(Some(&tickets)).unwrap_err();
    assert!(matches!(wrong[..], [Mismatch::OtherThanFile { .. }]), "{wrong:?}");
}

/// Neither side takes the loss of a record as proof that the guest ran elsewhere, nor that it did not.
#[test]
fn a_record_that_was_removed_or_damaged_proves_nothing() {
    let folder = folder();
    let disk = image(&folder, "disk", 512);
    let (source, destination) = (booted(&[&disk]), guest(&[&disk]));
    destination.prove(Some(&source.begin().unwrap())).unwrap();
    source.release().unwrap();
    let file = File::options().write(true).open(&disk).unwrap();
    fsetxattr(&file, ATTRIBUTE, b"damaged", XattrFlags::empty()).unwrap();
    for side in [&destination, &source] {
        let error = side.claim().unwrap_err();
        assert!(matches!(error, OwnershipError::Record { .. }), "{error}");
    }
    fremovexattr(&file, ATTRIBUTE).unwrap();
    for side in [&destination, &source] {
        let error = side.claim().unwrap_err();
        assert!(matches!(error, OwnershipError::RecordGone { .. }), "{error}");
        assert!(error.to_string().contains(disk.to_str().unwrap()), "{error}");
    }
    // No process holds the lock after that. An operator decides for the source, whose start is recorded again.
    source.take().unwrap();
    source.advance().unwrap();
    source.release().unwrap();
    assert_eq!(destination.claim().unwrap(), Claim::Moved);
    assert_eq!(source.claim().unwrap(), Claim::Won);
}

#[test]
fn without_a_resource_nothing_can_be_decided() {
    let nothing = guest(&[]);
    nothing.take().unwrap();
    assert_eq!(nothing.begin().unwrap(), []);
    nothing.prove(Some(&[])).unwrap();
    nothing.release().unwrap();
    assert_eq!(nothing.claim().unwrap(), Claim::Undecidable);
    nothing.advance().unwrap();
    assert!(!nothing.is_provable());
}

#[test]
fn the_lock_is_one_with_that_of_the_cloned_file() {
    let folder = folder();
    let path = image(&folder, "disk", 512);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let resource = Resource::image(file.try_clone().unwrap(), &path, Access::Exclusive);
    resource.lock().unwrap();
    assert!(!resource.held_by_another().unwrap());
    drop(resource);
    let other = open(&path, Access::Exclusive);
    assert!(other.held_by_another().unwrap(), "the file that is read and written is still open");
    file.write_all_at(b"guest", 0).unwrap();
    drop(file);
    assert!(!other.held_by_another().unwrap());
}
