//! A guest is handed over to another machine of this host with its memory in place. The guest checks its memory; the number of
//! sent pages shows that none was copied.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};

use minivmm::config::Address;
use minivmm::vm::{MigrationStatus, ParameterChange, Request, RunState, Terms};
use vmstate::migrate::ParameterValue;
use vmstate_lab::vmm::listens;

use crate::machine::{Machine, free_port, lab, until};
use crate::tls::{certificates, set};

const MEMORY: u64 = 16 << 20;

/// Starts a machine that is made when a guest is handed over at `at`: no part of it, such as memory, exists before.
fn awaiting(dir: &Path, at: &Address, memory: u64) -> JoinHandle<Machine> {
    let Address::Local(socket) = at else { panic!("{at}") };
    let (dir, at, socket) = (dir.to_owned(), at.clone(), socket.clone());
    let machine = thread::spawn(move || Machine::start_shared(&dir, Some(&at), memory));
    until(|| listens(std::process::id(), &socket), || "nobody listens".into());
    machine
}

/// Hands the guest of `source` over at `at`, and returns the new machine.
fn handed_over(source: &Machine, dir: &Path, at: &Address) -> Machine {
    let there = awaiting(dir, at, MEMORY);
    assert_eq!(source.migrate(at), MigrationStatus::Completed, "{:?}", source.handle.migration().error);
    there.join().unwrap()
}

/// Two hand-overs to a new machine, then a migration that copies: it sends what the first two machines have written.
#[test]
fn a_guest_goes_on_in_the_same_memory() {
    let Some(dir) = lab() else { return };
    let mut source = Machine::start_shared(dir.path(), None, MEMORY);
    source.await_passes(1);
    let bitmap = |machine: &Machine| {
        let bitmaps = &machine.handle.inventory().disks[0].bitmaps;
        bitmaps.each(|bitmap| (bitmap.name().to_owned(), bitmap.words().to_vec(), bitmap.is_busy()))
    };
    source.handle.inventory().disks[0].bitmaps.add("b", 512, true).unwrap();
    source.handle.inventory().disks[0].bitmaps.mark(600, 1);
    for name in ["first", "second"] {
        source.handle.set_sends_dirty_bitmaps(true);
        let at = Address::Local(dir.path().join(name));
        let there = handed_over(&source, dir.path(), &at);
        there.await_state(RunState::Running);
        there.await_passes(2);
        assert_eq!(bitmap(&there), [("b".to_owned(), vec![2], false)]);
        let figures = source.handle.migration().figures;
        assert_eq!(figures.normal_pages + figures.zero_pages, 0, "{figures:?}");
        assert_eq!((source.handle.run_state(), there.boots()), (RunState::PostMigrate, 0));
        source.quit();
        source = there;
    }
    let at = free_port();
    let there = Machine::start(dir.path(), Some(&at));
    assert_eq!(source.migrate(&at), MigrationStatus::Completed, "{:?}", source.handle.migration().error);
    there.await_passes(2);
    let figures = source.handle.migration().figures;
    // All pages that the guest writes were sent, none of which was written by a device of the last machine.
    assert!(figures.normal_pages >= crate::machine::PAGES, "{figures:?}");
    source.quit();
    there.quit();
}

#[test]
fn a_guest_that_cannot_be_handed_over_runs_on() {
    let Some(dir) = lab() else { return };
    let at = Address::Local(dir.path().join("at"));
    let own = Machine::start(dir.path(), None);
    let why = own.handle.ask(Request::Migrate(at.clone(), Terms::default())).unwrap_err().0;
    assert!(why.contains("--share-memory on"), "{why}");
    let there = own.handle.ask(Request::MigrateIncoming { at: at.clone(), exit_on_error: true });
    there.unwrap_err();
    own.quit();

    let source = Machine::start_shared(dir.path(), None, MEMORY);
    source.await_passes(1);
    assert_eq!(source.migrate(&at), MigrationStatus::Failed);
    assert!(source.handle.migration().error.unwrap().contains("start the destination with --incoming"));

    // A machine that does not fit, which is made in vain.
    let there = awaiting(dir.path(), &at, 2 * MEMORY);
    assert_eq!(source.migrate(&at), MigrationStatus::Failed);
    assert!(there.join().is_err());
    source.await_passes(1);

    // A client that is no source, and leaves.
    let there = awaiting(dir.path(), &at, MEMORY);
    let Address::Local(path) = &at else { panic!() };
    drop(UnixStream::connect(path).unwrap());
    assert!(there.join().is_err());

    let there = handed_over(&source, dir.path(), &at);
    there.await_passes(1);
    source.quit();
    there.quit();
}

/// Encryption that was set for sockets does not apply to a hand-over, nor to files.
#[test]
fn a_machine_that_encrypts_its_migrations_can_hand_its_guest_over() {
    let Some(dir) = lab() else { return };
    let source = Machine::start_shared(dir.path(), None, MEMORY);
    source.await_passes(1);
    let (certs, _) = certificates(dir.path().join("certs"), false);
    let at = Address::Local(dir.path().join("at"));
    let parameters = ParameterChange::default().with("tls-creds", ParameterValue::Word(certs.clone().into()));
    let asked = source.handle.ask(Request::Migrate(at.clone(), Terms { parameters, ..Terms::default() }));
    let why = asked.unwrap_err().0;
    assert!(why.contains("stays on this host and is not encrypted"), "{why}");
    set(&source, &[("tls-creds", &certs), ("tls-hostname", "there")]);
    let there = handed_over(&source, dir.path(), &at);
    there.await_passes(1);
    source.quit();
    there.quit();
}
