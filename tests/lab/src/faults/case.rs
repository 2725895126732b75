//! One case of the matrix, with two real processes: the fault, and the conditions after it.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cell::{Cell, Fault, Guest, Phase};
use super::descriptors::Message;
use super::marks::Mark;
use super::outcome::{CommandResult, Outcome, await_state, check_answer};
use super::page_channels::PageChannelOptions;
use super::relay::{Alteration, Behaviour, Part};
use super::setup::Setup;
use super::side::Side;
use super::testbed::{Testbed, TestbedOptions};
use super::third_party::ThirdParty;
use super::{Result, TIMEOUT, until};

/// Time limit for the answer to a command while the relay is stalled: less than the time after which the source gives
/// up by itself, which is 10 s while the guest runs (`SourceOptions`), and the pause's budget once the guest is paused.
const AT_ONCE: Duration = Duration::from_secs(9);
/// Number of the page channel for the faults of a single channel.
const CHANNEL: usize = 1;
/// Longest time for a guest to read its serial port and to reboot, on a busy host; less than the source waits for an answer.
const REBOOT_TIME: Duration = Duration::from_secs(5);
/// Bytes that remain of a truncated image: the part that the guest uses.
pub(super) const KEPT: u64 = 64 << 10;
/// Most bytes for filling a file system, which is a small one.
const FILLER_MAX: usize = 64 << 20;

/// Causes the fault for a guest that runs at `source` and checks the outcome. Returns the side that runs the guest
/// then.
///
/// # Errors
/// The condition that failed, and the state of both sides.
pub fn run(setup: &Setup, source: Side, fault: Fault, phase: Phase, cell: &Cell) -> Result<Option<Side>> {
    let Cell::Ends { guest, .. } = *cell else { return Ok(Some(source)) };
    let mark = setup.mark(phase);
    let mut testbed = Testbed::new(setup, source, &options(fault, mark))?;
    let result = (|| {
        if fault == Fault::Cancel {
            testbed.pause_for(TIMEOUT)?;
        }
        testbed.migrate()?;
        // A busy emulated host has needed a minute for the first round of a tiny guest.
        if !matches!(fault, Fault::DescriptorsLost | Fault::DescriptorsTorn) {
            testbed.relay.await_mark(mark, Instant::now() + 3 * TIMEOUT)?;
        }
        if fault == Fault::DestinationKilled && guest == Guest::DiedWithItsProcess {
            // If the destination is killed between `SHUT` and the advance of its record, it has not run the guest, and
            // the source may resume it.
            until("the destination runs the guest", || Ok(testbed.destination.state()?.0 == "running"))?;
        }
        inject(fault, phase, &mut testbed)
    })();
    check_outcome(&mut testbed, fault, cell, result)?;
    // In some cases the check has migrated the guest once more.
    let runs = |side: &mut Side| Ok::<_, String>(side.exit_code().is_none() && side.state()?.0 == "running");
    if runs(&mut testbed.source)? {
        return Ok(Some(testbed.source));
    }
    Ok(if runs(&mut testbed.destination)? { Some(testbed.destination) } else { None })
}

/// Checks what `cell` states about a case whose fault was caused, with the answer to the fault's command.
///
/// # Errors
/// What prevented the fault, or the condition that failed; and the state of both sides.
pub(super) fn check_outcome(
    testbed: &mut Testbed,
    fault: Fault,
    cell: &Cell,
    result: Result<CommandResult>,
) -> Result<()> {
    let Cell::Ends { guest, source, destination, answer } = *cell else { return Ok(()) };
    let checked = result.and_then(|result| {
        await_state("the source", &mut testbed.source, source)?;
        await_state("the destination", &mut testbed.destination, destination)?;
        check_answer(answer, result)?;
        let mut outcome = Outcome { testbed, fault, source, destination };
        outcome.check(guest)?;
        outcome.check_lasts(guest)
    });
    checked.map_err(|why| format!("{why}\n  {}", describe(testbed)))
}

pub(super) fn options(fault: Fault, mark: Mark) -> TestbedOptions {
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
    TestbedOptions {
        hold: Some(mark),
        alteration,
        page_channels: PageChannelOptions {
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
        copy_exists: fault == Fault::CopyExists,
        memory_doubled: fault == Fault::OtherMemory,
        console_full: fault == Fault::DiskFull,
    }
}

fn inject(fault: Fault, phase: Phase, testbed: &mut Testbed) -> Result<CommandResult> {
    match fault {
        Fault::SourceKilled => testbed.source.kill(),
        Fault::DestinationKilled => testbed.destination.kill(),
        Fault::WireCut => testbed.relay.set_behaviour(Behaviour::Cut),
        Fault::WireStalls => {
            testbed.relay.set_behaviour(Behaviour::Stalls);
            ends_at_source(testbed)?;
            testbed.relay.set_behaviour(Behaviour::Cut);
        }
        Fault::MainCut => testbed.relay.set_behaviour_of(Part::Main, Behaviour::Cut),
        Fault::PagesCut => testbed.relay.set_behaviour_of(Part::Pages(CHANNEL), Behaviour::Cut),
        Fault::PagesStall => testbed.relay.set_behaviour_of(Part::Pages(CHANNEL), Behaviour::Stalls),
        Fault::Strays => connect_strays(testbed)?,
        Fault::WireTrickles => {
            testbed.relay.set_behaviour(Behaviour::Trickles(512));
            match phase {
                Phase::Setup | Phase::Rounds => {
                    let mut handshaken = || Ok(testbed.destination.state()?.1 == "active");
                    until("the destination has received the handshake", &mut handshaken)?;
                    let result = join(testbed.source.ask("migrate_cancel", Value::Null))?;
                    testbed.relay.set_behaviour(Behaviour::Flows);
                    return Ok(result);
                }
                _ => ends_at_source(testbed)?,
            }
        }
        Fault::LockTaken => {
            let third = ThirdParty::take(&testbed.image)?;
            testbed.relay.set_behaviour(Behaviour::Flows);
            ends_at_source(testbed)?;
            until("the destination gives up", || Ok(testbed.destination.state()?.1 == "failed"))?;
            drop(third);
        }
        Fault::LockTakenBriefly => {
            let third = ThirdParty::take(&testbed.image)?;
            testbed.relay.set_behaviour(Behaviour::Flows);
            std::thread::sleep(Duration::from_millis(200));
            drop(third);
        }
        Fault::NoRoomForCopy => {
            let filler = fill(&testbed.destination_image().with_file_name("filler"))?;
            testbed.relay.set_behaviour(Behaviour::Flows);
            ends_at_source(testbed)?;
            drop(filler);
        }
        Fault::ImageTruncated => truncate(&testbed.image)?,
        Fault::EofLate => ends_at_source(testbed)?,
        Fault::EofLateAfterQuit => {
            ends_at_source(testbed)?;
            let before = testbed.source.last_pass();
            until("the guest goes on at the source", || Ok(testbed.source.last_pass() > before + 2))?;
            // The answer may be lost when the process ends.
            let _ = testbed.source.execute("quit", Value::Null);
            until("the source ends", || Ok(testbed.source.exit_code().is_some()))?;
        }
        Fault::GuestPowersOff | Fault::GuestReboots => {
            let powers_off = fault == Fault::GuestPowersOff;
            let keys = if powers_off { testbed.test_guest.power_off } else { testbed.test_guest.reboot };
            let side = if phase == Phase::Shut { &mut testbed.destination } else { &mut testbed.source };
            // A guest that has just booted may not read its serial port yet.
            let before = side.last_pass();
            until("the guest runs", || Ok(side.last_pass() > before))?;
            side.vmm.type_in(keys).map_err(|error| error.to_string())?;
            if powers_off {
                until("the process ends", || Ok(side.exit_code().is_some()))?;
            } else {
                // Bound this wait, because the other side does not wait until every guest has rebooted.
                let (vcpus, deadline) = (side.thread("vcpu0"), Instant::now() + REBOOT_TIME);
                while side.thread("vcpu0") == vcpus && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        Fault::Cancel => return released(testbed, "migrate_cancel", Value::Null),
        Fault::Quit => return quit(testbed, |testbed| &mut testbed.source),
        Fault::QuitThere => return quit(testbed, |testbed| &mut testbed.destination),
        Fault::Stop => return released(testbed, "stop", Value::Null),
        Fault::Reset => return released(testbed, "system_reset", Value::Null),
        Fault::PowerButton => return released(testbed, "system_powerdown", Value::Null),
        Fault::SecondMigrate => {
            let again = json!({ "uri": testbed.relay.uri() });
            return released(testbed, "migrate", again);
        }
        // These faults exist in post-copy or for a snapshot only.
        Fault::Damaged | Fault::NoRoomForFile => return Err(format!("{fault:?} belongs to another table")),
        Fault::ImageCopied
        | Fault::CopyExists
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
        Fault::PagesCut | Fault::PagesStall => testbed.relay.set_behaviour_of(Part::Main, Behaviour::Flows),
        _ => testbed.relay.set_behaviour(Behaviour::Flows),
    }
    Ok(None)
}

/// Truncates an image to the part that the guest uses.
pub(super) fn truncate(image: &Path) -> Result<()> {
    let truncated = File::options().write(true).open(image).and_then(|image| image.set_len(KEPT));
    truncated.map_err(|error| format!("{}: {error}", image.display()))
}

/// Fills the file system with a file, which is removed when the result is dropped.
pub(super) fn fill(path: &Path) -> Result<tempfile::TempPath> {
    let failed = |error| format!("{}: {error}", path.display());
    let mut file = File::create(path).map_err(failed)?;
    let filler = tempfile::TempPath::try_from_path(path).map_err(failed)?;
    let block = &[7; 4096];
    for _ in 0..FILLER_MAX / block.len() {
        match file.write_all(block) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(filler),
            Err(error) => return Err(failed(error)),
        }
    }
    Err(format!("{}: the file system has room for more than {FILLER_MAX} bytes", path.display()))
}

/// Connects a peer with another protocol, a silent one, and two of another migration: one that sends nothing further,
/// and one that sends all that a page channel sends before the first page.
fn connect_strays(testbed: &mut Testbed) -> Result<()> {
    const OPENING: &[u8] = b"\x11\x22\x33\x44\0\0\0\x01another migration";
    let mut opening = OPENING.to_vec();
    opening.resize(64, 0);
    let mut sync = b"\x11\x22\x33\x44\0\0\0\x01\0\0\0\x01".to_vec();
    sync.resize(1344, 0);
    let opening_and_sync = [&opening[..], &sync].concat();
    for words in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), Vec::new(), opening, opening_and_sync] {
        let stranger = UnixStream::connect(testbed.destination.incoming_socket()).and_then(|mut stranger| {
            stranger.write_all(&words)?;
            Ok(stranger)
        });
        testbed.other_connections.push(stranger.map_err(|error| format!("another connection: {error}"))?);
    }
    Ok(())
}

/// Executes a command at the source, and lets the relay pass data once the command is answered.
pub(super) fn released(testbed: &mut Testbed, name: &'static str, arguments: Value) -> Result<CommandResult> {
    let (answer, asked) = (testbed.source.ask(name, arguments), Instant::now());
    until("a command is answered", || Ok(answer.is_finished()))?;
    let took = asked.elapsed();
    testbed.relay.set_behaviour(Behaviour::Flows);
    if took > AT_ONCE {
        return Err(format!("{name} was answered after {took:?}, while the relay was stalled"));
    }
    join(answer)
}

/// Executes `quit` at a side, and lets the relay pass data once its process has ended.
pub(super) fn quit(testbed: &mut Testbed, side: impl Fn(&mut Testbed) -> &mut Side) -> Result<CommandResult> {
    let answer = side(testbed).ask("quit", Value::Null);
    until("the process ends", || Ok(side(testbed).exit_code().is_some()))?;
    testbed.relay.set_behaviour(Behaviour::Flows);
    join_quit(answer)
}

/// As [`join`], for the answer to `quit`: a process that ends may not answer.
pub(super) fn join_quit(answer: std::thread::JoinHandle<Result<()>>) -> Result<CommandResult> {
    let lost = |why: &String| why.contains("lost");
    Ok(join(answer)?.map(|result| if result.as_ref().is_err_and(lost) { Ok(()) } else { result }))
}

pub(super) fn join(answer: std::thread::JoinHandle<Result<()>>) -> Result<CommandResult> {
    // Each of the thread's steps has a time limit of its own.
    answer.join().map(Some).map_err(|_| "the thread that executed a command panicked".to_owned())
}

/// Waits until the source's migration has ended, with any status.
fn ends_at_source(testbed: &mut Testbed) -> Result<()> {
    until("the source's migration ends", || {
        if testbed.source.exit_code().is_some() {
            return Ok(true);
        }
        let (_, status, _) = testbed.source.state()?;
        Ok(!matches!(status.as_str(), "setup" | "active" | "device" | "cancelling" | "pre-switchover"))
    })
}

fn describe(testbed: &mut Testbed) -> String {
    let marks: Vec<Mark> = testbed.relay.seen().into_iter().map(|(mark, _)| mark).collect();
    let side = |name, side: &mut Side| {
        let state = match side.exit_code() {
            Some(code) => format!("ended with {code:?}"),
            None => format!("{:?}", side.state()),
        };
        format!("{name}: {state}, last pass {}, stderr {:?}", side.last_pass(), side.vmm.errors())
    };
    let (source, destination) = (side("source", &mut testbed.source), side("destination", &mut testbed.destination));
    format!("{source}\n  {destination}\n  relay: {marks:?}")
}
