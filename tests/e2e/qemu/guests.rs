//! Guests of minivmm that go on in QEMU, from the stream that minivmm sends to a minivmm, without the sections that
//! QEMU does not have.

use std::path::Path;

use serde_json::{Value, json};
use vmstate_lab::bench::{Bench, Guest};
use vmstate_lab::error::Result;
use vmstate_lab::vmm::{Program, Vmm};
use vmstate_lab::{host, qemu, skip};
use vmstate_tests::stream_parser::parse;

use super::peer::{BEGAN, PASSES, Peer, arrives, await_pass, failed, goes_on, on_tcg, power_off, register, to_file};
use crate::place::{case_with_qemu, minivmm, scratch};
use crate::stream::relay;
use crate::world::{self, MIGRATION, World, dirtying, ensure, within};

/// Prefix of the names of sections that QEMU does not have.
const OURS: &str = "minivmm/";

/// Migrates from one minivmm to another, both of which end, and returns what the source sent.
fn of_minivmm(mut source: Vmm, destination: (Vmm, String), directory: &Path) -> Result<Vec<u8>> {
    let between = directory.join("relay");
    let relay = relay(&between, &destination.1)?;
    source.start_migration(&format!("unix:{}", between.display()))?;
    let info = source.follow_migration(within(MIGRATION), |_| ())?;
    ensure(info["status"] == "completed", || format!("the migration did not complete: {info}"))?;
    drop((source, destination));
    relay.join().map_err(|_| failed("the relay panicked"))?.map_err(failed)
}

/// Resumes the guest after the load: it was paused when it was sent, so that it runs nowhere else.
fn resume(qemu: &mut Vmm) -> Result<()> {
    arrives(qemu, "paused")?;
    qemu.qmp.execute("cont", Value::Null).map(|_| ())
}

/// Moves the tiny guest from minivmm to QEMU.
fn takes_over(peer: &mut Peer, left_out: &[&str]) -> Result<()> {
    let program = Program::Minivmm(minivmm().to_owned());
    let mut source = peer.boot_as(&program)?;
    await_pass(&source, PASSES)?;
    source.qmp.execute("stop", Value::Null)?;
    let destination = peer.wait_as(&program, |_| ())?;
    let sent = of_minivmm(source, destination, &peer.directory)?;
    let mut qemu = peer.incoming(&without(&sent, left_out)?, &[])?;
    resume(&mut qemu)?;
    goes_on(&qemu, &sent)?;
    let back = to_file(&mut qemu, &peer.directory.join("back"))?;
    let (before, after) = (register(&sent, BEGAN)?, register(&back, BEGAN)?);
    ensure(after > before, || format!("the time stamp counter went from {before:#x} back to {after:#x}"))?;
    qemu.qmp.execute("cont", Value::Null)?;
    power_off(qemu)
}

/// Removes minivmm's own sections and those in `names` from the stream, and commands that need an answer, which a file
/// cannot give.
fn without(stream: &[u8], names: &[&str]) -> Result<Vec<u8>> {
    const FOOTER: usize = 5;
    let parsed = parse(stream).map_err(failed)?;
    for name in names {
        ensure(parsed.device(name, 0).is_some(), || format!("{name} is not in the stream"))?;
    }
    let left_out = |name: &str| name.starts_with(OURS) || names.contains(&name);
    let sections = parsed.sections.iter().filter(|section| left_out(&section.name));
    let sections = sections.map(|section| section.offset..section.body.end + FOOTER);
    let commands = parsed.commands.iter().filter(|command| matches!(command.code, 1 | 2));
    let commands = commands.map(|command| command.offset..command.offset + 5 + command.payload.len());
    let mut cuts: Vec<_> = sections.chain(commands).collect();
    cuts.sort_by_key(|cut| cut.start);
    let mut left = Vec::new();
    let mut at = 0;
    for cut in cuts {
        left.extend_from_slice(&stream[at..cut.start]);
        at = cut.end;
    }
    left.extend_from_slice(&stream[at..]);
    Ok(left)
}

/// Moves Linux from minivmm to QEMU, with its timers, its disk and its clock.
fn takes_over_linux(world: &World) -> Result<()> {
    let directory = scratch()?;
    let mut bench = world.bench(&Guest { disk: true, ..dirtying(16, 2000) })?;
    bench.change_to(Program::Minivmm(minivmm().to_owned()));
    let mut source = bench.boot()?;
    world::goes_on(&mut source)?;
    source.qmp.execute("stop", Value::Null)?;
    let destination = bench.incoming()?;
    let sent = of_minivmm(source, destination, directory.path())?;
    let file = directory.path().join("stream");
    std::fs::write(&file, without(&sent, &[])?).map_err(failed)?;
    bench.change_to(Program::Qemu(qemu::at_least(qemu::NEEDED)?, "kvm"));
    let mut taker = bench.start(Some(format!("file:{}", file.display())))?;
    resume(&mut taker)?;
    world::goes_on(&mut taker)?;
    let back = comes_back_by_file(&mut bench, taker)?;
    world::power_off(back)
}

/// Saves a running Linux of QEMU to a file with a fixed place for each page, and resumes it in minivmm, which maps the
/// file.
fn comes_back_by_file(bench: &mut Bench<'_>, mut qemu: Vmm) -> Result<Vmm> {
    let places = json!({ "capabilities": [{ "capability": "mapped-ram", "state": true }] });
    qemu.qmp.execute("migrate-set-capabilities", places)?;
    let uri = bench.file();
    qemu.start_migration(&uri)?;
    let info = qemu.follow_migration(within(MIGRATION), |_| ())?;
    ensure(info["status"] == "completed", || format!("QEMU did not save the guest: {info}"))?;
    drop(qemu);
    bench.change_to(Program::Minivmm(minivmm().to_owned()));
    let mut back = bench.start(Some(uri.clone()))?;
    back.await_status("running", within(MIGRATION))?;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", back.process().id())).map_err(failed)?;
    ensure(uri.strip_prefix("file:").is_some_and(|file| maps.contains(file)), || "the file is not mapped".into())?;
    world::goes_on(&mut back)?;
    Ok(back)
}

#[test]
fn tiny_goes_on() {
    if let Err(reason) = host::has_kvm() {
        return skip::skip(reason);
    }
    on_tcg(|peer| takes_over(peer, &["kvmclock"]));
}

#[test]
fn tiny_and_linux_go_on_under_kvm() {
    case_with_qemu("qemu::guests::tiny_and_linux_go_on_under_kvm", |world| {
        takes_over(&mut Peer::new(scratch()?.path(), "kvm")?, &[])?;
        takes_over_linux(world)
    });
}
