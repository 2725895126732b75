//! Migrations of a guest at work: memory, disk, network, and many in a row.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};
use vmstate_lab::bench::{Bench, Guest};
use vmstate_lab::error::{Error, Result};
use vmstate_lab::guest::net::Peer;
use vmstate_lab::network::Way;
use vmstate_lab::packages;
use vmstate_lab::skip::skip;
use vmstate_lab::vmm::{Program, Vmm};

use crate::place::{self, case};
use crate::world::{ANSWER, World, dirtying, ensure, idle, migrate, postcopy, power_off, update, verify, within};

const WORK: Duration = Duration::from_secs(2);

/// Boots a guest, lets it work, migrates it, lets it work again and verifies it.
fn under_load(world: &World, guest: &Guest) -> Result<Vmm> {
    at_work(&mut world.bench(guest)?)
}

fn at_work(bench: &mut Bench<'_>) -> Result<Vmm> {
    let source = bench.boot()?;
    sleep(WORK);
    let (mut destination, _) = migrate(bench, source)?;
    sleep(WORK);
    verify(&mut destination)?;
    Ok(destination)
}

/// Checks what a guest observes without a migration: no complaint, no clock that goes back.
#[test]
fn without_migration() {
    case("loads::without_migration", |world| {
        for cpus in [1, 2] {
            let mut bench = world.bench(&Guest { cpus, disk: true, ..dirtying(32, 2000) })?;
            let mut vmm = bench.boot()?;
            sleep(5 * WORK);
            verify(&mut vmm)?;
            let mark = vmm.ask("mark", within(ANSWER))?;
            let (log, tick) = (&mark["log"], &mark["tick"]);
            ensure(log == &serde_json::json!([]), || format!("the guest's kernel complains: {log}"))?;
            ensure(tick["backward"] == 0, || format!("{cpus} vCPUs: a clock went backward: {tick}"))?;
            power_off(vmm)?;
        }
        Ok(())
    });
}

/// The migration is encrypted; each monitor has certificates for both ends.
#[test]
fn idle_guest() {
    case("loads::idle_guest", |world| {
        let certificates = place::scratch()?;
        let mut bench = world.bench(&idle())?;
        if let Program::Minivmm(program) = place::monitor()? {
            let made = Command::new(&program).args(["tls", "init"]).arg(certificates.path()).output();
            let made = made.map_err(|error| Error::failed(format!("no certificates: {error}")))?;
            ensure(made.status.success(), || String::from_utf8_lossy(&made.stderr).into_owned())?;
            bench.give(&["--tls-hostname", "localhost", "--tls-creds", &certificates.path().to_string_lossy()]);
        }
        power_off(at_work(&mut bench)?)
    });
}

/// The migration goes by vsock, where the kernel supports vsock connections to itself.
#[test]
fn two_cpus_write_memory_and_files() {
    case("loads::two_cpus_write_memory_and_files", |world| {
        let mut bench = world.bench(&Guest { cpus: 2, disk: true, ..dirtying(32, 2000) })?;
        if let Err(error) = bench.meet_by_vsock() {
            skip(error);
        }
        power_off(at_work(&mut bench)?)
    });
}

#[test]
fn memory_dirtied_at_full_speed() {
    case("loads::memory_dirtied_at_full_speed", |world| power_off(under_load(world, &dirtying(64, 0))?));
}

/// Checks that no datagram of the guest is lost or duplicated.
pub(crate) fn nothing_lost(peer: &Peer, guest: &mut Vmm) -> Result<()> {
    let sent = verify(guest)?["net"]["sent"].as_u64().unwrap_or(0);
    let came = peer.tally().of_first(sent).report();
    ensure(sent > 0 && came["unique"] == sent && came["duplicates"] == 0 && came["corrupt"] == 0, || {
        format!("{sent} datagrams sent, but the peer received {came}")
    })
}

/// Migrates from each kind of network to another one, as far as the host has them. A minivmm that is replaced by a new process
/// in between keeps its connection to passt, and no datagram is lost in either direction.
#[test]
fn packets_both_ways() {
    case("loads::packets_both_ways", |world| {
        let peer = world.connect()?;
        let mut bench = world.bench(&idle())?;
        let mut ways = vec![Way::Vhost, Way::Tap, Way::Passt, Way::Vhost];
        if let Err(error) = File::options().read(true).write(true).open(VHOST_NET) {
            skip(format!("no vhost-net: {VHOST_NET}: {error}"));
            ways.retain(|way| *way != Way::Vhost);
        }
        if let Err(error) = packages::passt() {
            skip(error);
            ways.retain(|way| *way != Way::Passt);
        }
        let updates = matches!(place::monitor()?, Program::Minivmm(_));
        if updates {
            bench.give(&["--share-memory", "on"]);
        }
        bench.go_by(ways[0]);
        let mut vmm = bench.boot()?;
        let mut lost = 0;
        for hop in ways.windows(2) {
            moved_by_the_kernel(&mut vmm, hop[0] == Way::Vhost)?;
            sleep(WORK / 4);
            // The length of the pause on a busy host is not under test here.
            vmm.qmp.execute("migrate-set-parameters", json!({ "downtime-limit": 3000 }))?;
            bench.go_by(hop[1]);
            (vmm, _) = migrate(&mut bench, vmm)?;
            sleep(WORK / 4);
            nothing_lost(&peer, &mut vmm)?;
            let net = verify(&mut vmm)?["net"].take();
            let count = |value: &Value| value.as_u64().unwrap_or(0);
            let before = std::mem::replace(&mut lost, count(&net["sent"]) - count(&net["echoes"]["unique"]));
            let echoes = &net["echoes"];
            println!("{hop:?}: {} sent so far, {} echoes lost", net["sent"], lost - before);
            ensure(echoes["corrupt"] == 0 && echoes["duplicates"] == 0, || format!("echoes arrived as {echoes}"))?;
            if updates && hop[1] == Way::Passt {
                vmm = update(&mut bench, vmm)?;
                sleep(WORK / 4);
                nothing_lost(&peer, &mut vmm)?;
                let net = verify(&mut vmm)?["net"].take();
                let since = count(&net["sent"]) - count(&net["echoes"]["unique"]) - lost;
                ensure(since == 0, || format!("{since} echoes lost in the update: {net}"))?;
            }
        }
        power_off(vmm)
    });
}

const VHOST_NET: &str = "/dev/vhost-net";

/// Checks whether the monitor uses vhost-net.
fn moved_by_the_kernel(vmm: &mut Vmm, expected: bool) -> Result<()> {
    let open = format!("/proc/{}/fd", vmm.process().id());
    let open = std::fs::read_dir(&open).map_err(|error| Error::failed(format!("{open}: {error}")))?;
    let has = open.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|file| file == Path::new(VHOST_NET)));
    ensure(has == expected, || format!("the monitor has {VHOST_NET} open: {has}, expected: {expected}"))
}

/// The last two migrations between minivmms are post-copy, and without a copy of the guest's memory.
#[test]
fn there_and_back_five_times() {
    case("loads::there_and_back_five_times", |world| {
        let peer = world.connect()?;
        let mut bench = world.bench(&Guest { disk: true, ..dirtying(16, 2000) })?;
        let mut vmm = bench.boot()?;
        for _ in 0..7 {
            (vmm, _) = migrate(&mut bench, vmm)?;
            nothing_lost(&peer, &mut vmm)?;
        }
        let updates = matches!(place::monitor()?, Program::Minivmm(_));
        vmm = if updates { postcopy(&mut bench, vmm)? } else { migrate(&mut bench, vmm)?.0 };
        nothing_lost(&peer, &mut vmm)?;
        if updates {
            bench.give(&["--share-memory", "on"]);
        }
        (vmm, _) = migrate(&mut bench, vmm)?;
        nothing_lost(&peer, &mut vmm)?;
        vmm = if updates { update(&mut bench, vmm)? } else { migrate(&mut bench, vmm)?.0 };
        nothing_lost(&peer, &mut vmm)?;
        power_off(vmm)
    });
}
