//! `minivmm migrate` in post-copy, with a thread instead of the driver.

use minivmm::config::Address;
use minivmm::vm::Request;
use vmstate::migrate::{Phase, SourcePhase};

use super::{machine, migrate};

/// The command that began the migration reconnects, and so does one with `--resume`.
#[test]
fn a_connection_that_breaks_in_post_copy_is_made_again() {
    let (directory, _server, requests) = machine(|shared| {
        shared.update_migration(|info| {
            (info.phase, info.error) = (Phase::Source(SourcePhase::PostcopyPaused), Some("the wire broke".into()));
        });
    });
    let there = Address::Unix("/run/there".into());
    let output = migrate(directory.path()).arg("--postcopy").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("the wire broke (this command reconnects until it succeeds; Ctrl-C gives"), "{said}");
    assert!(said.contains("migrated to unix:/run/there"), "{said}");
    let asked = [requests.recv(), requests.recv(), requests.recv()].map(Result::unwrap);
    assert!(matches!(asked[0], Request::Migrate(..)), "{asked:?}");
    assert_eq!(asked[1..], [Request::MigrateStartPostcopy, Request::MigrateResume(there.clone())]);

    let output = migrate(directory.path()).arg("--resume").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(requests.recv().unwrap(), Request::MigrateResume(there));
}
