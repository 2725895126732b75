//! Requests of a user or of the guest during a migration take effect, or are refused with a message; none is acknowledged and
//! forgotten.

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use minivmm::config::Address;
use minivmm::vm::{End, MigrationStatus, ParameterChange, Request, RunState, Terms};
use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::machine::{Machine, Pair, TIMEOUT, lab, pair, running, unix_address, until};
use crate::proxy::{Proxy, Word};

/// A unix listener that accepts no connection, and the connections that fill its backlog.
fn full_backlog(address: &Address) -> (UnixListener, Vec<std::os::fd::OwnedFd>) {
    let Address::Unix(path) = address else { panic!("a unix socket") };
    let listener = UnixListener::bind(path).unwrap();
    let mut filling = Vec::new();
    loop {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        match connect(client.as_raw_fd(), &UnixAddr::new(path).unwrap()) {
            Ok(()) => filling.push(client),
            Err(Errno::EAGAIN) => return (listener, filling),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Bound for an answer that is promised within 100 ms, for a busy host: below the waits that it must not include, for a
/// connection (10 s) or an answer of the other side (a minute).
const AT_ONCE: Duration = Duration::from_secs(9);

#[test]
fn a_migration_that_does_not_get_through_is_cancelled_at_once() {
    let Some((dir, source)) = running() else { return };
    let address = unix_address(dir.path(), "full");
    let _full = full_backlog(&address);
    let statuses = source.statuses();
    source.handle.ask(Request::Migrate(address, Terms::default())).unwrap();
    // Long enough to be in the middle of the connect.
    std::thread::sleep(Duration::from_millis(100));
    let asked = Instant::now();
    source.handle.ask(Request::MigrateCancel).unwrap();
    assert!(asked.elapsed() < AT_ONCE, "answered after {:?}", asked.elapsed());
    assert_eq!(*statuses.lock().unwrap(), ["setup", "cancelling", "cancelled"]);
    assert_eq!(source.handle.run_state(), RunState::Running);
    source.await_passes(2);
    source.quit();
}

#[test]
fn a_reset_or_quit_does_not_wait_for_a_connection() {
    let Some((dir, source)) = running() else { return };
    let address = unix_address(dir.path(), "full");
    let _full = full_backlog(&address);
    source.handle.ask(Request::Migrate(address.clone(), Terms::default())).unwrap();
    let asked = Instant::now();
    source.handle.ask(Request::Reset).unwrap();
    assert!(asked.elapsed() < AT_ONCE, "answered after {:?}", asked.elapsed());
    assert_eq!(source.handle.migration().status(), MigrationStatus::Setup, "it goes on");
    until(|| source.boots() == 2, || "no second boot".into());
    source.handle.ask(Request::Quit).unwrap();
    assert_eq!(source.end(), End::Quit);
}

/// As in QEMU, a migration continues through resets, by the guest and by the user, repeatedly, while pages are sent.
#[test]
fn resets_go_along_with_a_migration() {
    let Some((dir, source)) = running() else { return };
    // A round takes half a minute, and leaves more than fits into the pause.
    source.limit(Duration::from_millis(1), 256 << 10);
    let address = unix_address(dir.path(), "incoming");
    let destination = Machine::start(dir.path(), Some(&address));
    source.handle.ask(Request::Migrate(address, Terms::default())).unwrap();
    for times in 1..=3 {
        let sent = source.handle.migration().figures.bytes;
        until(|| source.handle.migration().figures.bytes > sent, || format!("{:?}", source.handle.migration()));
        assert_eq!(source.keyboard.send(b"r"), 1);
        until(|| source.boots() == 2 * times, || "no boot after the guest's reset".into());
        source.await_passes(1);
        source.handle.ask(Request::Reset).unwrap();
        until(|| source.boots() == 2 * times + 1, || "no boot after the user's reset".into());
        assert_eq!(source.handle.migration().status(), MigrationStatus::Active, "{:?}", source.handle.migration());
    }
    source.await_passes(1);
    source.limit(TIMEOUT, 0);
    assert_eq!(source.await_end(), MigrationStatus::Completed, "{:?}", source.handle.migration());
    // The guest checks all of its memory in each pass, and does not notice the migration.
    destination.await_passes(3);
    assert_eq!((source.boots(), destination.boots()), (7, 0));
    source.quit();
    destination.quit();
}

#[test]
fn statuses_follow_the_phases_on_both_sides() {
    let Some(Pair { dir: _dir, source, address, destination }) = pair() else { return };
    let (there, here) = (destination.statuses(), source.statuses());
    assert_eq!(source.migrate(&address), MigrationStatus::Completed);
    // Events are published just after the state can be queried.
    for seen in [&here, &there] {
        until(|| seen.lock().unwrap().last() == Some(&"completed"), || format!("{:?}", seen.lock().unwrap()));
    }
    assert_eq!(*here.lock().unwrap(), ["setup", "active", "device", "completed"]);
    // The first event may have come before the subscription.
    let there = there.lock().unwrap();
    assert_eq!(there.strip_prefix(&["setup"]).unwrap_or(&there), ["active", "device", "completed"]);
    drop(there);
    source.quit();
    destination.quit();
}

#[test]
fn a_stop_at_a_waiting_destination_is_kept_and_cont_takes_it_back() {
    let Some(Pair { dir, source, address, destination: stopped }) = pair() else { return };
    stopped.handle.ask(Request::Stop).unwrap();
    assert!(stopped.handle.ask(Request::Reset).unwrap_err().0.contains("no guest has arrived"));
    assert!(stopped.handle.ask(Request::PowerDown).is_err());
    assert!(stopped.handle.ask(Request::MigrateCancel).is_err());
    assert_eq!(stopped.keyboard.send(b"q"), 0, "the port's state is still to come");
    assert_eq!(source.migrate(&address), MigrationStatus::Completed, "{:?}", source.handle.migration());
    stopped.await_state(RunState::Paused);
    source.quit();
    assert_eq!(stopped.passes(), 0);
    stopped.handle.ask(Request::Cont).unwrap();
    stopped.await_passes(2);

    let address = unix_address(dir.path(), "second");
    let running = Machine::start(dir.path(), Some(&address));
    running.handle.ask(Request::Stop).unwrap();
    running.handle.ask(Request::Cont).unwrap();
    assert_eq!(stopped.migrate(&address), MigrationStatus::Completed, "{:?}", stopped.handle.migration());
    running.await_passes(2);
    stopped.quit();
    running.quit();
}

#[test]
fn other_connections_do_not_end_a_waiting_destination() {
    let Some(Pair { dir: _dir, source, address, destination }) = pair() else { return };
    let Address::Unix(path) = &address else { unreachable!() };
    drop(UnixStream::connect(path).unwrap());
    let mut loud = UnixStream::connect(path).unwrap();
    std::io::Write::write_all(&mut loud, b"GET / HTTP/1.0\r\n\r\n").unwrap();
    drop(loud);
    assert_eq!(destination.handle.run_state(), RunState::InMigrate);
    destination.handle.ask(Request::Stop).unwrap();
    destination.handle.ask(Request::Cont).unwrap();
    // A source that the engine reads from: its stream has the wrong version.
    let mut other = UnixStream::connect(path).unwrap();
    std::io::Write::write_all(&mut other, b"QEVM\0\0\0\x02").unwrap();
    drop(other);
    until(|| destination.handle.migration().error.is_some(), || "no word of the stream of another version".into());
    assert_eq!(destination.handle.migration().status(), MigrationStatus::Setup);
    assert_eq!(source.migrate(&address), MigrationStatus::Completed, "{:?}", source.handle.migration());
    destination.await_passes(2);
    assert_eq!(destination.handle.migration().error, None);
    source.quit();
    destination.quit();
}

#[test]
fn a_waiting_destination_quits_and_leaves_no_socket() {
    let Some(dir) = lab() else { return };
    let address = unix_address(dir.path(), "incoming");
    let destination = Machine::start(dir.path(), Some(&address));
    destination.handle.ask(Request::Quit).unwrap();
    assert_eq!(destination.end(), End::Quit);
    assert!(!dir.path().join("incoming").exists(), "the socket's file is left");
}

/// Returns source, destination, and a wire that holds `word` while the source's guest is stopped.
fn held_at(word: Word, dir: &std::path::Path) -> (Machine, Machine, Proxy) {
    let source = Machine::start(dir, None);
    source.await_passes(1);
    let address = unix_address(dir, "incoming");
    let destination = Machine::start(dir, Some(&address));
    let proxy = Proxy::holding(word, dir, &address);
    source.handle.ask(Request::Migrate(proxy.address.clone(), Terms::default())).unwrap();
    until(|| proxy.holds(), || format!("{:?}", source.handle.migration()));
    assert_eq!(source.handle.run_state(), RunState::FinishMigrate);
    (source, destination, proxy)
}

/// These requests are refused, since the sections that would carry their effect to the destination are saved.
fn refused_meanwhile(source: &Machine) {
    for request in [Request::PowerDown, Request::Reset, Request::Stop, Request::Cont] {
        let refusal = source.handle.ask(request).unwrap_err().0;
        assert!(
            refusal.ends_with("the guest is being handed over: ask again when the migration has ended"),
            "{refusal}"
        );
    }
    let before = source.handle.parameters();
    let parameters = ParameterChange::default().with("downtime-limit", before.downtime_limit + TIMEOUT);
    let again = Request::Migrate(Address::Unix("/nowhere".into()), Terms { parameters, ..Terms::default() });
    assert!(source.handle.ask(again).unwrap_err().0.contains("under way already"));
    assert_eq!(source.handle.parameters(), before, "those of the migration that is under way");
    assert_eq!(source.keyboard.send(b"q"), 0, "a byte that the section does not hold would be lost");
}

#[test]
fn what_is_asked_during_a_switch_over_is_refused_and_may_be_asked_again_after_it_failed() {
    let Some(dir) = lab() else { return };
    let (source, destination, proxy) = held_at(Word::Ready, dir.path());
    refused_meanwhile(&source);
    proxy.cut();
    assert_eq!(source.await_end(), MigrationStatus::Failed);
    assert_eq!(source.handle.run_state(), RunState::Running);
    assert!(matches!(destination.end(), End::Failed(_)));
    source.handle.ask(Request::Stop).unwrap();
    source.handle.ask(Request::Cont).unwrap();
    source.await_passes(2);
    assert_eq!(source.keyboard.send(b"r"), 1);
    until(|| source.boots() == 2, || "no second boot".into());
    source.quit();
}

#[test]
fn what_is_asked_during_the_commit_is_refused_and_the_guest_is_at_the_destination() {
    let Some(dir) = lab() else { return };
    let (source, destination, proxy) = held_at(Word::TakesOver, dir.path());
    refused_meanwhile(&source);
    let refusal = source.handle.ask(Request::MigrateCancel).unwrap_err().0;
    assert!(refusal.contains("being handed over already"), "{refusal}");
    proxy.release();
    assert_eq!(source.await_end(), MigrationStatus::Completed, "{:?}", source.handle.migration());
    for request in [Request::PowerDown, Request::Reset, Request::Stop] {
        let refusal = source.handle.ask(request).unwrap_err().0;
        assert!(refusal.contains("the guest was handed over: ask at the destination"), "{refusal}");
    }
    assert_eq!(source.keyboard.send(b"q"), 0);
    destination.await_passes(2);
    assert_eq!(source.boots(), 1);
    source.quit();
    destination.quit();
}

/// A cancel while everything is loaded at the destination and the source is not informed yet.
#[test]
fn a_cancel_during_the_switch_over_lets_the_guest_go_on_at_once() {
    let Some(dir) = lab() else { return };
    let (source, destination, _proxy) = held_at(Word::Ready, dir.path());
    let statuses = source.statuses();
    let asked = Instant::now();
    source.handle.ask(Request::MigrateCancel).unwrap();
    assert!(asked.elapsed() < AT_ONCE, "answered after {:?}", asked.elapsed());
    assert_eq!(source.handle.run_state(), RunState::Running);
    assert_eq!(*statuses.lock().unwrap(), ["cancelling", "cancelled"]);
    assert!(matches!(destination.end(), End::Failed(_)));
    source.await_passes(2);
    source.quit();
}

/// As QEMU's capability `pause-before-switchover`.
#[test]
fn a_switch_over_waits_for_the_command_to_continue() {
    let Some((dir, source)) = running() else { return };
    let [at, next] = ["incoming", "next"].map(|name| unix_address(dir.path(), name));
    let there = Machine::start(dir.path(), Some(&at));
    let statuses = source.statuses();
    source.handle.set_pauses_before_switchover(true);
    let begin = |there: &Machine, at: &Address| {
        source.handle.ask(Request::Migrate(at.clone(), Terms::default())).unwrap();
        let status = || source.handle.migration().status();
        until(|| status() == MigrationStatus::PreSwitchover, || format!("{:?}", source.handle.migration()));
        assert_eq!(source.handle.run_state(), RunState::FinishMigrate);
        let stands = source.passes();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!((source.passes(), there.passes()), (stands, 0));
        let refusal = source.handle.ask(Request::Cont).unwrap_err().0;
        assert!(refusal.contains("the guest is being handed over"), "{refusal}");
    };
    begin(&there, &at);
    source.handle.ask(Request::MigrateCancel).unwrap();
    assert_eq!(source.handle.migration().status(), MigrationStatus::Cancelled);
    assert_eq!(source.handle.run_state(), RunState::Running);
    source.await_passes(1);
    let refusal = source.handle.ask(Request::MigrateContinue).unwrap_err().0;
    assert_eq!(refusal, "no migration from here is under way");

    // The guest that arrived in part ended the first destination.
    there.end();
    let there = Machine::start(dir.path(), Some(&next));
    begin(&there, &next);
    source.handle.ask(Request::MigrateContinue).unwrap();
    assert_eq!(source.await_end(), MigrationStatus::Completed, "{:?}", source.handle.migration());
    there.await_passes(2);
    until(|| statuses.lock().unwrap().contains(&"completed"), || format!("{statuses:?}"));
    let waits = ["setup", "active", "pre-switchover"];
    let all = [&waits[..], &["cancelling", "cancelled"], &waits, &["device", "completed"]].concat();
    assert_eq!(*statuses.lock().unwrap(), all);
    source.quit();
    there.quit();
}

/// A thread that waits for a lock sleeps, which getrusage(2) counts. Waiting for a processor is not counted.
#[test]
fn a_query_does_not_wait_during_a_migration() {
    let Some((dir, source)) = running() else { return };
    let at = unix_address(dir.path(), "incoming");
    let there = Machine::start(dir.path(), Some(&at));
    let sleeps = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().voluntary_context_switches();
    let (mut asked, mut slept, mut longest) = (0_u32, 0_u32, Duration::ZERO);
    source.handle.ask(Request::Migrate(at, Terms::default())).unwrap();
    while source.handle.run_state() != RunState::PostMigrate {
        let (begun, before) = (Instant::now(), sleeps());
        let info = source.handle.migration();
        asked += 1;
        slept += u32::from(sleeps() > before);
        longest = longest.max(begun.elapsed());
        assert!(info.error.is_none(), "{info:?}");
    }
    println!("{asked} queries, {slept} of which slept; {longest:?} at most");
    assert!(asked > 100 && slept * 100 <= asked, "{slept} of {asked} queries waited for a lock");
    there.await_passes(1);
    source.quit();
    there.quit();
}
