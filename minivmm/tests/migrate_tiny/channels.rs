//! Migrations with page channels, uncompressed and compressed, also after a cancelled one.

use std::time::Duration;

use minivmm::vm::{MigrationStatus, ParameterChange, Request, RunState, Terms};
use vmstate::migrate::ParameterValue;

use crate::machine::{Machine, TIMEOUT, free_port, lab, running, unix_address, until};

fn choose(machine: &Machine, channels: u64, compression: &'static str) {
    let change = ParameterChange::default()
        .with("multifd", true)
        .with("multifd-channels", channels)
        .with("multifd-compression", ParameterValue::Word(compression.into()));
    machine.handle.ask(Request::MigrateSetParameters(change)).unwrap();
}

#[test]
fn a_guest_goes_over_any_number_of_channels() {
    let Some(dir) = lab() else { return };
    let mut here = Machine::start(dir.path(), None);
    here.await_passes(2);
    for (address, channels, compression) in [
        (unix_address(dir.path(), "one"), 1, "none"),
        (free_port(), 4, "zstd"),
        (unix_address(dir.path(), "many"), 9, "none"),
    ] {
        // A destination without parameters.
        let there = Machine::start(dir.path(), Some(&address));
        choose(&here, channels, compression);
        assert_eq!(here.migrate(&address), MigrationStatus::Completed, "{:?}", here.handle.migration());
        until(|| there.handle.run_state() == RunState::Running, || format!("{:?}", there.handle.run_state()));
        there.await_passes(2);
        here.quit();
        here = there;
    }
    here.quit();
}

#[test]
fn a_cancelled_migration_over_channels_leaves_the_guest_here_and_the_next_one_succeeds() {
    let Some((dir, source)) = running() else { return };
    choose(&source, 4, "none");
    source.limit(Duration::from_millis(1), 1 << 20);
    let address = unix_address(dir.path(), "refused");
    let mut first = Machine::start(dir.path(), Some(&address));
    source.handle.ask(Request::Migrate(address, Terms::default())).unwrap();
    until(|| source.handle.migration().figures.normal_pages > 0, || format!("{:?}", source.handle.migration()));
    source.handle.ask(Request::MigrateCancel).unwrap();
    assert_eq!(source.handle.migration().status(), MigrationStatus::Cancelled);
    first.thread.take().unwrap().join().unwrap();
    source.await_passes(2);
    source.limit(TIMEOUT, 0);
    let address = unix_address(dir.path(), "taken");
    let second = Machine::start(dir.path(), Some(&address));
    assert_eq!(source.migrate(&address), MigrationStatus::Completed, "{:?}", source.handle.migration());
    second.await_passes(2);
    source.quit();
    second.quit();
}
