//! A fault of every kind after every byte of a small migration, in both directions: each time, exactly one side runs the guest,
//! with the right memory and devices, and no pause lasts longer than its budget.

use std::time::Duration;

use crate::pair::run::{Outcome, Setup};
use crate::pair::world::{Fault, FaultKind, Side};
use vmstate::migrate::SourcePhase;

const BLOCKS: [(&str, u64); 2] = [("main.ram", 3), ("rom", 1)];

/// The default budget of a pause: four times the downtime limit of 300 ms.
const BUDGET: Duration = Duration::from_millis(1200);
/// The longest time between two checks of a deadline.
const CHECK_INTERVAL: Duration = Duration::from_millis(25);

/// Offsets inside of the one normal page.
const PAGE: std::ops::Range<usize> = 300..4200;

fn setup(fault: Option<Fault>) -> Setup {
    let setup = Setup::new(&BLOCKS, fault);
    setup.source.guest.poke(0, 4096 + 7, 0x5a);
    setup.source.guest.set_running(true);
    setup
}

/// Bytes that each side sends without a fault, and how many of the source's bytes are needed for the commit: all up to the EOF
/// byte, which is the byte before the self-description.
fn lengths() -> (usize, usize, usize) {
    let outcome = setup(None).run();
    assert_eq!(outcome.departure.phase, SourcePhase::Completed);
    let stream = outcome.world.recorded();
    let text = stream.windows(2).position(|bytes| bytes == b"{\"").unwrap();
    let (forward, back) = (outcome.world.sent(Side::Source), outcome.world.sent(Side::Destination));
    let page = stream.windows(8).position(|bytes| bytes == [0, 0, 0, 0, 0x5a, 0, 0, 0]).unwrap();
    assert!(page < PAGE.start + 7 && PAGE.end < page + 4088, "{PAGE:?} is not inside the page at {page}");
    // Marker and length of the self-description are five bytes.
    assert_eq!(stream[text - 6..text - 4], [0x00, 0x06]);
    (forward, text - 5, back)
}

fn check(outcome: &Outcome, fault: Fault, committed: bool) {
    let Outcome { departure, arrival, source, destination, .. } = outcome;
    let told = format!(
        "{fault:?}: {:?} {:?}, destination {:?} {:?}",
        departure.phase, departure.error, arrival.phase, arrival.error
    );
    assert!(!(source.running && destination.running), "two guests: {told}");
    let source_died = outcome.world.is_dead(Side::Source);
    let destination_died = outcome.world.is_dead(Side::Destination);
    if source_died {
        assert_eq!(destination.running, committed, "a dead source's guest runs there once it was given away: {told}");
    } else if destination_died && departure.phase == SourcePhase::Completed {
        // The destination had reported that it runs the guest, and took the guest with it.
        assert!(!source.running, "{told}");
    } else {
        assert!(source.running || destination.running, "no guest: {told}");
    }
    if destination.running {
        assert!(arrival.error.is_none(), "{told}");
        assert_eq!(destination.guest.memory(), source.guest.memory(), "{told}");
        assert_eq!(outcome.destination_devices, outcome.source_devices, "{told}");
    } else {
        // The self-description comes after the commit, and the destination's times after its final answer: a destination that
        // dies there had run the guest.
        let was_told = fault.sender == Side::Source && committed || departure.phase == SourcePhase::Completed;
        let had_run = destination_died && was_told;
        assert!(arrival.error.is_some() || had_run, "{told}");
    }
    if !source_died {
        assert_eq!(source.running, matches!(departure.phase, SourcePhase::Failed), "{told}");
    }
    assert!(!source.guest.is_logging(), "the log was left on: {told}");
    if let Some(pause) = source.pause_lasted {
        // The wait for the destination's final answer, and for its lock.
        let commit = if source.released { BUDGET + Duration::from_secs(5) } else { Duration::ZERO };
        assert!(pause <= BUDGET + commit + CHECK_INTERVAL, "paused for {pause:?}: {told}");
    }
}

fn every_byte(sender: Side, kind: FaultKind) {
    every_byte_of(sender, kind, 1, setup);
}

/// The socket buffers are so small that a sender has to wait for a peer that does not read.
fn cramped(fault: Option<Fault>) -> Setup {
    let setup = setup(fault);
    setup.world.set_buffer(64);
    setup
}

/// Tests every `step`th byte only.
fn every_byte_of(sender: Side, kind: FaultKind, step: usize, setup: fn(Option<Fault>) -> Setup) {
    let (forward, to_commit, back) = lengths();
    let length = if sender == Side::Source { forward } else { back };
    for after in (0..=length).step_by(step) {
        // Inside of the one normal page, a closed wire is equivalent to any other fault, and faster to test.
        if sender == Side::Source && kind != FaultKind::HalfClose && PAGE.contains(&after) {
            continue;
        }
        let fault = Fault { sender, after, kind };
        let outcome = setup(Some(fault)).run();
        check(&outcome, fault, sender == Side::Destination || after >= to_commit);
    }
}

#[test]
fn stream_reset() {
    every_byte(Side::Source, FaultKind::Reset);
}

#[test]
fn stream_closed() {
    every_byte(Side::Source, FaultKind::HalfClose);
}

#[test]
fn stream_swallowed() {
    every_byte(Side::Source, FaultKind::Silent);
}

#[test]
fn source_dies_while_sending() {
    every_byte(Side::Source, FaultKind::SenderDies);
}

#[test]
fn destination_dies_while_receiving() {
    every_byte(Side::Source, FaultKind::ReceiverDies);
}

/// The contents of the socket buffers stay there, and neither side gets an error.
#[test]
fn stream_stalled() {
    every_byte_of(Side::Source, FaultKind::Slows(0), 1, cramped);
}

/// Bytes keep arriving, so that no wait for the next one is long.
#[test]
fn stream_trickles() {
    every_byte_of(Side::Source, FaultKind::Slows(100), 5, cramped);
    every_byte_of(Side::Source, FaultKind::Slows(1000), 2, setup);
}

#[test]
fn answers_stalled() {
    every_byte_of(Side::Destination, FaultKind::Slows(0), 1, cramped);
}

#[test]
fn answers_trickle() {
    every_byte(Side::Destination, FaultKind::Slows(1));
}

#[test]
fn answers_reset() {
    every_byte(Side::Destination, FaultKind::Reset);
}

#[test]
fn answers_closed() {
    every_byte(Side::Destination, FaultKind::HalfClose);
}

#[test]
fn answers_swallowed() {
    every_byte(Side::Destination, FaultKind::Silent);
}

#[test]
fn destination_dies_while_answering() {
    every_byte(Side::Destination, FaultKind::SenderDies);
}

/// Without a disk, neither side can prove who may run the guest after it was handed over: the source then stays paused and
/// reports so.
#[test]
fn without_a_lock_never_two_guests() {
    let (forward, _, back) = lengths();
    let mut undecided = 0;
    for (sender, length) in [(Side::Source, forward), (Side::Destination, back)] {
        for kind in [FaultKind::Reset, FaultKind::Silent] {
            for after in 0..=length {
                if sender == Side::Source && PAGE.contains(&after) {
                    continue;
                }
                let fault = Fault { sender, after, kind };
                let mut setup = setup(Some(fault));
                (setup.source.lock, setup.destination.lock) = (None, None);
                let Outcome { departure, source, destination, .. } = setup.run();
                let told = format!("{fault:?}: {:?} {:?}", departure.phase, departure.error);
                assert!(!(source.running && destination.running), "two guests: {told}");
                match departure.phase {
                    SourcePhase::Failed => assert!(source.running && !destination.running, "{told}"),
                    SourcePhase::Completed => assert!(!source.running && destination.running, "{told}"),
                    SourcePhase::Undecided => {
                        undecided += 1;
                        assert!(!source.running, "{told}");
                    }
                    phase => panic!("{phase:?}: {told}"),
                }
            }
        }
    }
    assert!(undecided > 0, "no fault hit the commit");
}

/// On a slow wire, the destination runs the guest and closes the connection while the source still sends the self-description.
/// The source still receives the final answer that came before.
#[test]
fn the_final_answer_is_received_through_a_broken_wire() {
    let (_, to_commit, _) = lengths();
    let fault = Fault { sender: Side::Source, after: to_commit, kind: FaultKind::Slows(100) };
    let setup = cramped(Some(fault));
    setup.source_control.set_pause_budget(Some(Duration::from_secs(60)));
    let outcome = setup.run();
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    assert!(outcome.destination.running && !outcome.source.running);
}
