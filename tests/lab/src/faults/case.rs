//! One case of the matrix, with two real processes: the fault, and the conditions after it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::beside::Habits;
use super::cell::{Cell, Fault, Guest, Phase};
use super::descriptors::Message;
use super::ending::{Ending, Told, answered, says};
use super::marks::Mark;
use super::place::{Oddities, Place};
use super::side::Side;
use super::subject::Ground;
use super::third_party::ThirdParty;
use super::wire::{Alteration, Part, Wire};
use super::{PATIENCE, Result, until};

/// Time limit for the answer to a command while the relay is stalled: less than the time after which the source gives
/// up by itself, which is 10 s while the guest runs (`SourceOptions`), and the pause's budget once the guest is paused.
const AT_ONCE: Duration = Duration::from_secs(9);
/// Number of the page channel for the faults of a single channel.
const CHANNEL: usize = 1;
/// Time after which the test goes on while the relay is stalled; no side gives up in this time.
const A_WHILE: Duration = Duration::from_millis(500);

/// Causes the fault for a guest that runs at `source` and checks the outcome. Returns the side that runs the guest
/// then.
///
/// # Errors
/// The condition that failed, and the state of both sides.
pub fn walk(ground: &Ground, source: Side, fault: Fault, phase: Phase, cell: &Cell) -> Result<Option<Side>> {
    let Cell::Ends { guest, .. } = *cell else { return Ok(Some(source)) };
    let mark = ground.mark(phase);
    let mut place = Place::new(ground, source, &oddities(fault, mark))?;
    let told = (|| {
        if fault == Fault::Cancel {
            place.pause_for(PATIENCE)?;
        }
        place.migrate()?;
        // A busy emulated host has needed a minute for the first round of a tiny guest.
        if !matches!(fault, Fault::DescriptorsLost | Fault::DescriptorsTorn) {
            place.wire.await_mark(mark, Instant::now() + 3 * PATIENCE)?;
        }
        if fault == Fault::DestinationKilled && guest == Guest::DiedWithItsProcess {
            // If the destination is killed between `SHUT` and the advance of its record, it has not run the guest, and
            // the source may resume it.
            until("the destination runs the guest", || Ok(place.destination.answers()?.0 == "running"))?;
        }
        inject(fault, phase, &mut place)
    })();
    check_outcome(&mut place, fault, cell, told)?;
    // In some cases the check has migrated the guest once more.
    let runs = |side: &mut Side| Ok::<_, String>(side.exit_code().is_none() && side.answers()?.0 == "running");
    if runs(&mut place.source)? {
        return Ok(Some(place.source));
    }
    Ok(if runs(&mut place.destination)? { Some(place.destination) } else { None })
}

/// Checks what `cell` states about a case whose fault was caused, with the answer to the fault's command.
///
/// # Errors
/// What prevented the fault, or the condition that failed; and the state of both sides.
pub(super) fn check_outcome(place: &mut Place, fault: Fault, cell: &Cell, told: Result<Told>) -> Result<()> {
    let Cell::Ends { guest, source, destination, answer } = *cell else { return Ok(()) };
    let checked = told.and_then(|told| {
        says("the source", &mut place.source, source)?;
        says("the destination", &mut place.destination, destination)?;
        answered(answer, told)?;
        let mut ending = Ending { place, fault, source, destination };
        ending.check(guest)?;
        ending.lasts(guest)
    });
    checked.map_err(|why| format!("{why}\n  {}", describe(place)))
}

pub(super) fn oddities(fault: Fault, mark: Mark) -> Oddities {
    let change = |find, at, put| Some(Alteration { find, at, put });
    // Name, instance id 0, version 3 of QEMU's serial port, followed by divider (2 bytes), receive buffer, IER.
    const SERIAL: &[u8] = b"serial\0\0\0\0\0\0\0\x03";
    let alteration = match fault {
        Fault::WrongMagic => change(b"QEVM", 3, b"X"),
        Fault::WrongMachine => change(b"microvm", 0, b"macrovm"),
        Fault::LoadRefused => change(SERIAL, SERIAL.len() - 1, b"\x63"),
        Fault::UnknownSection => change(SERIAL, 0, b"cereal"),
        // CPUID leaf 7, index 0, flags 1, followed by EAX and by EBX, whose first byte contains bit 26: avx512pf, and
        // others.
        Fault::OtherCpu => change(b"\0\0\0\x07\0\0\0\0\0\0\0\x01", 16, b"\xff"),
        Fault::PostLoadFails => change(SERIAL, SERIAL.len() + 3, b"\xf0"),
        _ => None,
    };
    Oddities {
        hold: Some(mark),
        alteration,
        habits: Habits {
            late: (fault == Fault::PagesLate).then_some(CHANNEL),
            stray: (fault == Fault::PagesStray).then_some(CHANNEL),
        },
        message: match fault {
            Fault::DescriptorsLost => Message::Bare,
            Fault::DescriptorsTorn => Message::Torn,
            _ => Message::Arrives,
        },
        resumes: false,
        image_copied: fault == Fault::ImageCopied,
        memory_doubled: fault == Fault::OtherMemory,
        console_full: fault == Fault::DiskFull,
    }
}

fn inject(fault: Fault, phase: Phase, place: &mut Place) -> Result<Told> {
    match fault {
        Fault::SourceKilled => place.source.kill(),
        Fault::DestinationKilled => place.destination.kill(),
        Fault::WireCut => place.wire.behave(Wire::Cut),
        Fault::WireStalls => {
            place.wire.behave(Wire::Stalls);
            ends_at_source(place)?;
            place.wire.behave(Wire::Cut);
        }
        Fault::MainCut => place.wire.behave_on(Part::Main, Wire::Cut),
        Fault::PagesCut => place.wire.behave_on(Part::Pages(CHANNEL), Wire::Cut),
        Fault::PagesStall => place.wire.behave_on(Part::Pages(CHANNEL), Wire::Stalls),
        Fault::Strays => strays(place)?,
        Fault::WireTrickles => {
            place.wire.behave(Wire::Trickles(512));
            match phase {
                Phase::Setup | Phase::Rounds => {
                    let mut introduced = || Ok(place.destination.answers()?.1 == "active");
                    until("the destination has received the introduction", &mut introduced)?;
                    let told = command(place, "migrate_cancel", Value::Null)?;
                    place.wire.behave(Wire::Flows);
                    return Ok(told);
                }
                _ => ends_at_source(place)?,
            }
        }
        Fault::LockTaken => {
            let third = ThirdParty::take(&place.image)?;
            place.wire.behave(Wire::Flows);
            ends_at_source(place)?;
            until("the destination gives up", || Ok(place.destination.answers()?.1 == "failed"))?;
            drop(third);
        }
        Fault::LockTakenBriefly => {
            let third = ThirdParty::take(&place.image)?;
            place.wire.behave(Wire::Flows);
            std::thread::sleep(Duration::from_millis(200));
            drop(third);
        }
        Fault::EofLate => ends_at_source(place)?,
        Fault::EofLateAfterQuit => {
            ends_at_source(place)?;
            let before = place.source.last_pass();
            until("the guest goes on at the source", || Ok(place.source.last_pass() > before + 2))?;
            // The answer may be lost when the process ends.
            let _ = place.source.execute("quit", Value::Null);
            until("the source ends", || Ok(place.source.exit_code().is_some()))?;
        }
        Fault::GuestPowersOff | Fault::GuestReboots => {
            let powers_off = fault == Fault::GuestPowersOff;
            let keys = if powers_off { place.subject.power_off } else { place.subject.reboot };
            let side = if phase == Phase::Shut { &mut place.destination } else { &mut place.source };
            // A guest that has just booted may not read its serial port yet.
            let before = side.last_pass();
            until("the guest runs", || Ok(side.last_pass() > before))?;
            side.vmm.type_in(keys).map_err(|error| error.to_string())?;
            if powers_off {
                until("the process ends", || Ok(side.exit_code().is_some()))?;
            } else {
                // Bound this wait, because the other side does not wait until every guest has rebooted.
                let (vcpus, deadline) = (side.first_vcpu(), Instant::now() + A_WHILE);
                while side.first_vcpu() == vcpus && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        Fault::Cancel => return released(place, "migrate_cancel", Value::Null),
        Fault::Quit => {
            // A process that ends may not answer.
            let told = command(place, "quit", Value::Null)?;
            until("the source ends", || Ok(place.source.exit_code().is_some()))?;
            place.wire.behave(Wire::Flows);
            let lost = |why: &String| why.contains("lost");
            return Ok(told.map(|told| if told.as_ref().is_err_and(lost) { Ok(()) } else { told }));
        }
        Fault::Stop => return released(place, "stop", Value::Null),
        Fault::Reset => return released(place, "system_reset", Value::Null),
        Fault::PowerButton => return released(place, "system_powerdown", Value::Null),
        Fault::SecondMigrate => {
            let again = json!({ "uri": place.wire.uri() });
            return released(place, "migrate", again);
        }
        // These faults exist in post-copy only.
        Fault::Damaged | Fault::QuitThere => return Err(format!("{fault:?} belongs to another table")),
        Fault::ImageCopied
        | Fault::DiskFull
        | Fault::LoadRefused
        | Fault::PostLoadFails
        | Fault::OtherMemory
        | Fault::OtherCpu
        | Fault::UnknownSection
        | Fault::WrongMachine
        | Fault::WrongMagic
        | Fault::PagesLate
        | Fault::PagesStray
        | Fault::DescriptorsLost
        | Fault::DescriptorsTorn => {}
    }
    match fault {
        Fault::WireCut | Fault::WireStalls | Fault::MainCut => {}
        Fault::PagesCut | Fault::PagesStall => place.wire.behave_on(Part::Main, Wire::Flows),
        _ => place.wire.behave(Wire::Flows),
    }
    Ok(None)
}

/// Connects a peer with another protocol, a silent one, and two of another migration: one that sends nothing further,
/// and one that sends all that a page channel sends before the first page.
fn strays(place: &mut Place) -> Result<()> {
    const OPENING: &[u8] = b"\x11\x22\x33\x44\0\0\0\x01another migration";
    let mut opening = OPENING.to_vec();
    opening.resize(64, 0);
    let mut sync = b"\x11\x22\x33\x44\0\0\0\x01\0\0\0\x01".to_vec();
    sync.resize(1344, 0);
    let introduced = [&opening[..], &sync].concat();
    for words in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), Vec::new(), opening, introduced] {
        let stranger = UnixStream::connect(place.destination.door()).and_then(|mut stranger| {
            stranger.write_all(&words)?;
            Ok(stranger)
        });
        place.strangers.push(stranger.map_err(|error| format!("another connection: {error}"))?);
    }
    Ok(())
}

/// Executes a command at the source, and lets the relay pass data once the command is answered.
pub(super) fn released(place: &mut Place, name: &'static str, arguments: Value) -> Result<Told> {
    let (answer, asked) = (place.source.ask(name, arguments), Instant::now());
    until("a command is answered", || Ok(answer.is_finished()))?;
    let took = asked.elapsed();
    place.wire.behave(Wire::Flows);
    if took > AT_ONCE {
        return Err(format!("{name} was answered after {took:?}, while the relay was stalled"));
    }
    join(answer)
}

/// Executes a command at the source.
fn command(place: &Place, name: &'static str, arguments: Value) -> Result<Told> {
    join(place.source.ask(name, arguments))
}

fn join(answer: std::thread::JoinHandle<Result<()>>) -> Result<Told> {
    // Each of the thread's steps has a time limit of its own.
    answer.join().map(Some).map_err(|_| "the thread that executed a command panicked".to_owned())
}

/// Waits until the source's migration has ended, with any status.
fn ends_at_source(place: &mut Place) -> Result<()> {
    until("the source's migration ends", || {
        if place.source.exit_code().is_some() {
            return Ok(true);
        }
        let (_, status, _) = place.source.answers()?;
        Ok(!matches!(status.as_str(), "setup" | "active" | "device" | "cancelling" | "pre-switchover"))
    })
}

fn describe(place: &mut Place) -> String {
    let marks: Vec<Mark> = place.wire.seen().into_iter().map(|(mark, _)| mark).collect();
    let side = |name, side: &mut Side| {
        let state = match side.exit_code() {
            Some(code) => format!("ended with {code:?}"),
            None => format!("{:?}", side.answers()),
        };
        format!("{name}: {state}, last pass {}, stderr {:?}", side.last_pass(), side.vmm.errors())
    };
    let (source, destination) = (side("source", &mut place.source), side("destination", &mut place.destination));
    format!("{source}\n  {destination}\n  wire: {marks:?}")
}
