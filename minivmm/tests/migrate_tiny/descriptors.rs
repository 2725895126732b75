//! Migrations over passed descriptors: live over a socket, and with a stopped guest into a pipe and out of it.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use minivmm::config::{Address, Descriptor, ListenAt};
use minivmm::vm::{MigrationStatus, ParameterChange, Request, RunState, Terms};
use vmstate::migrate::ParameterValue;

use crate::machine::{Machine, lab, until};

fn passed(descriptor: impl Into<OwnedFd>) -> Address {
    Address::Descriptor { name: "move".into(), passed: Some(Descriptor::from(descriptor.into())) }
}

/// Migrates from `out` to `input`; with `in_rounds`, the guest runs meanwhile, since the destination answers.
fn moves(out: impl Into<OwnedFd>, input: impl Into<OwnedFd>, in_rounds: bool) {
    let Some(dir) = lab() else { return };
    let source = Machine::start(dir.path(), None);
    source.await_passes(1);
    let there = Machine::start_listening(dir.path(), ListenAt::Deferred);
    let statuses = source.statuses();
    let at = passed(input);
    there.handle.ask(Request::MigrateIncoming { at, exit_on_error: false }).unwrap();
    assert_eq!(source.migrate(&passed(out)), MigrationStatus::Completed, "{:?}", source.handle.migration());
    there.await_passes(2);
    assert_eq!(source.handle.run_state(), RunState::PostMigrate);
    // The status is published a moment after the end is visible.
    until(|| statuses.lock().unwrap().contains(&"completed"), || format!("{statuses:?}"));
    assert_eq!(statuses.lock().unwrap().contains(&"active"), in_rounds);
    source.quit();
    there.quit();
}

#[test]
fn a_guest_goes_over_a_socket_that_was_passed() {
    let (out, input) = UnixStream::pair().unwrap();
    moves(out, input, true);
}

#[test]
fn a_guest_goes_through_a_pipe() {
    let (input, out) = std::io::pipe().unwrap();
    moves(out, input, false);
}

#[test]
fn what_does_not_carry_a_guest_is_refused_and_the_guest_runs_on() {
    let Some(dir) = lab() else { return };
    let source = Machine::start(dir.path(), None);
    source.await_passes(1);
    let refused = |to: Address| source.handle.ask(Request::Migrate(to, Terms::default())).unwrap_err().0;
    let fitting = "pass a stream socket, a pipe, or a regular file";
    let path = dir.path().join("file");
    std::fs::write(&path, "text").unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let nothing = Address::Descriptor { name: "move".into(), passed: None };
    for (to, why) in [
        (passed(datagrams), "it is no stream socket of unix, TCP or vsock"),
        (passed(File::open(&path).unwrap()), "it is open for reading only"),
        (passed(File::open(dir.path()).unwrap()), "it is a directory"),
        (passed(std::io::pipe().unwrap().0), "it is open for reading only"),
        (nothing, "no descriptor of this name was passed"),
    ] {
        assert_eq!(refused(to), format!("fd:move: {why}; {fitting}"));
    }
    let disk = File::options().write(true).open(dir.path().join("disk")).unwrap();
    assert_eq!(
        refused(passed(disk)),
        "fd:move: it is disk 1 of this machine; give the guest's state a file of its own"
    );
    assert!(refused(Address::Exec("cat".into())).contains("a machine that runs starts no programs"));

    let set = |name, value: ParameterValue| {
        source.handle.ask(Request::MigrateSetParameters(ParameterChange::default().with(name, value))).unwrap();
    };
    let socket = || passed(UnixStream::pair().unwrap().0);
    set("multifd", true.into());
    assert!(refused(socket()).contains("fd:move takes one stream"));
    set("multifd", false.into());
    let wanted = minivmm::certificates::Wanted {
        directory: dir.path().join("certs"),
        hosts: vec!["there".into()],
        days: 1,
        self_signed: false,
    };
    minivmm::certificates::make(&wanted).unwrap();
    set("tls-creds", ParameterValue::Word(wanted.directory.display().to_string().into()));
    let unix = Address::Unix(dir.path().join("nobody"));
    for to in [socket(), unix] {
        let (name, why) = (to.to_string(), refused(to));
        assert!(why.starts_with(&format!("{name} names no host")) && why.contains("set tls-hostname"), "{why}");
    }
    source.await_passes(1);
    assert_eq!(source.handle.run_state(), RunState::Running);
    source.quit();
}
