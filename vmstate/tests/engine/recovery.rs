//! Post-copy over further connections on the virtual wire: whatever breaks once the guest runs at the destination, both sides
//! connect again, agree on the missing pages, and the guest has all of its memory in the end.

use std::time::Duration;

use crate::pair::run::Outcome;
use crate::pair::world::{Fault, FaultKind, Side};
use crate::postcopy::{busy, lengths, small};
use vmstate::migrate::{DestinationPhase, Phase, SourcePhase};

fn reset(sender: Side, after: usize) -> Option<Fault> {
    Some(Fault { sender, after, kind: FaultKind::Reset })
}

fn completes(outcome: &Outcome, told: &str) {
    let Outcome { departure, arrival, source, destination, .. } = outcome;
    assert_eq!(departure.phase, SourcePhase::Completed, "{told}: {:?}", departure.error);
    assert_eq!(arrival.phase, DestinationPhase::Completed, "{told}: {:?}", arrival.error);
    assert!(destination.running && !source.running && destination.guest.is_whole(), "{told}");
    assert!(!source.guest.is_logging(), "{told}");
    assert!(destination.guest.memory() == destination.guest.written_over(source.guest.memory()), "{told}");
}

/// The guest has all of its memory, and the source did not learn that: no destination connects to it any more.
fn is_final_answer_lost(Outcome { departure, arrival, destination, .. }: &Outcome) -> bool {
    let phases = (departure.phase, arrival.phase);
    phases == (SourcePhase::Interrupted, DestinationPhase::Completed)
        && destination.running
        && destination.guest.is_whole()
}

/// The connection breaks ten times between the command to run and the end, at unrelated offsets.
#[test]
fn a_migration_recovers_from_ten_cuts() {
    let setup = busy();
    setup.source_control.start_postcopy();
    let (control, world) = (setup.source_control.clone(), setup.world.clone());
    let phases = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&phases);
    control.watch(move |phase| seen.lock().unwrap().push(phase));
    let cut = |index: usize| match index % 3 {
        0 if index < 6 => reset(Side::Destination, 210 + 4 * index),
        1 => Some(Fault { sender: Side::Source, after: 70_001, kind: FaultKind::HalfClose }),
        _ => reset(Side::Source, 50_003 + 5000 * index),
    };
    world.set_next((0..9).map(cut).chain([None]));
    let control = setup.source_control.clone();
    setup.world.at(Duration::from_millis(400), move || assert!(control.disconnect()));
    let outcome = setup.run();
    completes(&outcome, "ten cuts");
    assert_eq!(outcome.world.unused(), 0, "a connection did not break");
    assert!(outcome.departure.error.is_none() && outcome.arrival.error.is_none());
    let paused = Phase::Source(SourcePhase::PostcopyPaused);
    assert_eq!(phases.lock().unwrap().iter().filter(|phase| **phase == paused).count(), 10);
    // No page is requested of a source that does not know yet which guest continues, and no wait for a page is longer than
    // connecting again takes.
    assert!(outcome.destination.guest.waited().len() > 10);
}

/// The connection breaks at some offsets in either direction from the switch-over on, and at each offset around the command to run
/// and at the end: the guest stays at the source, or all of it arrives.
#[test]
fn a_break_loses_no_guest() {
    let (forward, begins, run, back) = lengths();
    let around = (run - 6..=run + 6).chain(forward - 6..=forward);
    let forward = (begins..run).step_by(7).chain((run..=forward).step_by(97)).chain(around);
    let cuts = forward.map(|after| (Side::Source, after)).chain((0..=back).map(|after| (Side::Destination, after)));
    let (mut taken_back, mut recovered) = (0, 0);
    for (sender, after) in cuts {
        let setup = small(reset(sender, after));
        setup.world.set_next([None]);
        let outcome = setup.run();
        let told = format!(
            "{sender:?} {after}, command to run at {run}: {:?} {:?}, {:?} {:?}",
            outcome.departure.phase, outcome.departure.error, outcome.arrival.phase, outcome.arrival.error
        );
        match (outcome.departure.phase, outcome.arrival.phase) {
            (SourcePhase::Failed, _) => {
                assert!(outcome.source.running && outcome.destination.sent_at_resume.is_none(), "{told}");
                taken_back += 1;
            }
            _ if is_final_answer_lost(&outcome) => {}
            _ => {
                completes(&outcome, &told);
                recovered += usize::from(outcome.world.unused() == 0);
            }
        }
    }
    assert!(taken_back > 50 && recovered > 100, "{taken_back}, {recovered}");
}

/// The first connection breaks in the middle of the pages, the second after each byte of the agreement on the missing pages.
#[test]
fn a_break_after_each_byte_of_a_recovery() {
    let (forward, _, run, _) = lengths();
    let first = reset(Side::Source, (run + forward) / 2);
    for sender in [Side::Source, Side::Destination] {
        for after in (1..150).step_by(2) {
            let setup = small(first);
            setup.world.set_next([reset(sender, after), None]);
            let outcome = setup.run();
            if is_final_answer_lost(&outcome) {
                assert!(sender == Side::Destination && after > 90, "{after}");
                continue;
            }
            completes(&outcome, &format!("{sender:?} {after}"));
        }
    }
}

/// The machine's thread waits for a page when the connection breaks, and continues to wait.
#[test]
fn a_break_while_the_machine_resumes() {
    let length = |touches| {
        let mut setup = busy();
        setup.source_control.start_postcopy();
        setup.destination.touches = touches;
        setup.run().destination.sent_at_resume.unwrap()
    };
    let resumes = length(Some(("resume", 800)));
    let mut broke_within = false;
    for back in [1, 2000, 9000, 20_000] {
        let mut setup = busy();
        setup.source_control.start_postcopy();
        setup.destination.touches = Some(("resume", 800));
        setup.world.set_next([None]);
        let control = setup.destination_control.clone();
        setup.world.set_fault(reset(Side::Source, resumes - back));
        let outcome = setup.run();
        completes(&outcome, &format!("{back} bytes before"));
        broke_within |= outcome.world.unused() == 0 && outcome.destination.sent_at_resume.unwrap() > resumes - back;
        assert_eq!(control.progress().phase, Phase::Destination(DestinationPhase::Completed));
    }
    assert!(broke_within, "no break while the machine resumed");
}

/// In pre-copy no guest waits for the source's pages, so `disconnect` has no effect.
#[test]
fn a_migration_in_pre_copy_is_not_disconnected() {
    let setup = busy();
    let control = setup.source_control.clone();
    setup.world.set_next([None]);
    setup.world.at(Duration::from_millis(100), move || assert!(!control.disconnect()));
    setup.source_control.set_downtime_limit(Duration::from_secs(10));
    let outcome = setup.run();
    assert_eq!((outcome.departure.phase, outcome.world.unused()), (SourcePhase::Completed, 1));
}

/// Whatever another peer sends over a replacing connection is refused, and the guest waits for the next connection.
#[test]
fn other_peers_over_another_connection() {
    let asks = |name: &[u8]| [&[8, 0, 10, 0, name.len() as u8 + 1, name.len() as u8], name].concat();
    let peers = [
        (b"QEVM\0\0\0\x03".to_vec(), "section type 0x51 does not exist"),
        (b"\0".to_vec(), "with something else than a request for received pages"),
        (b"\x08\0\x05\0\0".to_vec(), "with something else than a request for received pages"),
        (asks(b"none"), "the received pages of RAM block none, which does not exist here"),
        (Vec::new(), "the peer is silent"),
        // Without end.
        (asks(b"rom").repeat(3000), "the stream is too slow"),
    ];
    let whys = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let arrival = crate::postcopy::result_of_reconnections(peers.iter().map(|(said, _)| said.clone()).collect(), &whys);
    assert_eq!(arrival.phase, DestinationPhase::Interrupted);
    let whys = whys.lock().unwrap();
    assert_eq!(whys.len(), peers.len() + 1, "{whys:?}");
    for (why, (_, expected)) in whys[1..].iter().zip(&peers) {
        assert!(why.contains(expected), "{expected}: {why}");
    }
}
