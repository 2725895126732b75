//! `cont` at the source after each end of a migration: the guest runs here only if nobody else runs it or has run it.

use minivmm::vm::{MigrationStatus, Request, RunState};

use crate::machine::{Machine, door, lab, until};
use crate::proxy::{Answer, Proxy};

#[test]
fn after_completion_another_process_holds_the_disk() {
    let Some(dir) = lab() else { return };
    let source = Machine::start(dir.path(), None);
    source.await_passes(1);
    let address = door(dir.path(), "door");
    let destination = Machine::start(dir.path(), Some(&address));
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

/// The last word of the destination is lost, and its lock says that it has the guest.
#[test]
fn an_unacknowledged_end_has_its_own_status_and_no_override() {
    let Some(dir) = lab() else { return };
    let source = Machine::start(dir.path(), None);
    source.await_passes(1);
    let address = door(dir.path(), "door");
    let destination = Machine::start(dir.path(), Some(&address));
    let proxy = Proxy::holding(Answer::TakesOver, dir.path(), &address);
    source.handle.ask(Request::Migrate(proxy.address.clone())).unwrap();
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

/// Without a disk there is nothing that could prove whether the destination runs the guest.
#[test]
fn an_undecided_end_has_its_own_status_and_takes_the_word_of_a_user() {
    let Some(dir) = lab() else { return };
    let source = Machine::start_with(dir.path(), None, Vec::new());
    source.await_passes(1);
    let address = door(dir.path(), "door");
    let destination = Machine::start_with(dir.path(), Some(&address), Vec::new());
    let proxy = Proxy::holding(Answer::TakesOver, dir.path(), &address);
    source.handle.ask(Request::Migrate(proxy.address.clone())).unwrap();
    until(|| proxy.holds(), || format!("{:?}", source.handle.migration()));
    proxy.cut();
    assert_eq!(source.await_end(), MigrationStatus::Undecided, "{:?}", source.handle.migration());
    assert_eq!(source.handle.run_state(), RunState::PostMigrate);
    let error = source.handle.migration().error.unwrap();
    assert!(error.contains("nothing can prove") && error.contains("cont with force"), "{error}");
    let refusal = source.handle.ask(Request::Cont).unwrap_err().0;
    assert!(refusal.contains("look there"), "{refusal}");
    // The user looks: the guest runs there. Ended, it runs nowhere, and may run here.
    destination.await_passes(1);
    destination.quit();
    source.handle.ask(Request::ContUnproved).unwrap();
    assert_eq!(source.handle.run_state(), RunState::Running);
    source.await_passes(2);
    source.quit();
}

#[test]
fn a_failed_migration_leaves_a_running_guest_that_stops_and_goes_on() {
    let Some(dir) = lab() else { return };
    let source = Machine::start(dir.path(), None);
    source.await_passes(1);
    assert_eq!(source.migrate(&door(dir.path(), "nobody")), MigrationStatus::Failed);
    source.handle.ask(Request::Stop).unwrap();
    source.handle.ask(Request::Cont).unwrap();
    source.await_passes(2);
    source.quit();
}
