//! Post-copy: the guest runs at the destination while its pages are still at the source.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use minivmm::config::Address;
use minivmm::vm::{MigrationInfo, MigrationStatus, ParameterChange, Request, RunState, Terms};
use vmstate_lab::wait::find;

use crate::machine::{Machine, TIMEOUT, lab, unix_address, until};
use crate::tls::{certificates, set, waiting};

/// Starts a source with a downtime limit of zero, whose guest is so never migrated before post-copy, and a destination. `None` if the
/// host does not support post-copy.
fn machines(dir: &Path) -> Option<(Machine, Machine, Address)> {
    if let Err(error) = minivmm::memory::Ram::new(1 << 20).unwrap().check_postcopy() {
        vmstate_lab::skip::skip(error);
        return None;
    }
    let source = Machine::start(dir, None);
    source.await_passes(1);
    let change = ParameterChange::default().with("postcopy-ram", true).with("downtime-limit", Duration::ZERO);
    source.handle.ask(Request::MigrateSetParameters(change)).unwrap();
    let address = unix_address(dir, "incoming");
    let destination = Machine::start(dir, Some(&address));
    Some((source, destination, address))
}

#[test]
fn a_guest_runs_before_all_of_its_memory_is_there() {
    let Some(dir) = lab() else { return };
    let Some((source, destination, address)) = machines(dir.path()) else { return };
    let refusal = source.handle.ask(Request::MigrateStartPostcopy).unwrap_err().0;
    assert_eq!(refusal, "Start postcopy after migration has been started");
    let relay = Relay::new(dir.path(), &address);
    destination.handle.set_measures_block_time(true);
    let (here, there) = (source.statuses(), destination.statuses());
    source.handle.ask(Request::Migrate(relay.address.clone(), Terms::default())).unwrap();
    source.handle.ask(Request::MigrateStartPostcopy).unwrap();
    // After the switch-over, pages arrive slowly: requested ones, and the next ones in order.
    await_postcopy(&source, &destination);
    relay.slow.store(false, Ordering::SeqCst);
    assert_eq!(source.await_end(), MigrationStatus::Completed, "{:?}", source.handle.migration());
    destination.await_passes(2);
    let both = [here, there].map(|seen| seen.lock().unwrap().clone());
    assert!(both.iter().all(|seen| seen.ends_with(&["device", "postcopy-active", "completed"])), "{both:?}");
    assert_eq!(source.handle.run_state(), RunState::PostMigrate);
    assert!(source.handle.migration().figures.downtime.is_some());
    // There is one vCPU, so its block time is that of all vCPUs.
    let MigrationInfo { figures, block_time, .. } = destination.handle.migration();
    let blocked = block_time.unwrap();
    assert!(figures.page_waits.count > 0 && blocked.each == [blocked.all], "{blocked:?}, {figures:?}");
    assert!(Duration::ZERO < blocked.all && blocked.all <= figures.elapsed, "{blocked:?}, {figures:?}");
    assert_eq!(source.handle.migration().block_time, None);
    source.quit();
    // The destination can be the source of another migration.
    let address = unix_address(dir.path(), "next");
    let next = Machine::start(dir.path(), Some(&address));
    let change = ParameterChange::default().with("postcopy-ram", true);
    destination.handle.ask(Request::MigrateSetParameters(change)).unwrap();
    assert_eq!(destination.migrate(&address), MigrationStatus::Completed, "{:?}", destination.handle.migration());
    next.await_passes(2);
    destination.quit();
    next.quit();
}

#[test]
fn requested_pages_are_sent_on_a_second_connection() {
    let Some(dir) = lab() else { return };
    let Some((source, destination, address)) = machines(dir.path()) else { return };
    let change = ParameterChange::default().with("postcopy-preempt", true);
    source.handle.ask(Request::MigrateSetParameters(change)).unwrap();
    let mut relay = Relay::new(dir.path(), &address);
    source.handle.ask(Request::Migrate(relay.address.clone(), Terms::default())).unwrap();
    source.handle.ask(Request::MigrateStartPostcopy).unwrap();
    await_postcopy(&source, &destination);
    // With the first connection, and after a recovery.
    for recovers in [false, true] {
        if recovers {
            relay.cut.store(true, Ordering::SeqCst);
            await_status(&source, MigrationStatus::PostcopyPaused);
            await_status(&destination, MigrationStatus::PostcopyPaused);
            drop(relay);
            relay = Relay::new(dir.path(), &address);
            source.handle.ask(Request::MigrateResume(relay.address.clone())).unwrap();
            await_status(&destination, MigrationStatus::PostcopyActive);
        }
        until(|| relay.has_second.load(Ordering::SeqCst), || format!("{:?}", source.handle.migration()));
    }
    relay.slow.store(false, Ordering::SeqCst);
    assert_eq!(source.await_end(), MigrationStatus::Completed, "{:?}", source.handle.migration());
    destination.await_passes(2);
    source.quit();
    destination.quit();
}

/// Waits until the guest runs at the destination and the source has received the report of that: before, a source whose connection breaks
/// does not wait for another one.
fn await_postcopy(source: &Machine, destination: &Machine) {
    until(|| destination.handle.run_state() == RunState::Running, || format!("{:?}", source.handle.migration()));
    await_status(source, MigrationStatus::PostcopyActive);
}

fn await_status(machine: &Machine, status: MigrationStatus) {
    until(|| machine.handle.migration().status() == status, || format!("{:?}", machine.handle.migration()));
}

/// The relay or a command at either side breaks the connection, and the destination gets other addresses: the guest has all of its
/// memory in the end.
#[test]
fn a_migration_recovers_from_ten_cuts() {
    let Some(dir) = lab() else { return };
    let Some((source, destination, address)) = machines(dir.path()) else { return };
    let mut relay = Relay::new(dir.path(), &address);
    source.handle.ask(Request::Migrate(relay.address.clone(), Terms::default())).unwrap();
    source.handle.ask(Request::MigrateStartPostcopy).unwrap();
    await_postcopy(&source, &destination);
    for cut in 0..10 {
        await_status(&source, MigrationStatus::PostcopyActive);
        let received = destination.handle.migration().figures.normal_pages;
        match cut {
            3 => source.handle.pause_postcopy().unwrap(),
            6 => destination.handle.pause_postcopy().unwrap(),
            _ => relay.cut.store(true, Ordering::SeqCst),
        }
        await_status(&source, MigrationStatus::PostcopyPaused);
        await_status(&destination, MigrationStatus::PostcopyPaused);
        // The reason is published after the status.
        let reasons = || [&source, &destination].map(|machine| machine.handle.migration().error);
        until(|| reasons().iter().all(Option::is_some), || format!("cut {cut}: {:?}", reasons()));
        let said = reasons().map(Option::unwrap);
        assert!(said.iter().all(|why| why.contains("the connection broke")), "{said:?}");
        assert!(source.handle.ask(Request::Cont).is_err(), "the source resumes a stale guest");
        // The source reconnects to the first address, to the same address given again, or to another one.
        let target = match cut % 3 {
            0 => address.clone(),
            1 => {
                destination.handle.recover_postcopy(address.clone()).unwrap();
                address.clone()
            }
            _ => {
                let elsewhere = unix_address(dir.path(), &format!("incoming{cut}"));
                destination.handle.recover_postcopy(elsewhere.clone()).unwrap();
                elsewhere
            }
        };
        let refusal = destination.handle.recover_postcopy(Address::Local("x".into())).unwrap_err().0;
        assert!(refusal.contains("has to be there when the machine is made"), "{refusal}");
        if cut == 4 {
            // A new source connects first.
            let Address::Unix(path) = &target else { panic!("a unix socket") };
            UnixStream::connect(path).unwrap().write_all(b"QEVM\0\0\0\x03").unwrap();
        }
        drop(relay);
        relay = Relay::new(dir.path(), &target);
        // No process listens there.
        let nobody = Address::Unix(dir.path().join("nobody"));
        source.handle.ask(Request::MigrateResume(nobody)).unwrap();
        until(
            || source.handle.migration().error.is_some_and(|why| why.contains("nobody")),
            || format!("{:?}", source.handle.migration()),
        );
        source.handle.ask(Request::MigrateResume(relay.address.clone())).unwrap();
        until(
            || destination.handle.migration().figures.normal_pages > received,
            || format!("cut {cut}: {:?}, {:?}", source.handle.migration(), destination.handle.migration()),
        );
    }
    relay.slow.store(false, Ordering::SeqCst);
    assert_eq!(source.await_end(), MigrationStatus::Completed, "{:?}", source.handle.migration());
    destination.await_passes(2);
    let ends = [&source, &destination].map(|machine| machine.handle.migration());
    assert!(ends.iter().all(|end| end.status() == MigrationStatus::Completed && end.error.is_none()), "{ends:?}");
    source.quit();
    destination.quit();
}

/// The new connection is encrypted as the first one was, and accepts the same peer only.
#[test]
fn a_connection_that_takes_the_place_of_an_encrypted_one_is_encrypted() {
    let Some(dir) = lab() else { return };
    let Some((source, unused, _)) = machines(dir.path()) else { return };
    unused.quit();
    let (certs, _) = certificates(dir.path().join("certs"), false);
    let (others, _) = certificates(dir.path().join("others"), false);
    let address = unix_address(dir.path(), "encrypted");
    let destination = waiting(dir.path(), &address, &[("tls-creds", &certs), ("tls-authz", "CN=minivmm client")]);
    set(&source, &[("tls-creds", &certs), ("tls-hostname", "there")]);
    let change = ParameterChange::default().with("postcopy-preempt", true);
    source.handle.ask(Request::MigrateSetParameters(change)).unwrap();
    let mut relay = Relay::new(dir.path(), &address);
    source.handle.ask(Request::Migrate(relay.address.clone(), Terms::default())).unwrap();
    source.handle.ask(Request::MigrateStartPostcopy).unwrap();
    await_postcopy(&source, &destination);
    relay.cut.store(true, Ordering::SeqCst);
    await_status(&source, MigrationStatus::PostcopyPaused);
    for (creds, why) in [("", "it speaks TLS"), (others.as_str(), "certificate"), (certs.as_str(), "")] {
        await_status(&source, MigrationStatus::PostcopyPaused);
        set(&source, &[("tls-creds", creds)]);
        drop(relay);
        relay = Relay::new(dir.path(), &address);
        relay.slow.store(false, Ordering::SeqCst);
        source.handle.ask(Request::MigrateResume(relay.address.clone())).unwrap();
        let said = || source.handle.migration().error.unwrap_or_default();
        until(|| why.is_empty() || said().contains(why), || format!("not '{why}': {}", said()));
    }
    assert_eq!(source.await_end(), MigrationStatus::Completed, "{:?}", source.handle.migration());
    destination.await_passes(2);
    assert!(relay.has_second.load(Ordering::SeqCst), "requested pages had no connection of their own");
    source.quit();
    destination.quit();
}

/// After `migrate_cancel` in `postcopy-paused`, the guest at the destination is lost, and the source refuses to run its stale copy.
#[test]
fn a_cancelled_recovery_reports_where_the_guest_is() {
    let Some(dir) = lab() else { return };
    let Some((source, destination, address)) = machines(dir.path()) else { return };
    let refusals = [
        source.handle.pause_postcopy(),
        source.handle.recover_postcopy(address.clone()),
        source.handle.ask(Request::MigrateResume(address.clone())),
    ];
    let refusals = refusals.map(|refusal| refusal.unwrap_err().0);
    assert_eq!(
        refusals[0],
        "migrate-pause is currently only supported during postcopy-active or postcopy-recover state"
    );
    assert_eq!(refusals[1], "Migrate recover can only be run when postcopy is paused.");
    assert_eq!(refusals[2], "Cannot resume if there is no paused migration");
    let relay = Relay::new(dir.path(), &address);
    source.handle.ask(Request::Migrate(relay.address.clone(), Terms::default())).unwrap();
    source.handle.ask(Request::MigrateStartPostcopy).unwrap();
    await_postcopy(&source, &destination);
    relay.cut.store(true, Ordering::SeqCst);
    await_status(&source, MigrationStatus::PostcopyPaused);
    await_status(&destination, MigrationStatus::PostcopyPaused);
    let file = Address::File { path: dir.path().join("file"), offset: 0 };
    // Refused at once: a monitor that waited for the end of post-copy would wait for ever.
    let refusal = destination.handle.ask(Request::Migrate(file.clone(), Terms::default())).unwrap_err().0;
    assert!(refusal.contains("still at its source"), "{refusal}");
    let refusal = destination.handle.ask(Request::Reset).unwrap_err().0;
    assert!(refusal.contains("ask again when the migration has been recovered"), "{refusal}");
    let refusal = source.handle.ask(Request::MigrateResume(file)).unwrap_err().0;
    assert!(refusal.contains("post-copy continues only over a connection"), "{refusal}");
    source.handle.ask(Request::MigrateCancel).unwrap();
    assert_eq!(source.await_end(), MigrationStatus::Failed, "{:?}", source.handle.migration());
    let error = source.handle.migration().error.unwrap();
    assert!(error.contains("it is lost there"), "{error}");
    assert_eq!(source.handle.run_state(), RunState::PostMigrate);
    let refusal = source.handle.ask(Request::Cont).unwrap_err().0;
    // The destination's process is a thread of this one, and still has its lock.
    assert!(refusal.contains("the guest stays stopped here"), "{refusal}");
    source.quit();
    destination.quit();
}

#[test]
fn a_migration_without_postcopy_ram_cannot_switch_to_post_copy() {
    let Some(dir) = lab() else { return };
    let Some((source, destination, address)) = machines(dir.path()) else { return };
    let set = |change| source.handle.ask(Request::MigrateSetParameters(change)).unwrap();
    set(ParameterChange::default().with("postcopy-ram", false));
    source.handle.ask(Request::Migrate(address, Terms::default())).unwrap();
    set(ParameterChange::default().with("postcopy-ram", true));
    let refusal = source.handle.ask(Request::MigrateStartPostcopy).unwrap_err().0;
    assert!(refusal.contains("postcopy-ram was off when this one began"), "{refusal}");
    set(ParameterChange::default().with("downtime-limit", TIMEOUT));
    assert_eq!(source.await_end(), MigrationStatus::Completed, "{:?}", source.handle.migration());
    source.quit();
    destination.quit();
}

/// A relay whose first connection is slow while `slow` is set. Both of its connections close once `cut` is set.
struct Relay {
    address: Address,
    slow: Arc<AtomicBool>,
    cut: Arc<AtomicBool>,
    /// A second connection was made.
    has_second: Arc<AtomicBool>,
}

/// Bytes that are relayed at once, and the pause before each such piece while the relay is slow.
const PIECE: usize = 16 << 10;
const PAUSE: Duration = Duration::from_millis(10);

impl Relay {
    /// Listens in `dir` for one source, and relays its connections to `destination`.
    fn new(dir: &Path, destination: &Address) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let path = dir.join(format!("between{}", NUMBER.fetch_add(1, Ordering::SeqCst)));
        let listener = UnixListener::bind(&path).unwrap();
        let Address::Unix(destination) = destination.clone() else { panic!("a unix socket") };
        let flag = |on| Arc::new(AtomicBool::new(on));
        let relay = Self { address: Address::Unix(path), slow: flag(true), cut: flag(false), has_second: flag(false) };
        let [slow, cut, has_second] = [&relay.slow, &relay.cut, &relay.has_second].map(Arc::clone);
        std::thread::spawn(move || {
            let connect = || {
                let source = listener.accept().ok()?.0;
                // A destination in `postcopy-paused` may not listen again yet.
                Some((source, find("destination", || UnixStream::connect(&destination).ok())))
            };
            let is_cut = || cut.load(Ordering::SeqCst);
            let (source, first) = connect().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| relay_bytes(&first, &source, &|| !is_cut()));
                scope.spawn(|| {
                    relay_bytes(&source, &first, &|| {
                        if slow.load(Ordering::SeqCst) {
                            std::thread::sleep(PAUSE);
                        }
                        !is_cut()
                    });
                    // No second connection will be made any more.
                    let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
                });
                if let Some((source, second)) = connect() {
                    has_second.store(true, Ordering::SeqCst);
                    std::thread::scope(|scope| {
                        scope.spawn(|| relay_bytes(&second, &source, &|| !is_cut()));
                        relay_bytes(&source, &second, &|| !is_cut());
                    });
                }
            });
        });
        relay
    }
}

/// Relays bytes until the end, or until `goes_on` returns false; then shuts both connections down.
fn relay_bytes(mut from: &UnixStream, mut to: &UnixStream, goes_on: &dyn Fn() -> bool) {
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        if !goes_on() || to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
