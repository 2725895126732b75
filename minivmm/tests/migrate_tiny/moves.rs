//! Migrations that succeed, fail and are cancelled; the guest goes on exactly once.

use std::time::Duration;

use minivmm::config::{Address, Disk, RateLimits};
use minivmm::vm::{End, MigrationStatus, Request, RunState, Terms};

use crate::machine::{Machine, PAGES, TIMEOUT, free_port, lab, running, unix_address, until};
use crate::ownership::generation;

#[test]
fn a_running_guest_moves_and_does_not_notice() {
    let Some(dir) = lab() else { return };
    let mut here = Machine::start(dir.path(), None);
    here.await_passes(2);
    for address in [unix_address(dir.path(), "first"), free_port(), unix_address(dir.path(), "third")] {
        let there = Machine::start(dir.path(), Some(&address));
        assert_eq!(there.handle.run_state(), RunState::InMigrate);
        assert_eq!(here.migrate(&address), MigrationStatus::Completed, "{:?}", here.handle.migration());
        assert_eq!(here.handle.run_state(), RunState::PostMigrate);
        until(|| there.handle.run_state() == RunState::Running, || format!("{:?}", there.handle.run_state()));
        let left = here.passes();
        there.await_passes(2);
        assert_eq!(here.passes(), left, "the guest runs on one side only");
        let info = here.handle.migration();
        let figures = info.figures;
        assert!(figures.rounds > 0 && figures.normal_pages >= PAGES && figures.downtime.is_some(), "{info:?}");
        assert!(here.handle.ask(Request::Cont).is_err(), "a guest that was handed over cannot go on here");
        here.quit();
        here = there;
    }
    here.quit();
}

#[test]
fn a_cancelled_migration_leaves_the_guest_here_and_the_next_one_succeeds() {
    let Some((dir, source)) = running() else { return };
    source.limit(Duration::from_millis(1), 1 << 20);
    let address = unix_address(dir.path(), "refused");
    let mut first = Machine::start(dir.path(), Some(&address));
    source.handle.ask(Request::Migrate(address, Terms::default())).unwrap();
    until(|| source.handle.migration().figures.normal_pages > 0, || format!("{:?}", source.handle.migration()));
    source.handle.ask(Request::MigrateCancel).unwrap();
    assert_eq!(source.handle.migration().status(), MigrationStatus::Cancelled);
    assert_eq!(source.handle.run_state(), RunState::Running);
    let end = first.thread.take().unwrap().join().unwrap();
    assert!(matches!(&end, End::Failed(why) if why.contains("did not run here")), "{end:?}");
    assert_eq!(first.passes(), 0);
    source.await_passes(2);

    source.limit(TIMEOUT, 0);
    let address = unix_address(dir.path(), "taken");
    let second = Machine::start(dir.path(), Some(&address));
    assert_eq!(source.migrate(&address), MigrationStatus::Completed, "{:?}", source.handle.migration());
    second.await_passes(2);
    source.quit();
    second.quit();
}

#[test]
fn without_a_destination_the_guest_goes_on_here() {
    let Some((dir, source)) = running() else { return };
    assert_eq!(source.migrate(&unix_address(dir.path(), "nobody")), MigrationStatus::Failed);
    let error = source.handle.migration().error.unwrap();
    assert!(error.contains("--incoming"), "{error}");
    source.await_passes(2);
    source.quit();
}

#[test]
fn a_paused_guest_arrives_paused() {
    let Some((dir, source)) = running() else { return };
    source.handle.ask(Request::Stop).unwrap();
    let address = unix_address(dir.path(), "incoming");
    let destination = Machine::start(dir.path(), Some(&address));
    assert_eq!(source.migrate(&address), MigrationStatus::Completed, "{:?}", source.handle.migration());
    until(|| destination.handle.run_state() == RunState::Paused, || format!("{:?}", destination.handle.run_state()));
    destination.handle.ask(Request::Cont).unwrap();
    destination.await_passes(2);
    source.quit();
    destination.quit();
}

/// With a disk and a lease. Machines that the guest has left still exist when the guest is elsewhere, and refuse to run it.
#[test]
fn a_guest_that_moves_on_and_on_is_nowhere_it_has_been() {
    let Some(dir) = lab() else { return };
    let (disk, lease) = (dir.path().join("disk"), dir.path().join("lease"));
    std::fs::write(&disk, [0; 4096]).unwrap();
    let start = |incoming: Option<&Address>| {
        let disks = vec![Disk { path: disk.clone(), read_only: false, create: None, limits: RateLimits::default() }];
        Machine::start_leased(dir.path(), incoming, disks, Some(lease.clone()))
    };
    let mut machines = vec![start(None)];
    for hop in 1..=6 {
        let address = unix_address(dir.path(), &format!("incoming{hop}"));
        machines.push(start(Some(&address)));
        let [.., from, to] = machines.as_slice() else { unreachable!() };
        from.await_passes(1);
        assert_eq!(from.migrate(&address), MigrationStatus::Completed, "{:?}", from.handle.migration());
        to.await_passes(1);
        assert_eq!(generation(&disk), Some(1 + hop));
    }
    let last = machines.pop().unwrap();
    let refuse = |why: &str| {
        for machine in &machines {
            let refusal = machine.handle.ask(Request::ContUnproved).unwrap_err().0;
            assert!(refusal.contains(why), "{refusal}");
        }
    };
    refuse("holds the guest's disks");
    last.quit();
    refuse("has run elsewhere since");
    machines.into_iter().for_each(Machine::quit);
}
