//! QEMU takes what is made here: streams made again from types, states that minivmm's devices were driven to, and
//! guests of minivmm's; and the guest goes on. It is the tiny guest: it checks its memory and counts aloud.

mod driven;
mod peer;

use std::path::Path;

use serde_json::Value;
use vmstate_lab::error::{Error, Result};
use vmstate_lab::skip;
use vmstate_lab::vmm::{Program, Vmm};
use vmstate_tests::difference;
use vmstate_tests::microvm::Microvm;
use vmstate_tests::stream_parser::parse;

use self::peer::{CARD, Peer};
use crate::place::{self, case_with_qemu, scratch};
use crate::stream::relay;
use crate::world::{ANSWER, MIGRATION, ensure, within};

/// More passes that show that a guest goes on.
const PASSES: u64 = 3;

/// Runs a case on QEMU's TCG, which needs nothing of the machine.
fn on_tcg(body: impl FnOnce(&mut Peer) -> Result<()>) {
    let directory = scratch().unwrap();
    match Peer::new(directory.path(), "tcg") {
        Ok(mut peer) => body(&mut peer).unwrap_or_else(|error| panic!("{error}")),
        Err(error) => skip::skip(error),
    }
}

/// A stream of QEMU's own, of the guest at work, and the last pass that it counted there.
fn of_qemu(peer: &mut Peer, more: &[&str]) -> Result<(Vec<u8>, u64)> {
    let mut source = peer.boot(more)?;
    peer::await_pass(&source, PASSES)?;
    let file = peer.directory.join("of-qemu");
    let stream = to_file(&mut source, &file)?;
    let last = peer::passes(&source)?.last().copied().unwrap_or(0);
    Ok((stream, last))
}

/// Saves a machine, and returns the stream.
fn to_file(vmm: &mut Vmm, file: &Path) -> Result<Vec<u8>> {
    vmm.start_migration(&format!("file:{}", file.display()))?;
    let info = vmm.follow_migration(within(MIGRATION), |_| ())?;
    ensure(info["status"] == "completed", || format!("the machine was not saved: {info}"))?;
    std::fs::read(file).map_err(|error| Error::failed(format!("{}: {error}", file.display())))
}

/// The load is over, and the guest runs.
fn runs(qemu: &mut Vmm) -> Result<()> {
    qemu.await_status("running", within(ANSWER)).map_err(|error| {
        let end = qemu.process().wait(within(ANSWER)).map_or_else(failed, failed);
        failed(format!("{error}; QEMU: {end}, it said: {}", qemu.errors()))
    })
}

/// The guest goes on counting behind `last`, and finds its memory right.
fn goes_on(vmm: &Vmm, last: u64) -> Result<()> {
    peer::await_pass(vmm, last + PASSES)?;
    let counted = peer::passes(vmm)?;
    // The line that was being printed when the guest moved is cut in two.
    let first = counted.first().copied().unwrap_or(0);
    let in_turn = counted.windows(2).all(|two| two[1] == two[0] + 1) && (last + 1..=last + 2).contains(&first);
    ensure(in_turn, || format!("pass {last} came last before, then {counted:?}"))
}

/// The guest powers the machine off, through a device of it.
fn power_off(mut vmm: Vmm) -> Result<()> {
    vmm.type_in("q")?;
    let status = vmm.process().wait(within(ANSWER))?;
    ensure(status.success(), || format!("QEMU ended with {status}: {}", vmm.errors()))
}

/// Sections in which two streams differ.
fn differences(ours: &[u8], theirs: &[u8]) -> Result<Vec<String>> {
    let (our, their) = (parse(ours).map_err(failed)?, parse(theirs).map_err(failed)?);
    Ok(difference::sections((ours, &our), (theirs, &their)))
}

fn machine(peer: &Peer) -> Result<Microvm> {
    Microvm::new(peer::RAM_MIB << 20, &peer.disk)
}

fn failed(error: impl ToString) -> Error {
    Error::failed(error.to_string())
}

/// Without a network card: QEMU sends its configuration space as the guest last read it, and this guest does not.
#[test]
fn runs_a_stream_made_again_from_types() {
    on_tcg(|peer| {
        let (stream, last) = of_qemu(peer, &[])?;
        let mut machine = machine(peer)?;
        machine.load(&stream).map_err(failed)?;
        let again = machine.save(&stream).map_err(failed)?;
        ensure(again == stream, || format!("another stream was made: {:#?}", differences(&again, &stream)))?;
        let mut destination = peer.incoming(&again, &[])?;
        runs(&mut destination)?;
        goes_on(&destination, last)?;
        power_off(destination)
    });
}

#[test]
fn holds_what_minivmms_devices_were_driven_to() {
    on_tcg(|peer| {
        let (stream, last) = of_qemu(peer, &CARD)?;
        let mut machine = machine(peer)?;
        machine.load(&stream).map_err(failed)?;
        driven::drive(&machine);
        let made = machine.save(&stream).map_err(failed)?;
        let mut destination = peer.incoming(&made, &[CARD[0], CARD[1], "-S"])?;
        destination.await_status("paused", within(ANSWER))?;
        let back = to_file(&mut destination, &peer.directory.join("back"))?;
        let mut differences = differences(&back, &made)?;
        // QEMU was told not to run, and says so.
        differences.retain(|difference| !difference.starts_with("globalstate/0 "));
        ensure(differences.is_empty(), || format!("QEMU holds another state: {differences:#?}"))?;
        destination.qmp.execute("cont", Value::Null)?;
        // The guest takes a byte in each pass from the port as minivmm left it; the last of them makes it power off.
        let status = destination.process().wait(within(ANSWER))?;
        ensure(status.success(), || format!("QEMU ended with {status}: {}", destination.errors()))?;
        let read = driven::INPUT.len() as u64;
        let counted = peer::passes(&destination)?;
        let end = counted.last().copied().unwrap_or(0);
        ensure((last + read..=last + read + 2).contains(&end), || {
            format!("pass {last} came last before, {read} bytes to read, then {counted:?}")
        })
    });
}

/// What the other cases rest on: QEMU looks at each section.
#[test]
fn refuses_a_section_that_lacks_its_last_byte() {
    on_tcg(|peer| {
        let (stream, _) = of_qemu(peer, &CARD)?;
        let parsed = parse(&stream).map_err(failed)?;
        for device in &parsed.devices {
            let section = parsed
                .sections
                .iter()
                .find(|section| (section.name.as_str(), section.instance) == (device.name.as_str(), device.instance));
            let end = section.map_or(0, |section| section.body.end);
            let damaged = [&stream[..end - 1], &stream[end..]].concat();
            let said = match peer.incoming(&damaged, &CARD) {
                Err(error) => error.to_string(),
                Ok(mut destination) => {
                    let status = destination.process().wait(within(ANSWER))?;
                    ensure(!status.success(), || format!("{} lacks a byte, and QEMU took it", device.name))?;
                    destination.errors()
                }
            };
            ensure(said.contains(&device.name), || format!("{} lacks a byte, and QEMU says: {said}", device.name))?;
        }
        Ok(())
    });
}

/// A guest of minivmm's in QEMU: the stream as minivmm sent it to a minivmm, but for what `left_out` names.
fn takes_over(peer: &mut Peer, left_out: &[&str]) -> Result<()> {
    let minivmm = Program::Minivmm(place::minivmm().to_owned());
    let mut source = peer.boot_as(&minivmm)?;
    peer::await_pass(&source, PASSES)?;
    let (destination, uri) = peer.wait_as(&minivmm)?;
    let between = peer.directory.join("relay");
    let relay = relay(&between, &uri)?;
    source.start_migration(&format!("unix:{}", between.display()))?;
    let info = source.follow_migration(within(MIGRATION), |_| ())?;
    ensure(info["status"] == "completed", || format!("the migration did not complete: {info}"))?;
    let last = peer::passes(&source)?.last().copied().unwrap_or(0);
    drop((source, destination));
    let bytes = relay.join().map_err(|_| failed("the relay panicked"))?.map_err(failed)?;
    let stream = without(&bytes, left_out)?;
    let mut qemu = peer.incoming(&stream, &[])?;
    runs(&mut qemu)?;
    goes_on(&qemu, last)?;
    power_off(qemu)
}

/// The stream without the sections called so, and without commands that want an answer, for a file gives none.
fn without(stream: &[u8], names: &[&str]) -> Result<Vec<u8>> {
    const FOOTER: usize = 5;
    let parsed = parse(stream).map_err(failed)?;
    for name in names {
        ensure(parsed.device(name, 0).is_some(), || format!("{name} is not in the stream"))?;
    }
    let sections = parsed.sections.iter().filter(|section| names.contains(&section.name.as_str()));
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

#[test]
fn takes_over_a_guest_of_minivmms() {
    if let Err(reason) = vmstate_lab::host::has_kvm() {
        return skip::skip(reason);
    }
    on_tcg(|peer| takes_over(peer, &["minivmm/clock", "minivmm/vcpu", "kvmclock"]));
}

#[test]
fn takes_over_a_guest_of_minivmms_under_kvm() {
    case_with_qemu("qemu::takes_over_a_guest_of_minivmms_under_kvm", |_| {
        let directory = scratch()?;
        takes_over(&mut Peer::new(directory.path(), "kvm")?, &["minivmm/clock", "minivmm/vcpu"])
    });
}
