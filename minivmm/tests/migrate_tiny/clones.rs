//! The generation id of a guest: unchanged wherever one guest continues, and new in each guest that begins from a file. The
//! guest itself prints the id in its memory and the events of its event device.

use std::fs;
use std::path::Path;
use std::thread;

use minivmm::config::{Address, ListenAt};
use minivmm::vm::{MigrationStatus, Request, RunState, Terms};
use vmstate_lab::tiny::generation::{bzimage, events, ids};
use vmstate_lab::vmm::listens;

use crate::machine::{Machine, lab, unix_address, until};

/// The event of a changed id (docs/minivmm-devices.md).
const CHANGED: &str = "00000080";

fn start(dir: &Path, incoming: Option<&Address>, shares_memory: bool) -> Machine {
    Machine::start_config(dir, &bzimage(), |config| {
        config.incoming = incoming.cloned().map(ListenAt::Address);
        config.shares_memory = shares_memory;
    })
}

/// Asks the guest for its id.
fn asked(machine: &Machine) -> String {
    machine.await_state(RunState::Running);
    let before = ids(&machine.printed()).len();
    assert_eq!(machine.keyboard.send(b"?"), 1);
    await_id(machine, before)
}

/// Returns the id once the guest has printed more than `before` ids.
fn await_id(machine: &Machine, before: usize) -> String {
    let printed = || ids(&machine.printed());
    until(|| printed().len() > before, || format!("{:?} {:?}", machine.handle.run_state(), machine.handle.migration()));
    printed().pop().unwrap()
}

/// Returns the id of an arrived guest, which prints only a change.
fn changed(machine: &Machine) -> String {
    let id = await_id(machine, 0);
    until(|| !events(&machine.printed()).is_empty(), || "no event was told".into());
    assert_eq!(events(&machine.printed()), [CHANGED]);
    id
}

fn snapshot(source: &Machine, dir: &Path, name: &str, terms: Terms) -> Address {
    let file = Address::File { path: dir.join(name), offset: 0 };
    source.handle.ask(Request::Migrate(file.clone(), terms)).unwrap();
    assert_eq!(source.await_end(), MigrationStatus::Completed, "{:?}", source.handle.migration());
    file
}

#[test]
fn each_clone_has_its_own_id_and_gets_an_event() {
    let Some(dir) = lab() else { return };
    let source = start(dir.path(), None, false);
    let first = await_id(&source, 0);
    assert_ne!(first, "00000000 00000000 00000000 00000000");
    source.handle.ask(Request::Reset).unwrap();
    assert_eq!(await_id(&source, 1), first, "a guest that resets is the same guest");
    let file = snapshot(&source, dir.path(), "state", Terms { keeps_running: true, ..Terms::default() });
    assert_eq!(asked(&source), first);

    let clones = [start(dir.path(), Some(&file), false), start(dir.path(), Some(&file), false)];
    let [one, other] = clones.each_ref().map(changed);
    assert!(one != first && other != first && one != other, "{first} {one} {other}");
    assert_eq!(asked(&clones[0]), one);
    assert_eq!((asked(&source), events(&source.printed()).len()), (first, 0));

    // A clone's file can be cloned, too.
    let [clone, rest] = clones;
    rest.quit();
    let again = snapshot(&clone, dir.path(), "again", Terms { keeps_running: true, ..Terms::default() });
    let third = start(dir.path(), Some(&again), false);
    assert_ne!(changed(&third), one);
    for machine in [source, clone, third] {
        machine.quit();
    }
}

#[test]
fn a_guest_that_moves_keeps_its_id() {
    let Some(dir) = lab() else { return };
    let source = start(dir.path(), None, true);
    let first = await_id(&source, 0);
    let local = Address::Local(dir.path().join("local"));
    let socket = dir.path().join("local");
    let (folder, at) = (dir.path().to_owned(), local.clone());
    let next = thread::spawn(move || start(&folder, Some(&at), true));
    until(|| listens(std::process::id(), &socket), || "nobody listens".into());
    assert_eq!(source.migrate(&local), MigrationStatus::Completed, "{:?}", source.handle.migration());
    let next = next.join().unwrap();
    let at = unix_address(dir.path(), "incoming");
    let last = start(dir.path(), Some(&at), false);
    assert_eq!(asked(&next), first);
    assert_eq!(next.migrate(&at), MigrationStatus::Completed, "{:?}", next.handle.migration());
    assert_eq!(asked(&last), first);
    assert!([&next, &last].iter().all(|machine| events(&machine.printed()).is_empty()));
    for machine in [source, next, last] {
        machine.quit();
    }
}

/// A source that only sends bytes may send them to several destinations.
#[test]
fn a_guest_out_of_a_pipe_may_be_a_clone() {
    let Some(dir) = lab() else { return };
    let source = start(dir.path(), None, false);
    let first = await_id(&source, 0);
    let file = dir.path().join("stream");
    let release = dir.path().join("release");
    source.handle.ask(Request::DumpSchema(release.clone())).unwrap();
    // A file in another layout, the one for a pipe.
    let terms = Terms { release: Some(release), ..Terms::default() };
    snapshot(&source, dir.path(), "stream", terms);
    source.quit();
    let pipe = Address::Exec(format!("cat '{}'", file.display()));
    let there = start(dir.path(), Some(&pipe), false);
    assert_ne!(changed(&there), first);
    there.quit();
}

#[test]
fn a_guest_whose_state_has_no_id_keeps_its_memory() {
    let Some(dir) = lab() else { return };
    let source = start(dir.path(), None, false);
    let first = await_id(&source, 0);
    let today = dir.path().join("today");
    source.handle.ask(Request::DumpSchema(today.clone())).unwrap();
    let mut schema: serde_json::Value = serde_json::from_slice(&fs::read(&today).unwrap()).unwrap();
    schema.as_object_mut().unwrap().remove("minivmm/generation").expect("today's release has it");
    let release = dir.path().join("release");
    fs::write(&release, schema.to_string()).unwrap();
    let file = snapshot(&source, dir.path(), "state", Terms { release: Some(release), ..Terms::default() });
    source.quit();
    let there = start(dir.path(), Some(&file), false);
    assert_eq!(asked(&there), first);
    assert_eq!(events(&there.printed()), [""; 0]);
    there.quit();
}
