//! A machine that waits for a guest without an address, gets one, and gets another one after a guest that arrived only in part.

use std::path::Path;

use minivmm::config::ListenAt;
use minivmm::vm::{End, MigrationStatus, Request, RunState, Terms};

use crate::machine::{Machine, running, unix_address};

fn incoming(dir: &Path, name: &str, exit_on_error: bool) -> Request {
    Request::MigrateIncoming { at: unix_address(dir, name), exit_on_error }
}

/// The migration breaks in the middle of its pages, so the destination has changed; then the same guest arrives completely.
#[test]
fn a_destination_that_failed_waits_again_and_takes_the_guest() {
    let Some((dir, source)) = running() else { return };
    let there = Machine::start_listening(dir.path(), ListenAt::Deferred);
    assert_eq!(there.handle.run_state(), RunState::InMigrate);
    assert_eq!(there.handle.migration().status(), MigrationStatus::None);
    for attempt in ["first", "second"] {
        source.limit(std::time::Duration::from_millis(1), 1 << 20);
        there.handle.ask(incoming(dir.path(), attempt, false)).unwrap();
        let refusal = there.handle.ask(incoming(dir.path(), attempt, false)).unwrap_err();
        assert_eq!(refusal.0, "The incoming migration has already been started");
        source.handle.ask(Request::Migrate(unix_address(dir.path(), attempt), Terms::default())).unwrap();
        crate::machine::until(
            || there.handle.migration().figures.normal_pages > 0,
            || format!("{:?}", there.handle.migration()),
        );
        source.handle.ask(Request::MigrateCancel).unwrap();
        assert_eq!(there.await_end(), MigrationStatus::Failed);
        assert_eq!(there.handle.run_state(), RunState::InMigrate);
        assert!(!dir.path().join(attempt).exists(), "the socket stays after the attempt");
        source.await_passes(1);
    }
    there.handle.ask(incoming(dir.path(), "third", true)).unwrap();
    source.limit(crate::machine::TIMEOUT, 0);
    assert_eq!(source.migrate(&unix_address(dir.path(), "third")), MigrationStatus::Completed);
    there.await_passes(2);
    let refusal = there.handle.ask(incoming(dir.path(), "fourth", true)).unwrap_err();
    assert_eq!(refusal.0, "'-incoming' was not specified on the command line");
    source.quit();
    there.quit();
}

#[test]
fn an_address_that_cannot_be_had_is_refused_and_a_stop_before_any_address_holds() {
    let Some((dir, source)) = running() else { return };
    let there = Machine::start_listening(dir.path(), ListenAt::Deferred);
    std::fs::write(dir.path().join("taken"), "").unwrap();
    let refusal = there.handle.ask(incoming(dir.path(), "taken", true)).unwrap_err();
    assert!(refusal.0.ends_with("give an address that nobody listens at"), "{refusal}");
    there.handle.ask(Request::Stop).unwrap();
    there.handle.ask(incoming(dir.path(), "free", true)).unwrap();
    assert_eq!(source.migrate(&unix_address(dir.path(), "free")), MigrationStatus::Completed);
    there.await_state(RunState::Paused);
    source.quit();
    let _ = there.handle.ask(Request::Quit);
    assert_eq!(there.end(), End::Quit);
}
