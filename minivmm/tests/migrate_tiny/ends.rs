//! `cont` at the source after each end of a migration: the guest runs here only if no other process runs it or has run it.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use minivmm::vm::{MigrationStatus, ParameterChange, Request, RunState, Terms};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::fremovexattr;
use vmstate::ownership::ATTRIBUTE;

use crate::machine::{Machine, Pair, lab, pair, running, unix_address, until};
use crate::proxy::{Proxy, Word};

#[test]
fn after_completion_another_process_holds_the_disk() {
    let Some(Pair { dir: _dir, source, address, destination }) = pair() else { return };
    assert_eq!(source.migrate(&address), MigrationStatus::Completed, "{:?}", source.handle.migration());
    for request in [Request::Cont, Request::ContUnproved] {
        let refusal = source.handle.ask(request).unwrap_err().0;
        assert!(refusal.contains("holds the guest's disks") && refusal.ends_with("stays stopped here"), "{refusal}");
    }
    assert_eq!(source.handle.run_state(), RunState::PostMigrate);
    destination.await_passes(2);
    source.quit();
    destination.quit();
}

/// The destination's confirmation is lost, and its lock proves that it has the guest.
#[test]
fn an_unacknowledged_end_has_its_own_status_and_no_override() {
    let Some(Pair { dir, source, address, destination }) = pair() else { return };
    let proxy = Proxy::holding(Word::TakesOver, dir.path(), &address);
    source.handle.ask(Request::Migrate(proxy.address.clone(), Terms::default())).unwrap();
    until(|| proxy.holds(), || format!("{:?}", source.handle.migration()));
    proxy.cut();
    assert_eq!(source.await_end(), MigrationStatus::Unacknowledged, "{:?}", source.handle.migration());
    assert_eq!(source.handle.run_state(), RunState::PostMigrate);
    assert!(source.handle.migration().error.unwrap().contains("stays stopped here"));
    for request in [Request::Cont, Request::ContUnproved] {
        let refusal = source.handle.ask(request).unwrap_err().0;
        assert!(refusal.contains("holds the guest's disks"), "{refusal}");
    }
    destination.await_passes(2);
    source.quit();
    destination.quit();
}

/// Without a disk nothing can prove whether the destination runs the guest.
#[test]
fn an_undecided_end_has_its_own_status_and_accepts_force() {
    let Some(dir) = lab() else { return };
    let source = Machine::start_with(dir.path(), None, Vec::new());
    source.await_passes(1);
    let address = unix_address(dir.path(), "incoming");
    let destination = Machine::start_with(dir.path(), Some(&address), Vec::new());
    let proxy = Proxy::holding(Word::TakesOver, dir.path(), &address);
    source.handle.ask(Request::Migrate(proxy.address.clone(), Terms::default())).unwrap();
    until(|| proxy.holds(), || format!("{:?}", source.handle.migration()));
    proxy.cut();
    assert_eq!(source.await_end(), MigrationStatus::Undecided, "{:?}", source.handle.migration());
    assert_eq!(source.handle.run_state(), RunState::PostMigrate);
    let error = source.handle.migration().error.unwrap();
    assert!(error.contains("nothing can prove") && error.contains("cont with force"), "{error}");
    let refusal = source.handle.ask(Request::Cont).unwrap_err().0;
    assert!(refusal.contains("look there"), "{refusal}");
    // The user finds the guest running there, ends it, and may then run it here.
    destination.await_passes(1);
    destination.quit();
    source.handle.ask(Request::ContUnproved).unwrap();
    assert_eq!(source.handle.run_state(), RunState::Running);
    source.await_passes(2);
    source.quit();
}

#[test]
fn a_failed_migration_leaves_a_running_guest_that_stops_and_goes_on() {
    let Some((dir, source)) = running() else { return };
    assert_eq!(source.migrate(&unix_address(dir.path(), "nobody")), MigrationStatus::Failed);
    source.handle.ask(Request::Stop).unwrap();
    source.handle.ask(Request::Cont).unwrap();
    source.await_passes(2);
    source.quit();
}

/// However short the limit: after each attempt all of the guest continues, vCPU and disk.
#[test]
fn a_pause_budget_that_nothing_fits_into_leaves_a_running_guest() {
    let Some((dir, source)) = running() else { return };
    for nanos in [1, 1000, 100_000] {
        let address = unix_address(dir.path(), "incoming");
        let destination = Machine::start(dir.path(), Some(&address));
        let change = ParameterChange::default().with("pause-budget", Duration::from_nanos(nanos));
        source.handle.ask(Request::MigrateSetParameters(change)).unwrap();
        assert_eq!(source.migrate(&address), MigrationStatus::Failed, "{nanos} ns");
        assert_eq!(source.handle.run_state(), RunState::Running);
        source.await_passes(2);
        destination.quit();
    }
    source.quit();
}

/// A third process takes the lock of `disk` as soon as possible; closing the file releases it.
fn take_lock(disk: &Path) -> File {
    let file = File::options().read(true).write(true).open(disk).unwrap();
    let whole = libc::flock { l_type: libc::F_WRLCK as libc::c_short, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    until(|| fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)).is_ok(), || "the lock is never free".into());
    file
}

/// A guest that is stopped on both sides, since a third process has locked its disk; and that lock.
fn stopped_on_both_sides(dir: &Path) -> (Machine, Machine, File) {
    let source = Machine::start(dir, None);
    source.await_passes(1);
    let address = unix_address(dir, "incoming");
    let destination = Machine::start(dir, Some(&address));
    let proxy = Proxy::holding(Word::End, dir, &address);
    source.handle.ask(Request::Migrate(proxy.address.clone(), Terms::default())).unwrap();
    let third = take_lock(&dir.join("disk"));
    proxy.release();
    assert_eq!(source.await_end(), MigrationStatus::Unacknowledged, "{:?}", source.handle.migration());
    assert_eq!(destination.await_end(), MigrationStatus::Failed, "{:?}", destination.handle.migration());
    let error = destination.handle.migration().error.unwrap();
    assert!(error.ends_with("it stays stopped here; cont tries again"), "{error}");
    assert_eq!(source.handle.run_state(), RunState::PostMigrate);
    assert_eq!(destination.handle.run_state(), RunState::Paused);
    (source, destination, third)
}

/// Neither side gets the disk, so the guest is stopped on both. Once the disk is free, exactly one side gets the guest.
#[test]
fn a_guest_whose_disk_a_third_party_took_waits_on_both_sides_and_goes_on_once() {
    for at_destination in [true, false] {
        let Some(dir) = lab() else { return };
        let (source, destination, third) = stopped_on_both_sides(dir.path());
        for side in [&source, &destination] {
            let refusal = side.handle.ask(Request::Cont).unwrap_err().0;
            assert!(refusal.contains("holds the guest's disks"), "{refusal}");
        }
        drop(third);
        let (winner, loser) = if at_destination { (destination, source) } else { (source, destination) };
        winner.handle.ask(Request::Cont).unwrap();
        winner.await_passes(2);
        let refusal = loser.handle.ask(Request::Cont).unwrap_err().0;
        assert!(refusal.contains("holds the guest's disks"), "{refusal}");
        winner.await_passes(2);
        winner.quit();
        loser.quit();
    }
}

/// The source takes its guest back, runs it and ends. Then the lock of its disk is free, and a migration of the stale guest at
/// the destination would write new records, with which it could run elsewhere.
#[test]
fn a_guest_that_may_be_stale_is_not_migrated_on() {
    let Some(dir) = lab() else { return };
    let (source, destination, third) = stopped_on_both_sides(dir.path());
    drop(third);
    source.handle.ask(Request::Cont).unwrap();
    source.await_passes(1);
    source.quit();
    let next = unix_address(dir.path(), "next");
    let elsewhere = Machine::start(dir.path(), Some(&next));
    let refusal = destination.handle.ask(Request::Migrate(next, Terms::default())).unwrap_err().0;
    assert!(refusal.ends_with("resume it with cont first"), "{refusal}");
    for request in [Request::Cont, Request::ContUnproved] {
        let refusal = destination.handle.ask(request).unwrap_err().0;
        assert!(refusal.contains("has run elsewhere since"), "{refusal}");
    }
    assert_eq!(elsewhere.handle.run_state(), RunState::InMigrate);
    destination.quit();
    elsewhere.quit();
}

/// A removed record proves nothing, so a person has to decide.
#[test]
fn a_guest_whose_record_was_removed_resumes_with_force() {
    let Some(dir) = lab() else { return };
    let (source, destination, third) = stopped_on_both_sides(dir.path());
    fremovexattr(&third, ATTRIBUTE).unwrap();
    drop(third);
    for side in [&source, &destination] {
        let refusal = side.handle.ask(Request::Cont).unwrap_err().0;
        assert!(refusal.contains("disk has been removed, so nothing can prove that the other side"), "{refusal}");
    }
    source.handle.ask(Request::ContUnproved).unwrap();
    source.await_passes(2);
    let refusal = destination.handle.ask(Request::ContUnproved).unwrap_err().0;
    assert!(refusal.contains("holds the guest's disks"), "{refusal}");
    source.quit();
    let refusal = destination.handle.ask(Request::ContUnproved).unwrap_err().0;
    assert!(refusal.contains("has run elsewhere since"), "{refusal}");
    destination.quit();
}
