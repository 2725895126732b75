//! Snapshots of a running guest with its disks. In each pass the guest checks what it wrote to its disk in the pass before: so a guest
//! on a copy that is older or newer than its memory finds an error.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use minivmm::config::{Address, Disk, ListenAt};
use minivmm::devices::virtio::blk::Image;
use minivmm::vm::{DiskCopies, MigrationStatus, Request, RunState, Terms};
use vmstate_lab::tmpfs::Tmpfs;
use vmstate_lab::{skip, tiny};

use crate::disks::{BYTES, PIECE, TwoDisks, assert_copied, disk, marks, original, pass};
use crate::machine::{Machine, lab, unix_address, until};
use crate::ownership::generation;

/// Bytes of a disk's data that are copied a second, so that the guest writes meanwhile.
const SLOW: u64 = 2 << 20;

fn snapshot(copies: DiskCopies) -> Terms {
    Terms { keeps_running: true, copies, ..Terms::default() }
}

fn to_file(path: &Path) -> Address {
    Address::File { path: path.into(), offset: 0 }
}

fn error(machine: &Machine) -> String {
    machine.handle.migration().error.unwrap_or_default()
}

/// A guest that writes to its disk, and the path of its snapshot.
struct Ground {
    dir: tempfile::TempDir,
    source: Machine,
    original: PathBuf,
    state: PathBuf,
}

impl Ground {
    fn new() -> Option<Self> {
        let dir = lab()?;
        let original = original(dir.path().join("original"));
        let source = Machine::start_writing(dir.path(), None, disk(&original, None), None);
        source.await_passes(1);
        let state = dir.path().join("state");
        Some(Self { dir, source, original, state })
    }

    fn begin(&self) {
        self.source.handle.ask(Request::Migrate(to_file(&self.state), snapshot(DiskCopies::All))).unwrap();
    }

    fn save(&self) -> MigrationStatus {
        self.begin();
        self.source.await_end()
    }

    fn image(&self) -> PathBuf {
        beside(&self.state, "virtio0")
    }

    /// The copy has begun, and there is time until its end.
    fn begin_slowly(&self) {
        self.source.limit(Duration::from_millis(500), PIECE);
        self.begin();
        let has_data = || self.source.handle.migration().disk.is_some_and(|disk| disk.transferred > 0x1_0000);
        until(has_data, || format!("{:?}", self.source.handle.migration()));
    }

    /// The guest runs on, and nothing is left of a snapshot.
    fn assert_nothing(&self) {
        assert_eq!(self.source.handle.run_state(), RunState::Running);
        self.source.await_passes(2);
        assert_eq!(marks(&self.original), []);
        assert_eq!(remains(&self.state), [""; 0]);
    }
}

fn beside(state: &Path, disk: &str) -> PathBuf {
    PathBuf::from(format!("{}.{disk}", state.display()))
}

/// Names of the files that belong to a snapshot.
fn remains(state: &Path) -> Vec<String> {
    let names = fs::read_dir(state.parent().unwrap()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<_> =
        names.filter(|name| name.starts_with(state.file_name().unwrap().to_str().unwrap())).collect();
    found.sort();
    found
}

/// A machine without a guest, which reads `state` with `disk`.
fn read(dir: &Path, state: &Path, disk: Disk) -> (Machine, MigrationStatus) {
    let there = Machine::start_config(dir, &tiny::bzimage(), |config| {
        (config.incoming, config.disks) = (Some(ListenAt::Deferred), vec![disk]);
    });
    there.handle.ask(Request::MigrateIncoming { at: to_file(state), exit_on_error: false }).unwrap();
    let end = there.await_end();
    (there, end)
}

/// A clone with this disk is refused, for this reason.
fn assert_refused(dir: &Path, state: &Path, path: &Path, why: &str) {
    let (there, end) = read(dir, state, disk(path, None));
    assert_eq!((end, there.passes()), (MigrationStatus::Failed, 0));
    assert!(error(&there).contains(why), "{}", error(&there));
    there.quit();
}

#[test]
fn a_clone_runs_on_the_copies_and_the_guest_on_its_disk() {
    let Some(ground) = Ground::new() else { return };
    let (dir, source, image) = (ground.dir.path(), &ground.source, ground.image());
    source.limit(Duration::from_millis(300), SLOW);
    let before = generation(&ground.original);
    let (began, rounds) = (pass(&ground.original), source.passes());
    assert_eq!(ground.save(), MigrationStatus::Completed, "{:?}", source.handle.migration());
    assert!(source.passes() > rounds, "the guest runs while its disk is copied");
    let info = source.handle.migration();
    let figures = info.disk.unwrap();
    assert_eq!((figures.total, figures.remaining), (BYTES, 0));
    let beyond = figures.transferred - 4 * PIECE;
    assert!(beyond > 0 && beyond.is_multiple_of(4096), "{figures:?}");
    assert_eq!(info.figures.bytes, info.figures.normal_pages * 4096 + figures.transferred);
    assert_eq!(remains(&ground.state), ["state", "state.virtio0"]);
    assert_eq!(fs::metadata(&image).unwrap().permissions().mode() & 0o777, 0o600);
    source.await_passes(2);
    let copied = pass(&image);
    assert!(began <= copied && copied + 2 <= pass(&ground.original), "{began}, {copied}");
    assert_copied(&image);
    assert_eq!((marks(&image), marks(&ground.original)), (vec![], vec![]));
    assert_eq!((generation(&image), generation(&ground.original)), (Some(0), before));

    // Copies of the images, made before a guest ran on them.
    let other = dir.join("other");
    let copies = |from: &Path, to: &Path, keeps: &str| {
        assert!(Command::new("cp").arg(keeps).args([from, to]).status().unwrap().success());
    };
    copies(&image, &other, "--preserve=xattr");
    let bare = dir.join("bare");
    copies(&image, &bare, "--sparse=auto");
    let foreign = "is not the one of the guest in the file";
    assert_refused(dir, &ground.state, &ground.original, foreign);
    assert_refused(dir, &ground.state, &bare, foreign);
    let clones = [&image, &other].map(|path| read(dir, &ground.state, disk(path, None)));
    for (clone, end) in &clones {
        assert_eq!(*end, MigrationStatus::Completed, "{}", error(clone));
        clone.await_passes(3);
    }
    source.await_passes(1);
    clones.into_iter().for_each(|(clone, _)| clone.quit());
    assert_eq!((generation(&image), generation(&other)), (Some(1), Some(1)));
    assert!(pass(&image) >= copied + 3);
    assert_copied(&image);
    assert_refused(dir, &ground.state, &image, "another guest was started on disk 1");

    // A further snapshot, and a migration of the guest with its disk.
    source.limit(Duration::from_secs(60), 0);
    let again = Ground { state: dir.join("again"), ..ground };
    assert_eq!(again.save(), MigrationStatus::Completed, "{:?}", again.source.handle.migration());
    let address = unix_address(again.dir.path(), "incoming");
    let there = Machine::start_writing(again.dir.path(), Some(&address), disk(&again.original, None), None);
    assert_eq!(again.source.migrate(&address), MigrationStatus::Completed, "{:?}", again.source.handle.migration());
    there.await_passes(2);
    let image = again.image();
    again.source.quit();
    there.quit();
    // No process holds the disk any more.
    assert_refused(again.dir.path(), &again.state, &again.original, foreign);
    let (clone, end) = read(again.dir.path(), &again.state, disk(&image, None));
    assert_eq!(end, MigrationStatus::Completed, "{}", error(&clone));
    clone.await_passes(2);
    clone.quit();
}

/// The guest is stopped in each phase of its passes; the oracle is the clone, which checks its disk.
#[test]
fn each_of_many_snapshots_is_of_one_moment() {
    let Some(ground) = Ground::new() else { return };
    for number in 0..10 {
        let state = ground.dir.path().join(format!("state{number}"));
        ground.source.handle.ask(Request::Migrate(to_file(&state), snapshot(DiskCopies::All))).unwrap();
        assert_eq!(ground.source.await_end(), MigrationStatus::Completed, "{:?}", ground.source.handle.migration());
        let (clone, end) = read(ground.dir.path(), &state, disk(&beside(&state, "virtio0"), None));
        assert_eq!(end, MigrationStatus::Completed, "{}", error(&clone));
        clone.await_passes(2);
        clone.quit();
    }
    ground.source.await_passes(1);
    ground.source.quit();
}

#[test]
fn a_snapshot_of_a_guest_with_two_disks_has_both() {
    let Some(ground) = TwoDisks::new() else { return };
    let state = ground.dir.path().join("state");
    let ask = |copies| ground.source.handle.ask(Request::Migrate(to_file(&state), snapshot(copies)));
    let named = |names: &[&str]| DiskCopies::Named(names.iter().map(|name| (*name).into()).collect());
    for (names, left) in [(&["virtio0"][..], "virtio1"), (&["virtio1"], "virtio0"), (&[], "virtio0")] {
        let refused = ask(named(names)).unwrap_err().0;
        assert!(refused.contains(&format!("writes to disk '{left}'")), "{refused}");
        assert!(refused.contains("minivmm snapshot save --copy-disk"), "{refused}");
    }
    ask(named(&["virtio1", "virtio0"])).unwrap();
    assert_eq!(ground.source.await_end(), MigrationStatus::Completed, "{:?}", ground.source.handle.migration());
    assert_eq!(ground.source.handle.migration().disk.unwrap().total, 2 * BYTES);
    let images = ["virtio0", "virtio1"].map(|name| beside(&state, name));
    images.iter().for_each(|image| assert_copied(image));
    let swapped = [&images[1], &images[0]].map(|path| disk(path, None));
    let deferred = |disks: [Disk; 2]| {
        Machine::start_config(ground.dir.path(), &tiny::bzimage(), |config| {
            (config.incoming, config.disks) = (Some(ListenAt::Deferred), disks.into());
        })
    };
    for (disks, end) in [
        (swapped, MigrationStatus::Failed),
        ([disk(&images[0], None), disk(&ground.originals[1], None)], MigrationStatus::Failed),
        (images.each_ref().map(|path| disk(path, None)), MigrationStatus::Completed),
    ] {
        let there = deferred(disks);
        there.handle.ask(Request::MigrateIncoming { at: to_file(&state), exit_on_error: false }).unwrap();
        assert_eq!(there.await_end(), end, "{}", error(&there));
        if end == MigrationStatus::Completed {
            there.await_passes(2);
        }
        there.quit();
    }
    ground.source.await_passes(1);
    ground.source.quit();
}

#[test]
fn a_guest_with_a_lease_is_refused() {
    let Some(dir) = lab() else { return };
    let (path, state) = (original(dir.path().join("original")), dir.path().join("state"));
    let source = Machine::start_writing(dir.path(), None, disk(&path, None), Some(dir.path().join("lease")));
    source.await_passes(1);
    let refused = source.handle.ask(Request::Migrate(to_file(&state), snapshot(DiskCopies::All))).unwrap_err().0;
    assert!(refused.contains("its lease stands for") && refused.contains("minivmm migrate file:PATH"), "{refused}");
    assert_eq!(remains(&state), [""; 0]);
    source.quit();
}

#[test]
fn the_figures_show_what_is_left_of_the_disk() {
    let Some(ground) = Ground::new() else { return };
    ground.begin_slowly();
    let figures = ground.source.handle.migration();
    assert!(figures.disk.unwrap().remaining > 0 && figures.figures.remaining_section_bytes > 0, "{figures:?}");
    ground.source.handle.ask(Request::MigrateCancel).unwrap();
    ground.source.quit();
}

#[test]
fn files_that_exist_are_kept() {
    let Some(ground) = Ground::new() else { return };
    let (state, image) = (&ground.state, ground.image());
    let partial = beside(&image, "partial");
    for taken in [&image, &partial] {
        fs::write(taken, "text").unwrap();
        let refused =
            ground.source.handle.ask(Request::Migrate(to_file(state), snapshot(DiskCopies::All))).unwrap_err().0;
        let why = format!("{}: ", taken.display());
        assert!(refused.starts_with(&why) && refused.contains("name another file"), "{refused}");
        assert_eq!(fs::read_to_string(taken).unwrap(), "text");
        fs::remove_file(taken).unwrap();
        ground.assert_nothing();
    }
    // Another process makes a file meanwhile, at either path.
    for taken in [&image, state] {
        ground.source.handle.set_pauses_before_switchover(true);
        ground.begin();
        let waits = || ground.source.handle.migration().status() == MigrationStatus::PreSwitchover;
        until(waits, || format!("{:?}", ground.source.handle.migration()));
        ground.source.handle.set_pauses_before_switchover(false);
        fs::write(taken, "text").unwrap();
        ground.source.handle.ask(Request::MigrateContinue).unwrap();
        assert_eq!(ground.source.await_end(), MigrationStatus::Failed);
        let why = error(&ground.source);
        assert!(why.contains("File exists") && why.contains(taken.to_str().unwrap()), "{why}");
        assert_eq!(fs::read_to_string(taken).unwrap(), "text");
        fs::remove_file(taken).unwrap();
        ground.assert_nothing();
    }
    ground.source.quit();
}

#[test]
fn a_file_system_without_room_leaves_the_guest_running_and_no_files() {
    let Some(mut ground) = Ground::new() else { return };
    let small = match Tmpfs::mount(&ground.dir.path().join("small"), 24 << 20) {
        Ok(small) => small,
        Err(error) => return skip::skip(format_args!("a small file system cannot be mounted: {error}")),
    };
    if let Err(error) = Image::create(&small.path().join("probe"), BYTES) {
        return skip::skip(minivmm::error::chain(&error));
    }
    ground.state = small.path().join("state");
    let other = small.path().join("other");
    // The lack of space is found at the beginning.
    fs::write(&other, vec![7; (24 << 20) - (3 << 18)]).unwrap();
    assert_eq!(ground.save(), MigrationStatus::Failed);
    let why = error(&ground.source);
    assert!(why.contains("its file system has room for") && why.contains("make room there"), "{why}");
    ground.assert_nothing();
    ground.source.quit();
}

/// A paused guest stays paused, and its snapshot is paused as well.
#[test]
fn a_paused_guest_has_snapshots_too() {
    let Some(ground) = Ground::new() else { return };
    ground.source.handle.ask(Request::Stop).unwrap();
    assert_eq!(ground.save(), MigrationStatus::Completed, "{}", error(&ground.source));
    assert_eq!(ground.source.handle.run_state(), RunState::Paused);
    let (image, disk_now) = (ground.image(), fs::read(&ground.original).unwrap());
    assert!(fs::read(&image).unwrap() == disk_now && image.metadata().unwrap().blocks() > 0);
    let (clone, end) = read(ground.dir.path(), &ground.state, disk(&image, None));
    assert_eq!((end, clone.handle.run_state()), (MigrationStatus::Completed, RunState::Paused), "{}", error(&clone));
    clone.handle.ask(Request::Cont).unwrap();
    clone.await_passes(2);
    clone.quit();
    ground.source.quit();
}
