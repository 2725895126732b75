//! Migration to a file, and its refusals. The oracles of completeness are the guest, which checks its memory, and the dump of
//! `vmstate inspect`, which has no machine.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use minivmm::config::{Address, ListenAt, Net, Network, RateLimits, Restore};
use minivmm::vm::{MigrationStatus, ParameterChange, Request, RunState, Terms};
use nix::fcntl::OFlag;
use vmstate::dump::Dump;
use vmstate::migrate::ParameterValue;
use vmstate_lab::tiny;

use crate::machine::{Machine, lab, running, unix_address, until};
use crate::ownership::generation;

fn file(dir: &Path, name: &str, offset: u64) -> Address {
    Address::File { path: dir.join(name), offset }
}

#[test]
fn a_guest_is_in_the_file_whole_and_may_be_taken_back() {
    let Some((dir, source)) = running() else { return };
    let statuses = source.statuses();
    assert_eq!(source.migrate(&file(dir.path(), "state", 0)), MigrationStatus::Completed);
    // The status is published a moment after the end is visible.
    until(|| statuses.lock().unwrap().len() >= 4, || format!("{statuses:?}"));
    assert_eq!(*statuses.lock().unwrap(), ["setup", "active", "device", "completed"]);
    assert_eq!(source.handle.run_state(), RunState::PostMigrate);
    assert!(source.handle.migration().figures.downtime.is_some());

    let path = dir.path().join("state");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!dir.path().join("state.partial").exists());
    let bytes = fs::read(&path).unwrap();
    let dump = Dump::read(&bytes);
    assert!(dump.damage.is_none() && dump.described, "{:?}", dump.damage);
    let figures = source.handle.migration().figures;
    let in_file: u64 = dump.ram.blocks().iter().map(|block| block.pages.normal).sum();
    assert!(in_file > 0 && figures.normal_pages >= in_file && figures.bytes >= in_file * 4096, "{figures:?}");
    // 16 MiB, and the pages that a QEMU has as its firmware.
    assert!(figures.normal_pages + figures.zero_pages >= 4096, "{figures:?}");

    let disk = dir.path().join("disk");
    let lock = || minivmm::devices::virtio::blk::Image::open(&disk, false).unwrap().resource().lock();
    lock().expect("the disk was let go of");
    let before = generation(&disk).unwrap();
    source.handle.ask(Request::Cont).unwrap();
    source.await_passes(1);
    assert_eq!(generation(&disk), Some(before + 1), "the guest of the file is stale");
    lock().unwrap_err();
    source.quit();
}

/// Finds the first offset that the file system of `dir` does not support.
fn end_of_files(dir: &Path) -> u64 {
    let mut file = File::create(dir.join("scratch")).unwrap();
    (0..63).rev().fold(0, |end, bit| file.seek(SeekFrom::Start(end | 1 << bit)).unwrap_or(end))
}

#[test]
fn a_guest_that_does_not_get_into_the_file_runs_on() {
    let Some((dir, source)) = running() else { return };
    fs::write(dir.path().join("old"), "text").unwrap();
    let refusal_of = |name: &str, offset, parameters| {
        let terms = Terms { parameters, ..Terms::default() };
        source.handle.ask(Request::Migrate(file(dir.path(), name, offset), terms)).unwrap_err().0
    };
    let refusal = |name: &str, offset| refusal_of(name, offset, ParameterChange::default());
    assert!(refusal("old", 0).contains("it exists already"));
    assert_eq!(fs::read_to_string(dir.path().join("old")).unwrap(), "text");
    assert!(refusal(".", 0).contains("it exists already"));
    assert!(refusal("none/state", 0).contains("No such file or directory"));
    let compresses = ParameterChange::default()
        .with("multifd", true)
        .with("multifd-compression", ParameterValue::Word("zstd".into()));
    assert!(refusal_of("state", 0, compresses).contains("Mapped-ram only available for non-compressed"));
    let tls = ParameterChange::default().with("tls-creds", ParameterValue::Word("certs".to_owned().into()));
    assert!(refusal_of("state", 0, tls).contains("a file is not encrypted"));
    let keep_running = |release: Option<&str>, at: Address| {
        let terms = Terms { keeps_running: true, release: release.map(Into::into), ..Terms::default() };
        source.handle.ask(Request::Migrate(at, terms)).unwrap_err().0
    };
    assert!(keep_running(None, file(dir.path(), "state", 0)).contains("copy the disks while the guest is paused"));
    assert!(
        keep_running(Some("schema"), file(dir.path(), "state", 0)).contains("target-schema is for an older minivmm")
    );
    assert!(keep_running(None, Address::Unix("/nowhere".into())).contains("behind a new file only"));
    assert!(!dir.path().join("state").exists());
    assert_eq!(source.handle.run_state(), RunState::Running);

    // Another process makes a file at the path meanwhile.
    let wait = |on: bool| source.handle.set_pauses_before_switchover(on);
    wait(true);
    source.handle.ask(Request::Migrate(file(dir.path(), "taken", 0), Terms::default())).unwrap();
    until(|| source.handle.migration().status() == MigrationStatus::PreSwitchover, || "it does not wait".into());
    fs::write(dir.path().join("taken"), "text").unwrap();
    source.handle.ask(Request::MigrateContinue).unwrap();
    assert_eq!(source.await_end(), MigrationStatus::Failed);
    wait(false);
    assert!(error(&source).contains("File exists"), "{}", error(&source));
    assert_eq!(fs::read_to_string(dir.path().join("taken")).unwrap(), "text");
    assert!(!dir.path().join("taken.partial").exists());
    assert_eq!(source.handle.run_state(), RunState::Running);

    // The file system accepts some bytes and no more, like a full disk.
    let before = generation(&dir.path().join("disk")).unwrap();
    let last = file(dir.path(), "state", end_of_files(dir.path()) - 100);
    assert_eq!(source.migrate(&last), MigrationStatus::Failed);
    let why = source.handle.migration().error.unwrap();
    assert!(why.contains("state: ") && why.contains("os error"), "{why}");
    source.await_passes(1);
    assert_eq!(source.handle.run_state(), RunState::Running);
    assert_eq!(generation(&dir.path().join("disk")), Some(before), "nobody could have seen a whole file");
    assert!(["state", "state.partial"].iter().all(|name| !dir.path().join(name).exists()), "a part of a guest stays");
    source.quit();
}

/// The status is `active` as long as the guest runs, also while the host writes the file to its disk.
#[test]
fn the_status_shows_that_a_guest_runs_on_after_its_snapshot() {
    let Some(dir) = lab() else { return };
    let source = Machine::start_with(dir.path(), None, Vec::new());
    source.await_passes(1);
    let statuses = source.statuses();
    let terms = Terms { keeps_running: true, ..Terms::default() };
    source.handle.set_pauses_before_switchover(true);
    source.handle.ask(Request::Migrate(file(dir.path(), "state", 0), terms)).unwrap();
    until(|| source.handle.migration().status() == MigrationStatus::PreSwitchover, || "it does not wait".into());
    source.handle.ask(Request::MigrateContinue).unwrap();
    assert_eq!(source.await_end(), MigrationStatus::Completed);
    let expected = ["setup", "active", "pre-switchover", "device", "active", "completed"];
    until(|| statuses.lock().unwrap().len() >= expected.len(), || format!("{statuses:?}"));
    assert_eq!(*statuses.lock().unwrap(), expected);
    source.await_passes(1);
    source.quit();
}

/// Makes `there` read the guest in `from`, and waits for the end.
fn read(there: &Machine, from: &Address) -> MigrationStatus {
    there.handle.ask(Request::MigrateIncoming { at: from.clone(), exit_on_error: false }).unwrap();
    there.await_end()
}

fn error(machine: &Machine) -> String {
    machine.handle.migration().error.unwrap()
}

#[test]
fn a_guest_goes_from_file_to_file_and_runs_once() {
    let Some(dir) = lab() else { return };
    let [first, second] = [("first", 0), ("second", 0x1200)].map(|(name, offset)| file(dir.path(), name, offset));
    let source = Machine::start(dir.path(), None);
    source.await_passes(1);
    assert_eq!(source.migrate(&first), MigrationStatus::Completed);

    let next = Machine::start(dir.path(), Some(&first));
    next.await_passes(1);
    // The file was mapped instead of read; and the next file contains all memory.
    assert!(fs::read_to_string("/proc/self/maps").unwrap().contains(dir.path().join("first").to_str().unwrap()));
    let refusal = source.handle.ask(Request::Cont).unwrap_err().0;
    assert!(refusal.contains("another process holds the guest's disks"), "{refusal}");
    assert_eq!(next.migrate(&second), MigrationStatus::Completed);
    let refusal = source.handle.ask(Request::Cont).unwrap_err().0;
    assert!(refusal.contains("the guest has run elsewhere since"), "{refusal}");
    source.quit();

    let there = Machine::start_listening(dir.path(), ListenAt::Deferred);
    assert_eq!(read(&there, &first), MigrationStatus::Failed);
    assert!(error(&there).contains("is not the one of the guest in the file"), "{}", error(&there));
    assert_eq!((there.handle.run_state(), there.passes()), (RunState::InMigrate, 0));
    assert_eq!(read(&there, &second), MigrationStatus::Completed);
    there.await_passes(1);
    let again = Machine::start_listening(dir.path(), ListenAt::Deferred);
    assert_eq!(read(&again, &second), MigrationStatus::Failed);
    assert!(error(&again).contains("another guest was started on disk 1"), "{}", error(&again));
    again.quit();
    next.quit();
    there.quit();
}

/// The guest has touched no memory here when the file changes.
#[test]
fn a_guest_whose_memory_was_read_before_it_runs_needs_its_file_no_more() {
    let Some((dir, source)) = running() else { return };
    let state = file(dir.path(), "state", 0);
    source.handle.ask(Request::Stop).unwrap();
    assert_eq!(source.migrate(&state), MigrationStatus::Completed);
    source.quit();
    let there = Machine::start_restored(dir.path(), ListenAt::Address(state), Restore::Eager);
    there.await_state(RunState::Paused);
    let path = dir.path().join("state");
    assert!(!fs::read_to_string("/proc/self/maps").unwrap().contains(path.to_str().unwrap()));
    // Overwritten in place: truncating a mapped file would end this process.
    let zeros = vec![0; fs::metadata(&path).unwrap().len() as usize];
    File::options().write(true).open(&path).unwrap().write_all(&zeros).unwrap();
    there.handle.ask(Request::Cont).unwrap();
    there.await_passes(2);
    there.quit();
}

/// The guest checks its memory after several threads have written it to the file and read it from there.
#[test]
fn several_threads_write_a_guest_and_read_it() {
    let Some((dir, source)) = running() else { return };
    let multifd = ParameterChange::default().with("multifd", true).with("multifd-channels", 3);
    let set = |machine: &Machine| machine.handle.ask(Request::MigrateSetParameters(multifd.clone())).unwrap();
    set(&source);
    let state = file(dir.path(), "state", 0);
    assert_eq!(source.migrate(&state), MigrationStatus::Completed);
    let figures = source.handle.migration().figures;
    let dump = Dump::read(&fs::read(dir.path().join("state")).unwrap());
    let in_file: u64 = dump.ram.blocks().iter().map(|block| block.pages.normal).sum();
    assert!(dump.damage.is_none() && in_file > 0 && figures.normal_pages >= in_file, "{figures:?}");
    source.quit();
    let there = Machine::start_restored(dir.path(), ListenAt::Deferred, Restore::Eager);
    set(&there);
    assert_eq!(read(&there, &state), MigrationStatus::Completed);
    there.await_passes(2);
    assert_eq!(there.handle.migration().figures.normal_pages, in_file);
    there.quit();
}

/// Whether a descriptor of this process for a file whose name begins with `path` bypasses the page cache (proc(5), fdinfo).
fn is_direct(path: &Path) -> bool {
    let open = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap());
    let here = open.filter(|entry| {
        fs::read_link(entry.path())
            .is_ok_and(|target| target.to_str().is_some_and(|name| name.starts_with(path.to_str().unwrap())))
    });
    here.into_iter().any(|entry| {
        let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(entry.file_name())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        i32::from_str_radix(flags.trim(), 8).unwrap() & OFlag::O_DIRECT.bits() != 0
    })
}

#[test]
fn pages_bypass_the_page_cache_on_request_with_page_channels() {
    let Some((dir, source)) = running() else { return };
    let probe = dir.path().join("probe");
    let probe = File::options().write(true).create_new(true).custom_flags(OFlag::O_DIRECT.bits()).open(probe);
    if let Err(error) = probe {
        return vmstate_lab::skip::skip(format!("no direct I/O: {error}"));
    }
    let set = |machine: &Machine, multifd: bool| {
        let change = ParameterChange::default().with("multifd", multifd).with("direct-io", true);
        machine.handle.ask(Request::MigrateSetParameters(change)).unwrap();
    };
    for multifd in [false, true] {
        set(&source, multifd);
        let name = if multifd { "channels" } else { "alone" };
        source.handle.set_pauses_before_switchover(true);
        source.handle.ask(Request::Migrate(file(dir.path(), name, 0x123), Terms::default())).unwrap();
        until(|| source.handle.migration().status() == MigrationStatus::PreSwitchover, || "it does not wait".into());
        assert_eq!(is_direct(&dir.path().join(name)), multifd, "as in QEMU, only with multifd");
        source.handle.ask(Request::MigrateContinue).unwrap();
        assert_eq!(source.await_end(), MigrationStatus::Completed);
        source.handle.ask(Request::Cont).unwrap();
    }
    source.handle.set_pauses_before_switchover(false);
    let state = file(dir.path(), "state", 0x4567);
    assert_eq!(source.migrate(&state), MigrationStatus::Completed);
    source.quit();
    let there = Machine::start_restored(dir.path(), ListenAt::Deferred, Restore::Eager);
    set(&there, true);
    // No file of procfs can be read so.
    let proc = Address::File { path: "/proc/self/status".into(), offset: 0 };
    let refusal = there.handle.ask(Request::MigrateIncoming { at: proc, exit_on_error: false }).unwrap_err().0;
    assert_eq!(refusal, "/proc/self/status: the file system does not support O_DIRECT: set direct-io to off");
    assert_eq!(read(&there, &state), MigrationStatus::Completed);
    there.await_passes(2);
    there.quit();
}

/// A machine without a disk, with a card of this address on a silent network.
fn with_card(dir: &Path, incoming: Option<ListenAt>, mac: Option<[u8; 6]>) -> Machine {
    Machine::start_config(dir, &tiny::bzimage(), |config| {
        let network = Network::Stream(dir.join("network"));
        config.nets = vec![Net { network, mac, uso: true, vhost: false, limits: RateLimits::default() }];
        config.incoming = incoming;
    })
}

/// The address in the state of the guest's card, which begins with it in QEMU's format.
fn address_in(state: &Path) -> [u8; 6] {
    let bytes = fs::read(state).unwrap();
    let dump = Dump::read(&bytes);
    let card = dump.sections().find(|section| section.header.idstr.contains("virtio-net")).unwrap();
    let known = bytes[card.offset as usize..].windows(3).position(|bytes| bytes == [0x52, 0x54, 0x77]).unwrap();
    bytes[card.offset as usize + known..][..6].try_into().unwrap()
}

#[test]
fn a_clone_has_another_address_on_request_and_only_from_a_file() {
    let Some(dir) = lab() else { return };
    let _network = UnixListener::bind(dir.path().join("network")).unwrap();
    let [theirs, ours] = [1, 2].map(|last| [0x52, 0x54, 0x77, 0, 0, last]);
    let [state, again] = ["state", "again"].map(|name| file(dir.path(), name, 0));
    let source = with_card(dir.path(), None, Some(theirs));
    source.await_passes(1);
    let terms = Terms { keeps_running: true, ..Terms::default() };
    source.handle.ask(Request::Migrate(state.clone(), terms)).unwrap();
    assert_eq!(source.await_end(), MigrationStatus::Completed);
    assert_eq!(address_in(&dir.path().join("state")), theirs);

    // Without the option the guest has another address than the user expects.
    let forgotten = with_card(dir.path(), Some(ListenAt::Deferred), None);
    assert_eq!(read(&forgotten, &state), MigrationStatus::Failed);
    assert!(error(&forgotten).contains("has the address 52:54:77:00:00:01 at the source"), "{}", error(&forgotten));
    forgotten.quit();
    let live = unix_address(dir.path(), "live");
    let elsewhere = with_card(dir.path(), Some(ListenAt::Address(live.clone())), Some(ours));
    assert_eq!(source.migrate(&live), MigrationStatus::Failed);
    elsewhere.quit();

    let clone = with_card(dir.path(), Some(ListenAt::Address(state)), Some(ours));
    clone.await_passes(1);
    // The guest has its old address until it resets its card.
    assert_eq!(clone.migrate(&again), MigrationStatus::Completed);
    assert_eq!(address_in(&dir.path().join("again")), theirs);
    source.quit();
    clone.quit();
}

#[test]
fn a_file_for_a_qemu_has_no_section_that_it_lacks() {
    let Some((dir, source)) = running() else { return };
    let at = file(dir.path(), "state", 0);
    let terms = Terms { to_qemu: true, ..Terms::default() };
    let refusal = source.handle.ask(Request::Migrate(Address::Unix("/nowhere".into()), terms.clone())).unwrap_err().0;
    assert!(refusal.contains("to-qemu is for a new file"), "{refusal}");
    source.handle.ask(Request::Migrate(at, terms)).unwrap();
    assert_eq!(source.await_end(), MigrationStatus::Completed);
    let bytes = fs::read(dir.path().join("state")).unwrap();
    let dump = Dump::read(&bytes);
    assert!(dump.damage.is_none() && dump.described, "{:?}", dump.damage);
    let names: Vec<&str> = dump.sections().map(|section| section.header.idstr.as_ref()).collect();
    assert!(names.contains(&"cpu") && !names.iter().any(|name| name.starts_with("minivmm/")), "{names:?}");
    // A QEMU writes no record: a free disk does not prove that no process has run the guest.
    let refusal = source.handle.ask(Request::Cont).unwrap_err().0;
    assert!(refusal.contains("nothing can prove"), "{refusal}");
    source.handle.ask(Request::ContUnproved).unwrap();
    source.await_passes(1);
    source.quit();
}

#[test]
fn a_guest_that_its_source_took_back_does_not_run_from_the_file() {
    let Some(dir) = lab() else { return };
    let state = file(dir.path(), "state", 0);
    let source = Machine::start(dir.path(), None);
    source.await_passes(1);
    assert_eq!(source.migrate(&state), MigrationStatus::Completed);
    source.handle.ask(Request::Cont).unwrap();
    let there = Machine::start_listening(dir.path(), ListenAt::Deferred);
    assert_eq!(read(&there, &state), MigrationStatus::Failed);
    let why = error(&there);
    assert!(why.contains("another guest was started on disk 1") && why.contains("since the file was written"), "{why}");
    assert_eq!(there.passes(), 0);
    source.await_passes(1);
    source.quit();
    there.quit();
}

#[test]
fn a_file_that_holds_no_whole_guest_is_refused_and_the_whole_one_is_read_then() {
    let Some(dir) = lab() else { return };
    let state = file(dir.path(), "state", 0);
    let source = Machine::start(dir.path(), None);
    source.await_passes(1);
    assert_eq!(source.migrate(&state), MigrationStatus::Completed);
    source.quit();
    let there = Machine::start_listening(dir.path(), ListenAt::Deferred);
    let refusal = |name: &str| {
        let at = file(dir.path(), name, 0);
        there.handle.ask(Request::MigrateIncoming { at, exit_on_error: false }).unwrap_err().0
    };
    assert!(refusal("none").contains("none: No such file or directory"));
    assert!(refusal(".").contains("it is a directory"));
    let whole = fs::read(dir.path().join("state")).unwrap();
    let damaged = |name: &str, bytes: &[u8], offset| {
        fs::write(dir.path().join(name), bytes).unwrap();
        assert_eq!(read(&there, &file(dir.path(), name, offset)), MigrationStatus::Failed, "{name}");
        assert_eq!(there.handle.run_state(), RunState::InMigrate, "{name}");
        assert!(error(&there).contains(&format!("{name}: ")), "{}", error(&there));
    };
    damaged("empty", &[], 0);
    damaged("cut-in-pages", &whole[..whole.len() / 2], 0);
    damaged("begun-late", &whole, 1);
    damaged("begun-behind", &whole, whole.len() as u64 + 1);
    let end = Dump::read(&whole).entries.iter().find_map(|entry| match entry {
        vmstate::dump::Entry::Eof { offset } => Some(*offset as usize),
        _ => None,
    });
    damaged("without-its-end", &whole[..end.unwrap()], 0);
    assert_eq!(there.passes(), 0);
    assert_eq!(read(&there, &state), MigrationStatus::Completed);
    there.await_passes(1);
    there.quit();
}
