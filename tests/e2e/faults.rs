//! Cancelled migrations and killed monitors: exactly one running guest is left.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmstate_lab::bench::Bench;
use vmstate_lab::error::{Error, Result};
use vmstate_lab::vmm::Vmm;

use crate::place::case_within;
use crate::world::{ANSWER, MIGRATION, dirtying, ensure, goes_on, migrate, within};

/// Bandwidth in bytes a second at which a migration takes long enough to be disturbed.
const SLOW: u64 = 8 << 20;
/// Time limit for the whole case.
const TIME: Duration = Duration::from_secs(480);
/// Bandwidth in bytes a second that no machine reaches.
const FAST: u64 = 1 << 40;

fn limit(vmm: &mut Vmm, bandwidth: u64) -> Result<()> {
    vmm.qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": bandwidth })).map(|_| ())
}

/// Starts a slow migration and waits until guest RAM is being sent.
fn begin_slowly(bench: &mut Bench<'_>, source: &mut Vmm) -> Result<Vmm> {
    limit(source, SLOW)?;
    let (destination, uri) = bench.incoming()?;
    source.start_migration(&uri)?;
    let deadline = within(MIGRATION);
    loop {
        let info = source.qmp.execute("query-migrate", Value::Null)?;
        let sent = info["ram"]["transferred"].as_u64().unwrap_or(0);
        if info["status"] == "active" && sent > 1 << 20 {
            return Ok(destination);
        }
        ensure(Instant::now() < deadline && info["status"] != "completed", || {
            format!("no migration is running: {info}")
        })?;
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ended_as(source: &mut Vmm, status: &str) -> Result<()> {
    let info = source.follow_migration(within(ANSWER), |_| ())?;
    ensure(info["status"] == status, || format!("not {status}: {info}"))
}

/// A disturbance of a migration of `source`, after which the guest runs at the source.
type Disturb = fn(&mut Bench<'_>, &mut Vmm) -> Result<()>;

/// Disturbs migrations of one guest that dirties memory. After each disturbance the guest runs on, and then migrates
/// undisturbed.
#[test]
fn a_guest_goes_through_cancels_and_kills() {
    case_within("faults::a_guest_goes_through_cancels_and_kills", TIME, |world| {
        let mut bench = world.bench(&dirtying(32, 2000))?;
        let mut vmm = bench.boot()?;
        let disturbances: [(&str, Disturb); 3] = [
            ("cancelled in the middle", cancelled_in_the_middle),
            ("destination killed before it is reached", destination_killed_before_it_is_reached),
            ("destination killed during the rounds", destination_killed_during_the_rounds),
        ];
        for (name, disturb) in disturbances {
            println!("{name}");
            disturb(&mut bench, &mut vmm)?;
            vmm = then_succeeds(&mut bench, vmm)?;
        }
        println!("destination killed during the switch-over");
        vmm = destination_killed_during_the_switch_over(&mut bench, vmm)?;
        vmm = then_succeeds(&mut bench, vmm)?;
        println!("source killed before the commit");
        source_killed_before_the_commit(&mut bench, vmm)
    });
}

/// The guest runs on after a disturbance, and migrates undisturbed.
fn then_succeeds(bench: &mut Bench<'_>, mut source: Vmm) -> Result<Vmm> {
    goes_on(&mut source)?;
    limit(&mut source, FAST)?;
    let (mut destination, _) = migrate(bench, source)?;
    goes_on(&mut destination)?;
    Ok(destination)
}

fn cancelled_in_the_middle(bench: &mut Bench<'_>, source: &mut Vmm) -> Result<()> {
    let mut destination = begin_slowly(bench, source)?;
    source.qmp.execute("migrate_cancel", Value::Null)?;
    ended_as(source, "cancelled")?;
    let end = destination.process().wait(within(ANSWER))?;
    ensure(!end.success(), || "the destination of a cancelled migration ended with success".into())
}

fn destination_killed_before_it_is_reached(bench: &mut Bench<'_>, source: &mut Vmm) -> Result<()> {
    let (destination, uri) = bench.incoming()?;
    drop(destination);
    // The migration is refused at once, or fails a moment later.
    if source.start_migration(&uri).is_ok() {
        ended_as(source, "failed")?;
    }
    Ok(())
}

fn destination_killed_during_the_rounds(bench: &mut Bench<'_>, source: &mut Vmm) -> Result<()> {
    let destination = begin_slowly(bench, source)?;
    drop(destination);
    ended_as(source, "failed")
}

/// Kills the destination during the switch-over, which is short: it is awaited without sleep, and at times missed.
/// Returns the source of the attempt that hit it.
fn destination_killed_during_the_switch_over(bench: &mut Bench<'_>, mut source: Vmm) -> Result<Vmm> {
    for _ in 0..6 {
        let (mut destination, uri) = bench.incoming()?;
        source.start_migration(&uri)?;
        let deadline = within(MIGRATION);
        while source.status()? == "running" {
            ensure(Instant::now() < deadline, || "no switch-over".into())?;
        }
        destination.process().kill();
        let info = source.follow_migration(within(ANSWER), |_| ())?;
        if info["status"] == "failed" {
            return Ok(source);
        }
        // Too late: the guest ran at the destination already, and was killed with it.
        ensure(info["status"] == "completed", || format!("neither failed nor completed: {info}"))?;
        let state = source.status()?;
        ensure(state == "postmigrate", || format!("the source handed the guest over, but is {state}"))?;
        drop(source);
        source = bench.boot()?;
    }
    Err(Error::failed("the switch-over was missed each time"))
}

fn source_killed_before_the_commit(bench: &mut Bench<'_>, mut source: Vmm) -> Result<()> {
    let mut destination = begin_slowly(bench, &mut source)?;
    source.process().kill();
    let end = destination.process().wait(within(ANSWER))?;
    ensure(!end.success(), || "the destination ended with success".into())?;
    let said = destination.errors();
    println!("the destination's output: {said}");
    ensure(!said.trim().is_empty(), || "the destination ended without an error text".into())?;
    ensure(destination.console().is_empty(), || format!("the guest ran: {}", destination.console()))
}
