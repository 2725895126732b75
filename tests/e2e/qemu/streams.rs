//! Streams of QEMU with a guest at work, loaded into types and written back for QEMU: unchanged, with devices that
//! minivmm has driven, and damaged.

use serde_json::Value;
use vmstate_lab::error::Result;
use vmstate_tests::difference;
use vmstate_tests::microvm::Microvm;
use vmstate_tests::stream_parser::{SectionKind, parse};

use super::driven;
use super::peer::{
    CARD, DONE, PASSES, Peer, RAM_MIB, arrives, await_pass, failed, goes_on, on_tcg, passes, power_off, register,
    to_file,
};
use crate::world::{ANSWER, ensure, within};

/// A stream of QEMU with a guest at work.
fn of_qemu(peer: &mut Peer, more: &[&str]) -> Result<Vec<u8>> {
    let mut source = peer.boot(more)?;
    await_pass(&source, PASSES)?;
    to_file(&mut source, &peer.directory.join("of-qemu"))
}

fn machine(peer: &Peer) -> Result<Microvm> {
    Microvm::new(RAM_MIB << 20, &peer.disk)
}

/// Without a network card: QEMU sends a card's configuration space as the guest last read it, and this guest does not
/// read it.
#[test]
fn runs_a_stream_made_again_from_types() {
    on_tcg(|peer| {
        let stream = of_qemu(peer, &[])?;
        let mut machine = machine(peer)?;
        machine.load(&stream).map_err(failed)?;
        let again = machine.save(&stream).map_err(failed)?;
        ensure(again == stream, || format!("another stream was made: {:#?}", difference::sections(&again, &stream)))?;
        let mut destination = peer.incoming(&again, &[])?;
        arrives(&mut destination, "running")?;
        goes_on(&destination, &stream)?;
        power_off(destination)
    });
}

#[test]
fn holds_what_minivmms_devices_were_driven_to() {
    on_tcg(|peer| {
        let stream = of_qemu(peer, &CARD)?;
        let mut machine = machine(peer)?;
        machine.load(&stream).map_err(failed)?;
        driven::drive(&machine);
        let made = machine.save(&stream).map_err(failed)?;
        let mut destination = peer.incoming(&made, &[CARD[0], CARD[1], "-S"])?;
        arrives(&mut destination, "paused")?;
        let back = to_file(&mut destination, &peer.directory.join("back"))?;
        let mut differences = difference::sections(&back, &made).map_err(failed)?;
        // QEMU was started with `-S`, and reports that. Its real-time clock, which minivmm does not have, follows the
        // host's.
        let expected = ["globalstate/0 ", "mc146818rtc/0 at 0x0, cmos_data: "];
        differences.retain(|difference| !expected.iter().any(|start| difference.starts_with(start)));
        ensure(differences.is_empty(), || format!("QEMU holds another state: {differences:#?}"))?;
        destination.qmp.execute("cont", Value::Null)?;
        // The guest takes one byte in each pass from the port as minivmm left it; the last byte makes it power off.
        let status = destination.wait_end(within(ANSWER))?;
        ensure(status.success(), || format!("QEMU ended with {status}: {}", destination.errors()))?;
        let (done, counted) = (register(&stream, DONE)?, passes(&destination)?);
        // One byte may be taken in the pass in which the stream was made.
        let least = done + driven::INPUT.len() as u64 - 1;
        ensure(counted.last().is_some_and(|last| *last >= least), || {
            format!("{done} passes were done, {:?} to read, then the guest counted {counted:?}", driven::INPUT)
        })
    });
}

/// Checks a precondition of the other cases: QEMU reads each section.
#[test]
fn refuses_a_section_that_lacks_its_last_byte() {
    on_tcg(|peer| {
        let stream = of_qemu(peer, &CARD)?;
        let parsed = parse(&stream).map_err(failed)?;
        for section in parsed.sections.iter().filter(|section| section.kind == SectionKind::Full) {
            let (name, end) = (&section.name, section.body.end);
            let damaged = [&stream[..end - 1], &stream[end..]].concat();
            let said = match peer.incoming(&damaged, &CARD) {
                Err(error) => error.to_string(),
                Ok(mut destination) => {
                    let status = destination.wait_end(within(ANSWER))?;
                    ensure(!status.success(), || format!("{name} lacks a byte, and QEMU accepted it"))?;
                    destination.errors()
                }
            };
            ensure(said.contains(name.as_str()), || format!("{name} lacks a byte, and QEMU says: {said}"))?;
        }
        Ok(())
    });
}
