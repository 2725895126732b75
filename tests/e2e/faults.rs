//! Cancelled migrations and killed monitors: exactly one running guest is left, and it goes on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmstate_lab::bench::Bench;
use vmstate_lab::error::Result;
use vmstate_lab::vmm::Vmm;

use crate::place::case;
use crate::world::{ANSWER, MIGRATION, World, dirtying, ensure, goes_on, migrate, power_off, within};

/// Bytes a second at which a migration takes long enough to be disturbed.
const SLOW: u64 = 8 << 20;
/// Bytes a second that no machine reaches.
const FAST: u64 = 1 << 40;

fn limit(vmm: &mut Vmm, bandwidth: u64) -> Result<()> {
    vmm.qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": bandwidth })).map(|_| ())
}

/// Begins a slow migration and waits until guest RAM is on its way.
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
        ensure(Instant::now() < deadline && info["status"] != "completed", || format!("not under way: {info}"))?;
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A guest dirtying memory at a rate that no disturbance explains, on the source.
fn boot(world: &World) -> Result<(Bench<'_>, Vmm)> {
    let mut bench = world.bench(&dirtying(32, 2000))?;
    let source = bench.boot()?;
    Ok((bench, source))
}

fn ended_as(source: &mut Vmm, status: &str) -> Result<()> {
    let info = source.follow_migration(within(ANSWER), |_| ())?;
    ensure(info["status"] == status, || format!("not {status}: {info}"))
}

/// The guest went on, and migrates as if nothing had been.
fn then_succeeds(bench: &mut Bench<'_>, mut source: Vmm) -> Result<()> {
    goes_on(&mut source)?;
    limit(&mut source, FAST)?;
    let (mut destination, _) = migrate(bench, source)?;
    goes_on(&mut destination)?;
    power_off(destination)
}

#[test]
fn cancelled_in_the_middle() {
    case("faults::cancelled_in_the_middle", |world| {
        let (mut bench, mut source) = boot(world)?;
        let mut destination = begin_slowly(&mut bench, &mut source)?;
        source.qmp.execute("migrate_cancel", Value::Null)?;
        ended_as(&mut source, "cancelled")?;
        let end = destination.process().wait(within(ANSWER))?;
        ensure(!end.success(), || "the destination of a cancelled migration ended as if all were well".into())?;
        then_succeeds(&mut bench, source)
    });
}

#[test]
fn destination_killed_before_it_is_reached() {
    case("faults::destination_killed_before_it_is_reached", |world| {
        let (mut bench, mut source) = boot(world)?;
        let (destination, uri) = bench.incoming()?;
        drop(destination);
        // Refused at once, or failed a moment later.
        if source.start_migration(&uri).is_ok() {
            ended_as(&mut source, "failed")?;
        }
        then_succeeds(&mut bench, source)
    });
}

#[test]
fn destination_killed_during_the_rounds() {
    case("faults::destination_killed_during_the_rounds", |world| {
        let (mut bench, mut source) = boot(world)?;
        let destination = begin_slowly(&mut bench, &mut source)?;
        drop(destination);
        ended_as(&mut source, "failed")?;
        then_succeeds(&mut bench, source)
    });
}

/// The switch-over is short: it is waited for without a pause, and missed at times.
#[test]
fn destination_killed_during_the_switch_over() {
    case("faults::destination_killed_during_the_switch_over", |world| {
        let (mut bench, mut source) = boot(world)?;
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
                return then_succeeds(&mut bench, source);
            }
            // Too late: the destination had it already, and it is gone with it.
            ensure(info["status"] == "completed", || format!("neither failed nor completed: {info}"))?;
            let state = source.status()?;
            ensure(state == "postmigrate", || format!("handed over, but {state}"))?;
            drop(source);
            source = bench.boot()?;
        }
        ensure(false, || "the switch-over was missed each time".into())
    });
}

#[test]
fn source_killed_before_the_commit() {
    case("faults::source_killed_before_the_commit", |world| {
        let (mut bench, mut source) = boot(world)?;
        let mut destination = begin_slowly(&mut bench, &mut source)?;
        source.process().kill();
        let end = destination.process().wait(within(ANSWER))?;
        ensure(!end.success(), || "the destination ended as if all were well".into())?;
        let said = destination.errors();
        println!("the destination said: {said}");
        ensure(!said.trim().is_empty(), || "the destination ended without a word".into())?;
        ensure(destination.console().is_empty(), || format!("the guest ran: {}", destination.console()))
    });
}
