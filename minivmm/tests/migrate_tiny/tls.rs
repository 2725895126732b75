//! Encrypted migrations between two machines: the guest arrives over page channels, or stays and both sides give the reason.

use std::path::{Path, PathBuf};

use minivmm::certificates::{Wanted, make};
use minivmm::config::ListenAt;
use minivmm::vm::{MigrationStatus, ParameterChange, Request, RunState};
use vmstate::migrate::ParameterValue;

use crate::machine::{Machine, TIMEOUT, free_port, running, unix_address, until};

pub(crate) fn certificates(directory: PathBuf, self_signed: bool) -> (String, Vec<String>) {
    let wanted = Wanted { directory: directory.clone(), hosts: vec!["there".into()], days: 1, self_signed };
    let pins = make(&wanted).unwrap().into_iter().map(|(_, fingerprint)| fingerprint.to_string()).collect();
    (directory.display().to_string(), pins)
}

pub(crate) fn set(machine: &Machine, parameters: &[(&'static str, &str)]) {
    let word = |text: &str| ParameterValue::Word(text.to_owned().into());
    let change = parameters.iter().fold(ParameterChange::default(), |all, (name, text)| all.with(name, word(text)));
    machine.handle.ask(Request::MigrateSetParameters(change)).unwrap();
}

/// Starts a destination with these parameters, which waits at `at`.
pub(crate) fn waiting(dir: &Path, at: &minivmm::config::Address, parameters: &[(&'static str, &str)]) -> Machine {
    let there = Machine::start_listening(dir, ListenAt::Deferred);
    set(&there, parameters);
    there.handle.ask(Request::MigrateIncoming { at: at.clone(), exit_on_error: true }).unwrap();
    there
}

#[test]
fn a_guest_moves_encrypted_over_page_channels() {
    let Some((dir, source)) = running() else { return };
    let (certs, _) = certificates(dir.path().join("certs"), false);
    let at = free_port();
    let there = waiting(dir.path(), &at, &[("tls-creds", &certs), ("tls-authz", "CN=minivmm client")]);
    set(&source, &[("tls-creds", &certs), ("tls-hostname", "there")]);
    let channels = ParameterChange::default().with("multifd", true).with("multifd-channels", 2);
    source.handle.ask(Request::MigrateSetParameters(channels)).unwrap();
    assert_eq!(source.migrate(&at), MigrationStatus::Completed, "{:?}", source.handle.migration());
    there.await_passes(2);
    source.quit();
    there.quit();
}

/// Each refusal leaves the guest running and the destination waiting; in the end the guest arrives with pinned certificates.
#[test]
fn an_untrusted_peer_is_refused_and_both_sides_report_why() {
    let Some((dir, source)) = running() else { return };
    let (here, here_pins) = certificates(dir.path().join("here"), true);
    let (at_there, there_pins) = certificates(dir.path().join("there"), true);
    let (other, _) = certificates(dir.path().join("other"), false);
    let at = unix_address(dir.path(), "incoming");
    // Pins of each side: the server's, then the client's.
    let there = waiting(dir.path(), &at, &[("tls-creds", &at_there), ("tls-pin", &here_pins[1])]);
    let refused = |parameters: &[(&'static str, &str)], here: &str, there_says: &str| {
        set(&source, &[("tls-creds", ""), ("tls-hostname", ""), ("tls-pin", "")]);
        set(&source, parameters);
        assert_eq!(source.migrate(&at), MigrationStatus::Failed);
        let error = source.handle.migration().error.unwrap();
        assert!(error.contains(here), "{error}");
        let told = || there.handle.migration().error.unwrap_or_default();
        until(|| told().contains(there_says), || format!("not '{there_says}': {}", told()));
        assert_eq!(there.handle.run_state(), RunState::InMigrate);
        assert_eq!(source.handle.run_state(), RunState::Running);
    };
    refused(&[], "it speaks TLS", "a stream that is not encrypted");
    refused(
        &[("tls-creds", &other), ("tls-pin", &there_pins[0])],
        "this side's certificate is not accepted",
        "is not one of tls-pin",
    );
    refused(
        &[("tls-creds", &here), ("tls-pin", &here_pins[0])],
        "the server's certificate is not one of tls-pin",
        "the client refuses",
    );
    set(&source, &[("tls-creds", &here), ("tls-pin", &there_pins[0])]);
    source.limit(TIMEOUT, 0);
    assert_eq!(source.migrate(&at), MigrationStatus::Completed, "{:?}", source.handle.migration());
    there.await_passes(2);
    source.quit();
    there.quit();
}
