//! Migrates a running Linux between QEMU and minivmm with ordinary `migrate` commands. The guest verifies each
//! migration: its memory, files, datagrams, clocks, kernel log, and the bytes of the firmware's segment.

use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};
use vmstate_lab::bench::{Bench, Guest};
use vmstate_lab::error::Result;
use vmstate_lab::guest::net::Peer;
use vmstate_lab::qemu;
use vmstate_lab::vmm::{Program, Vmm};

use super::peer::failed;
use crate::loads::nothing_lost;
use crate::place::{case_with_oldest_qemu, case_with_qemu, minivmm};
use crate::world::{
    self, ANSWER, MIGRATION, dirtying, ensure, migrate_forgiving, no_complaints, power_off, verify, within,
};

/// Downtime limit: a guest that dirties memory on a host busy with other work needs more than the default of 300 ms.
const LIMIT_MS: u64 = 3000;
/// Time to work: longer than the kernel takes to compare its clocks twice (`WATCHDOG_INTERVAL`,
/// kernel/time/clocksource.c).
const WORK: Duration = Duration::from_millis(1500);
/// Words of complaints that are expected in a QEMU: it restores TSC and clock by value, at two moments, so the TSC
/// differs from the clock.
const IN_QEMU: &[&str] = &["clocksource", "wd_nsec", "cs_nsec"];
/// Longest time that the guest's clock stops between two monitors, as between two QEMUs; no monitor reports the exact
/// time.
const OFF: Duration = Duration::from_millis(700);

fn qemu() -> Result<Program> {
    Ok(Program::Qemu(qemu::at_least(qemu::NEEDED)?, "kvm"))
}

fn ours() -> Program {
    Program::Minivmm(minivmm().to_owned())
}

/// A guest that migrates through monitors.
struct Journey<'a> {
    bench: Bench<'a>,
    /// The network's peer, if the guest has a card.
    peer: Option<&'a Peer>,
    /// The guest's first checksum of the firmware.
    firmware: Value,
}

impl<'a> Journey<'a> {
    fn begin(mut bench: Bench<'a>, program: Program, peer: Option<&'a Peer>) -> Result<(Self, Vmm)> {
        bench.change_to(program);
        let mut vmm = bench.boot()?;
        sleep(WORK);
        let firmware = vmm.ask("firmware", within(ANSWER))?;
        ensure(firmware["used"].is_u64(), || format!("the guest cannot see its firmware: {firmware}"))?;
        Ok((Self { bench, peer, firmware }, vmm))
    }

    /// Migrates to a monitor of this program; the guest works there and verifies everything.
    fn hop(&mut self, mut source: Vmm, to: Program) -> Result<Vmm> {
        source.qmp.execute("migrate-set-parameters", json!({ "downtime-limit": LIMIT_MS }))?;
        let forgiven = if matches!(to, Program::Qemu(..)) { IN_QEMU } else { &[] };
        self.bench.change_to(to);
        let migrated = migrate_forgiving(&mut self.bench, source, forgiven, OFF, |_| ())?;
        let mut here = migrated.destination;
        sleep(WORK);
        let [before, _] = &migrated.marks;
        no_complaints(before, &here.ask("mark", within(ANSWER))?, forgiven)?;
        self.verify(&mut here)?;
        Ok(here)
    }

    fn verify(&self, vmm: &mut Vmm) -> Result<()> {
        verify(vmm)?;
        if let Some(peer) = self.peer {
            nothing_lost(peer, vmm)?;
        }
        let firmware = vmm.ask("firmware", within(ANSWER))?;
        ensure(firmware == self.firmware, || format!("the firmware was {} and is {firmware}", self.firmware))
    }

    /// Migrates to a minivmm with one disk more, which must refuse the guest because the section of its card names
    /// another virtio window.
    fn refused(&mut self, source: &mut Vmm) -> Result<()> {
        let disk = self.bench.disk().map(|disk| disk.with_file_name("another-disk")).unwrap_or_default();
        std::fs::write(&disk, vec![0; 1 << 20]).map_err(failed)?;
        self.bench.change_to(ours());
        self.bench.give(&["--disk", &disk.display().to_string()]);
        let (mut destination, uri) = self.bench.incoming()?;
        self.bench.give(&[]);
        source.start_migration(&uri)?;
        let info = source.follow_migration(within(MIGRATION), |_| ())?;
        ensure(info["status"] == "failed", || format!("the migration was not refused: {info}"))?;
        source.await_status("running", within(ANSWER))?;
        let status = destination.wait_end(within(ANSWER));
        let said = destination.errors();
        let names_it = said.contains("virtio-net") && said.contains("this machine has no such section");
        ensure(names_it, || format!("minivmm's output is {said:?}, {status:?}"))?;
        self.verify(source)
    }
}

/// Whether QEMU's return path is on, for three migrations from QEMU to minivmm and back.
const LISTENS: [bool; 3] = [true, false, true];

/// Migrates a QEMU's guest to a minivmm, which warns if the QEMU has no return path.
fn out_of_qemu(journey: &mut Journey<'_>, mut vmm: Vmm, listens: bool) -> Result<Vmm> {
    vmm.listen(listens)?;
    let vmm = journey.hop(vmm, ours())?;
    let said = vmm.errors();
    ensure(said.contains("return-path") != listens, || format!("return path: {listens}, minivmm's output: {said:?}"))?;
    Ok(vmm)
}

#[test]
fn from_qemu_three_times_there_and_back() {
    case_with_qemu("qemu::moves::from_qemu_three_times_there_and_back", |world| {
        let peer = world.connect()?;
        let bench = world.bench(&Guest { disk: true, ..dirtying(32, 2000) })?;
        let (mut journey, mut vmm) = Journey::begin(bench, qemu()?, Some(&peer))?;
        ensure(journey.firmware["rsdp"].is_u64(), || format!("QEMU's firmware left {}", journey.firmware))?;
        vmm.listen(true)?;
        journey.refused(&mut vmm)?;
        for listens in LISTENS {
            vmm = out_of_qemu(&mut journey, vmm, listens)?;
            vmm = journey.hop(vmm, qemu()?)?;
        }
        power_off(vmm)
    });
}

#[test]
fn from_minivmm_three_times_there_and_back_with_two_vcpus() {
    case_with_qemu("qemu::moves::from_minivmm_three_times_there_and_back_with_two_vcpus", |world| {
        let bench = world.bench(&Guest { cpus: 2, disk: true, ..dirtying(16, 2000) })?;
        let (mut journey, mut vmm) = Journey::begin(bench, ours(), None)?;
        for listens in LISTENS {
            vmm = journey.hop(vmm, qemu()?)?;
            vmm = out_of_qemu(&mut journey, vmm, listens)?;
        }
        world::goes_on(&mut vmm)?;
        power_off(vmm)
    });
}

/// QEMU's options for two page channels, which a destination needs before the source connects.
const TAKES_CHANNELS: &[&str] = &["-global", "migration.x-multifd=on", "-global", "migration.multifd-channels=2"];

/// Migrates both ways over page channels, then both ways with XBZRLE.
#[test]
fn there_and_back_over_page_channels_and_with_xbzrle() {
    case_with_qemu("qemu::moves::there_and_back_over_page_channels_and_with_xbzrle", |world| {
        let bench = world.bench(&Guest { disk: true, ..dirtying(16, 2000) })?;
        let (mut journey, mut vmm) = Journey::begin(bench, qemu()?, None)?;
        for (chosen, other) in [("multifd", "xbzrle"), ("xbzrle", "multifd")] {
            for to in [ours(), qemu()?] {
                if let Program::Minivmm(..) = to {
                    vmm.listen(true)?;
                }
                // Switch the one capability off before the other on: no source may have both.
                for (capability, state) in [(other, false), (chosen, true)] {
                    let change = json!({ "capabilities": [{ "capability": capability, "state": state }] });
                    vmm.qmp.execute("migrate-set-capabilities", change)?;
                }
                let takes_channels = chosen == "multifd" && matches!(to, Program::Qemu(..));
                journey.bench.give(if takes_channels { TAKES_CHANNELS } else { &[] });
                vmm = journey.hop(vmm, to)?;
                journey.bench.give(&[]);
            }
        }
        power_off(vmm)
    });
}

/// Migrates to and from QEMU 7.2, which has neither SWITCHOVER_START nor UDP segmentation; the guest boots in either
/// monitor and returns.
#[test]
fn from_and_to_the_oldest_qemu() {
    case_with_oldest_qemu("qemu::moves::from_and_to_the_oldest_qemu", |world, oldest| {
        let mut peer = world.connect()?;
        for born_in_qemu in [false, true] {
            let mut bench = world.bench(&Guest { disk: true, ..dirtying(16, 2000) })?;
            bench.without_uso();
            let first = if born_in_qemu { oldest.clone() } else { ours() };
            let (mut journey, mut vmm) = Journey::begin(bench, first, Some(&peer))?;
            for from_qemu in [born_in_qemu, !born_in_qemu] {
                vmm = match from_qemu {
                    true => out_of_qemu(&mut journey, vmm, true)?,
                    false => journey.hop(vmm, oldest.clone())?,
                };
            }
            power_off(vmm)?;
            // The next guest counts its datagrams from the first.
            drop(peer);
            peer = Peer::start().map_err(failed)?;
        }
        Ok(())
    });
}
