//! Whole migrations on a virtual wire: the oracle is the source guest's own memory, to which every write was made.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::pair::device::Device;
use crate::pair::guest::Load;
use crate::pair::run::{Outcome, Setup};
use crate::pair::vm::{Lock, Vm};
use crate::pair::world::{Fault, FaultKind, Side, World};
use vmstate::error::ErrorKind;
use vmstate::migrate::{DestinationPhase, SectionReport, SourcePhase};

const BLOCKS: [(&str, u64); 3] = [("main.ram", 40), ("rom", 2), ("table", 1)];
const LARGE: [(&str, u64); 2] = [("main.ram", 3000), ("rom", 2)];
const MEGABYTE: f64 = 1e6;

/// A guest full of data that writes all the time, on a wire of that many bytes a second.
fn busy(bytes_per_second: f64, writes_per_second: f64, working_set: u64) -> Setup {
    let world = World::new(None, Some(bytes_per_second), Duration::from_micros(200));
    let setup = Setup::with(&LARGE, world, Load { writes_per_second, working_set });
    for page in 0..LARGE[0].1 {
        setup.source.guest.poke(0, page * 4096 + page, 1 + page as u8 % 200);
    }
    setup
}

fn assert_arrived(outcome: &Outcome) {
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    assert!(outcome.arrival.error.is_none());
    assert!(outcome.destination.running && !outcome.source.running);
    // Time and the guest continue after the hand-over; at the source, where the guest does not run, the devices stand still.
    assert_eq!(outcome.destination_devices, outcome.source_devices);
    assert!(!outcome.source.guest.is_logging());
}

fn assert_stayed(outcome: &Outcome, phase: SourcePhase) {
    assert_eq!(outcome.departure.phase, phase, "{:?}", outcome.departure.error);
    assert!(outcome.arrival.error.is_some());
    assert!(outcome.source.running && !outcome.destination.running);
    assert!(!outcome.source.guest.is_logging());
}

#[test]
fn an_idle_guest_arrives_whole() {
    let setup = Setup::new(&BLOCKS, None);
    for page in [0, 3, 17, 39] {
        setup.source.guest.poke(0, page * 4096 + page, 0xa0 + page as u8);
    }
    setup.source.guest.poke(2, 4095, 1);
    let outcome = setup.run();
    assert_arrived(&outcome);
    assert_eq!(outcome.destination.guest.memory(), outcome.source.guest.memory());
    let arrival = outcome.arrival.report;
    assert_eq!((arrival.pages.normal, arrival.pages.zero), (5, 38));
}

/// Memory that both sides share is neither sent nor written, however fast the guest writes to it; all other memory is sent as
/// usual, also if the stream does not say which memory is shared.
#[test]
fn memory_that_both_sides_share_stays_where_it_is() {
    for announced in [true, false] {
        let world = World::new(None, Some(MEGABYTE), Duration::from_micros(200));
        let load = Load { writes_per_second: 1e6, working_set: 40 };
        let mut setup = Setup::with(&BLOCKS, world, load);
        (setup.source.guest.shared_at, setup.destination.guest.shared_at) = (Some(0x10_0000), Some(0x10_0000));
        (setup.source.guest.announces_shared, setup.destination.guest.announces_shared) = (announced, announced);
        setup.source.guest.poke(0, 5, 5);
        setup.source.guest.poke(1, 4097, 6);
        setup.source.guest.poke(2, 7, 7);
        let outcome = setup.run();
        assert_arrived(&outcome);
        let (here, there) = (outcome.source.guest.memory(), outcome.destination.guest.memory());
        assert_eq!(here[1..], there[1..]);
        // In this test each side has its own copy, so that a write would be visible. The guest already runs there by now.
        let pages = outcome.arrival.report.pages;
        assert_eq!((pages.normal, pages.zero), (2, 1));
        assert_ne!(here[0][5], there[0][5]);
        // One round, and one after the rehearsal.
        let rounds = &outcome.departure.report.rounds;
        assert!(rounds.len() <= 2 && rounds.iter().all(|round| round.dirtied == 0), "{rounds:?}");
    }
}

/// Whichever side does not share the memory, or has it at another address: the destination refuses before it has stored anything.
#[test]
fn memory_that_one_side_takes_for_shared_is_refused() {
    for (here, there, announced, why) in [
        (Some(0), None, true, "capability x-ignore-shared is on at the source and not supported here"),
        (Some(0), Some(0), false, "capability x-ignore-shared is on at the source and not supported here"),
        (None, Some(0), true, "capability x-ignore-shared is missing"),
        (None, Some(0), false, "a page of RAM block main.ram, whose memory both sides share"),
        (Some(0x1000), Some(0), true, "shared RAM block main.ram is at 0x1000 at the source and at 0x0 here"),
    ] {
        let mut setup = Setup::new(&BLOCKS, None);
        (setup.source.guest.shared_at, setup.destination.guest.shared_at) = (here, there);
        setup.destination.guest.announces_shared = announced;
        setup.source.guest.poke(0, 1, 1);
        let outcome = setup.run();
        assert_stayed(&outcome, SourcePhase::Failed);
        let error = outcome.departure.error.as_ref().unwrap();
        assert!(error.to_string().contains(why), "{error}");
        // Without the capability only the first page shows it.
        assert!(outcome.arrival.pristine || why.starts_with("a page"));
        assert!(outcome.destination.guest.memory().iter().flatten().all(|byte| *byte == 0));
    }
}

#[test]
fn a_busy_guest_arrives_whole_and_within_its_downtime() {
    for clears_when_read in [false, true] {
        let mut setup = busy(50.0 * MEGABYTE, 4000.0, 500);
        setup.source.guest.clears_when_read = clears_when_read;
        setup.source.pause_takes = Duration::from_millis(3);
        setup.source_control.set_downtime_limit(Duration::from_millis(30));
        let control = setup.source_control.clone();
        let outcome = setup.run();
        assert_arrived(&outcome);
        assert_eq!(outcome.destination.guest.memory(), outcome.source.guest.memory());
        let report = &outcome.departure.report;
        assert!(report.rounds.len() > 1, "{report:?}");
        assert!(report.rounds[0].dirtied > 300 && report.rounds[0].dirtied <= 500, "{report:?}");
        assert_eq!(report.rounds[0].pages.normal + report.rounds[0].pages.zero, 3002);
        let downtime = report.downtime.unwrap();
        assert_eq!(downtime.pause, Duration::from_millis(3));
        assert!(downtime.total() < Duration::from_millis(30), "{downtime:?}");
        assert_eq!(control.progress().downtime, Some(downtime));
        assert_eq!(report.bytes, outcome.world.sent(Side::Source) as u64);
    }
}

#[test]
fn a_guest_faster_than_the_wire_is_given_up_and_can_go_later() {
    let setup = busy(10.0 * MEGABYTE, 1e5, 3000);
    setup.set_max_rounds(Some(4));
    let control = setup.source_control.clone();
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Failed);
    let error = outcome.departure.error.as_ref().unwrap();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.to_string().contains("limit of rounds"), "{error}");
    assert_eq!(outcome.departure.report.rounds.len(), 4);
    // At 10 MB/s, 12 MB take 1.2 s, and all pages are dirty again by then.
    let progress = control.progress();
    assert_eq!(progress.expected_total, None);
    let expected = progress.expected_downtime.unwrap();
    assert!(expected > Duration::from_millis(1100) && expected < Duration::from_millis(1400), "{expected:?}");
    let outcome = Setup::again(outcome, &LARGE).run();
    assert_arrived(&outcome);
    assert_eq!(outcome.destination.guest.memory(), outcome.source.guest.memory());
}

#[test]
fn a_raised_downtime_limit_lets_it_through() {
    let setup = busy(10.0 * MEGABYTE, 1e5, 3000);
    setup.source_control.set_downtime_limit(Duration::from_secs(2));
    let outcome = setup.run();
    assert_arrived(&outcome);
    // The second round is the one in which the guest runs after its rehearsal.
    assert_eq!(outcome.departure.report.rounds.len(), 2);
}

#[test]
fn a_limit_on_bandwidth_is_kept_in_the_rounds_and_lifted_for_the_switch_over() {
    let setup = busy(100.0 * MEGABYTE, 300.0, 3000);
    setup.source_control.set_bandwidth_limit(4_000_000);
    let outcome = setup.run();
    assert_arrived(&outcome);
    let report = outcome.departure.report;
    assert!(report.rounds[0].pages.normal > 0);
    // A round without a page takes a round trip.
    for round in report.rounds.iter().filter(|round| round.pages.normal > 0) {
        let speed = round.bytes as f64 / round.duration.as_secs_f64();
        assert!(speed < 4.1e6 && speed > 3.5e6, "{round:?}: {speed}");
    }
    // At the limited speed, these pages alone would take 35 ms.
    let last = report.pages.normal - report.rounds.iter().map(|round| round.pages.normal).sum::<u64>();
    let downtime = report.downtime.unwrap();
    assert!(last > 50, "{report:?}");
    assert!(downtime.total() < Duration::from_millis(35), "{last} pages, {downtime:?}");
}

#[test]
fn cancelled_in_any_phase_the_guest_goes_on_and_can_go_later() {
    for syncs in [1, 3, 5] {
        let mut setup = busy(50.0 * MEGABYTE, 4000.0, 500);
        setup.source_control.set_downtime_limit(Duration::from_millis(10));
        setup.source.guest.cancels_in = Some((syncs, setup.source_control.clone()));
        let outcome = setup.run();
        assert_stayed(&outcome, SourcePhase::Cancelled);
        assert!(outcome.departure.report.rounds.len() <= syncs as usize / 2 + 1);
        let outcome = Setup::again(outcome, &LARGE).run();
        assert_arrived(&outcome);
        assert_eq!(outcome.destination.guest.memory(), outcome.source.guest.memory());
    }
    let mut setup = Setup::new(&BLOCKS, None);
    setup.source.cancels_at = Some(("pause", setup.source_control.clone()));
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Cancelled);
    assert_eq!(outcome.source.cancel_granted, Some(true));

    let setup = Setup::new(&BLOCKS, None);
    assert!(setup.source_control.cancel());
    assert_stayed(&setup.run(), SourcePhase::Cancelled);
}

/// Much longer than a destination waits for a silent source.
#[test]
fn a_machine_is_waited_for_before_the_switch_over_and_the_connection_is_kept_up() {
    let mut setup = Setup::new(&BLOCKS, None);
    setup.source.holds_until = Some(Duration::from_secs(600));
    let outcome = setup.run();
    assert_arrived(&outcome);
    assert!(outcome.departure.report.downtime.unwrap().total() < Duration::from_secs(1), "the wait is no part of it");
}

#[test]
fn while_a_machine_is_waited_for_a_cancel_and_a_broken_connection_let_the_guest_go_on() {
    let mut setup = Setup::new(&BLOCKS, None);
    setup.source.holds_until = Some(Duration::MAX);
    setup.source.cancels_at = Some(("hold", setup.source_control.clone()));
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Cancelled);
    assert!(outcome.source.running);

    let mut setup = Setup::new(&BLOCKS, None);
    setup.source.holds_until = Some(Duration::MAX);
    let control = setup.destination_control.clone();
    setup.world.at(Duration::from_secs(60), move || assert!(control.cancel()));
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Failed);
    assert!(outcome.source.running);
}

#[test]
fn after_the_commit_has_begun_a_cancel_is_refused() {
    let mut setup = Setup::new(&BLOCKS, None);
    setup.source.cancels_at = Some(("release", setup.source_control.clone()));
    let outcome = setup.run();
    assert_eq!(outcome.source.cancel_granted, Some(false));
    assert_arrived(&outcome);
}

#[test]
fn a_cancelled_destination_never_runs_the_guest() {
    let setup = Setup::new(&BLOCKS, None);
    setup.destination_control.cancel();
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Failed);
    assert_eq!(outcome.arrival.error.unwrap().kind(), ErrorKind::Cancelled);
}

#[test]
fn what_a_machine_refuses_leaves_the_guest_where_it_was() {
    for what in ["pause", "release"] {
        let mut setup = Setup::new(&BLOCKS, None);
        setup.source.refuses = Some(what);
        let outcome = setup.run();
        assert_stayed(&outcome, SourcePhase::Failed);
        assert_eq!(outcome.departure.error.unwrap().to_string(), format!("no {what}"));
    }
    let mut setup = Setup::new(&BLOCKS, None);
    setup.destination.refuses = Some("claim");
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Failed);
    assert_eq!(outcome.departure.error.unwrap().kind(), ErrorKind::Peer);
    assert_eq!(outcome.arrival.error.unwrap().to_string(), "no claim");
}

/// The source's user gets the reason in the destination's words.
#[test]
fn a_destination_reports_why_it_refuses() {
    let mut setup = Setup::new(&BLOCKS, None);
    setup.destination_options.machine_type = "q35".to_owned();
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Failed);
    assert!(outcome.arrival.pristine);
    let error = outcome.departure.error.unwrap();
    let text = "the destination refused the guest: at 0x8: the source is a machine of type testvm, this one is q35";
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Peer, text));

    let mut setup = Setup::new(&BLOCKS, None);
    setup.destination_devices.pop();
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Failed);
    let error = outcome.departure.error.unwrap().to_string();
    let text = format!("the destination refused the guest: {}", outcome.arrival.error.unwrap());
    assert_eq!(error, text);
    assert!(error.contains("device/1") && error.contains("this machine has no such instance"), "{error}");
}

#[test]
fn an_unmigratable_device_stops_a_migration_before_it_begins() {
    for side in [Side::Source, Side::Destination] {
        let mut setup = Setup::new(&BLOCKS, None);
        let devices = if side == Side::Source { &mut setup.source_devices } else { &mut setup.destination_devices };
        devices[1].rules.unmigratable = Some("it is passed through");
        let outcome = setup.run();
        assert_stayed(&outcome, SourcePhase::Failed);
        let error = match side {
            Side::Source => outcome.departure.error.unwrap(),
            Side::Destination => outcome.arrival.error.unwrap(),
        };
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert_eq!(error.to_string(), "device/1: this machine cannot be migrated: it is passed through");
        assert_eq!(outcome.world.sent(side), 0);
    }
}

/// The destination does not need the self-description for that, and observers learn that the migration is over.
#[test]
fn the_guest_runs_before_the_self_description_is_sent() {
    let setup = Setup::new(&BLOCKS, None);
    let sent_at_end = Arc::new(OnceLock::new());
    let (sent, world) = (Arc::clone(&sent_at_end), setup.world.clone());
    setup.destination_control.watch(move |phase| {
        if phase.is_final() {
            sent.set(world.sent(Side::Source)).unwrap();
        }
    });
    let outcome = setup.run();
    assert_arrived(&outcome);
    let stream = outcome.world.recorded();
    let text = stream.windows(2).position(|bytes| bytes == b"{\"").unwrap();
    // Marker and length are five bytes, after the EOF byte.
    assert_eq!(stream[text - 6..text - 4], [0x00, 0x06]);
    assert_eq!(outcome.destination.sent_at_resume, Some(text - 5));
    assert_eq!(sent_at_end.get(), Some(&(text - 5)));
    assert!(stream.ends_with(b"}") && outcome.world.sent(Side::Source) == stream.len());
}

/// The destination's measurements reach the source after the final answer, and a connection that breaks there is not a failure.
#[test]
fn a_source_learns_how_long_the_destination_took_to_load() {
    let learned = |fault: Option<Fault>| {
        let mut setup = Setup::new(&BLOCKS, fault);
        for devices in [&mut setup.source_devices, &mut setup.destination_devices] {
            devices[1].rules.early_setup = true;
        }
        setup.destination.loads_within = Duration::from_millis(3);
        setup.destination.cleans_up_within = Duration::from_millis(7);
        let controls = [setup.source_control.clone(), setup.destination_control.clone()];
        let outcome = setup.run();
        assert_arrived(&outcome);
        let told = outcome.world.sent(Side::Destination);
        (controls.map(|control| (control.sections(), control.progress().takeover)), told)
    };
    let ([(here, takeover), (there, measured)], told) = learned(None);
    let names = |sections: &[SectionReport]| sections.iter().map(|one| (one.instance, one.bytes)).collect::<Vec<_>>();
    // Without the early device. Register, count and three bytes, calculated by hand.
    assert_eq!((names(&here), names(&there)), (vec![(0, 4 + 4 + 3)], vec![(0, 4 + 4 + 3)]));
    assert_eq!((here[0].saved, here[0].loaded), (Some(Duration::ZERO), there[0].loaded));
    assert_eq!((there[0].saved, there[0].loaded), (None, Some(Duration::ZERO)));
    let times = measured.map(|measured| (measured.machine, measured.resume));
    assert_eq!(times, Some((Duration::from_millis(3), Duration::ZERO)), "nobody waits for what is cleaned up");
    assert_eq!(takeover, measured);

    // Type, length and three times.
    let after = told - (4 + 3 * 8);
    let ([(here, takeover), _], _) =
        learned(Some(Fault { sender: Side::Destination, after, kind: FaultKind::HalfClose }));
    assert_eq!((here[0].saved, here[0].loaded, takeover), (Some(Duration::ZERO), None, None));
}

#[test]
fn a_machine_is_informed_of_arriving_pages_and_of_a_departed_guest() {
    let told = |setup: Setup| {
        let outcome = setup.run();
        (outcome.departure.phase, [outcome.source.departed, outcome.destination.departed], outcome.destination.arriving)
    };
    // 12 MB at 20 MB/s, and then pages that are written again.
    let (phase, departed, arriving) = told(busy(20.0 * MEGABYTE, 200.0, 50));
    assert_eq!((phase, departed), (SourcePhase::Completed, [1, 0]));
    assert!((5..20).contains(&arriving), "{arriving}");
    let mut refused = busy(20.0 * MEGABYTE, 200.0, 50);
    refused.destination.refuses = Some("loaded");
    let (phase, departed, arriving) = told(refused);
    assert_eq!((phase, departed), (SourcePhase::Failed, [0, 0]));
    assert!(arriving >= 5, "{arriving}");
}

#[test]
fn an_early_device_goes_before_the_memory() {
    let mut setup = Setup::new(&BLOCKS, None);
    for devices in [&mut setup.source_devices, &mut setup.destination_devices] {
        devices[1].rules.early_setup = true;
    }
    let outcome = setup.run();
    assert_arrived(&outcome);
    let stream = outcome.world.recorded();
    let find = |wanted: &[u8]| stream.windows(wanted.len()).position(|bytes| bytes == wanted);
    let memory = find(b"\x01\0\0\0\x01\x03ram");
    assert!(find(b"\x04\0\0\0\x03\x06device\0\0\0\x01") < memory && memory < find(b"\x04\0\0\0\x02\x06device\0\0\0\0"));
    assert!(find(b"\x04\0\0\0\x03\x06device").is_some());
    let description = stream.windows(5).rposition(|bytes| bytes == b"devic").unwrap();
    let text = String::from_utf8_lossy(&stream[description - 400..]);
    let place = |instance: u32| text.find(&format!("\"name\": \"device\", \"instance_id\": {instance}"));
    assert!(place(1).is_some() && place(1) < place(0), "{text}");
}

#[test]
fn a_guest_that_was_taken_over_and_cannot_resume_is_not_handed_back() {
    let answered = Setup::new(&BLOCKS, None).run().world.sent(Side::Destination);
    let mut setup = Setup::new(&BLOCKS, None);
    setup.destination.refuses = Some("resume");
    let outcome = setup.run();
    assert_eq!(outcome.departure.phase, SourcePhase::Completed);
    assert_eq!(outcome.arrival.phase, DestinationPhase::Stranded);
    assert_eq!(outcome.arrival.error.unwrap().to_string(), "no resume");
    // All bytes of the answers except the times, of the machine and of two devices, which only a running guest has.
    let times = 4 + 8 * (2 + 2);
    assert_eq!(outcome.world.sent(Side::Destination) + times, answered, "the source was told two things");
}

/// A third process took the disk's lock in the moment when the source had released it.
#[test]
fn a_stolen_lock_leaves_no_guest_running() {
    let setup = Setup::new(&BLOCKS, None);
    let lock = Lock::default();
    lock.lock().unwrap().holder = Some(Side::Source);
    let mut setup = Setup { destination: Vm { lock: Some(lock), ..setup.destination }, ..setup };
    // The source's own lock is free again after its release.
    setup.source.running = true;
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Failed);
    assert!(outcome.arrival.error.unwrap().to_string().contains("exclusive resources"));
}

#[test]
fn a_refusing_device_sends_the_guest_back_with_a_reason_on_both_sides() {
    let mut setup = Setup::new(&BLOCKS, None);
    setup.destination_devices[1].refuses = true;
    let before = setup.destination_devices[1].clone();
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Failed);
    assert_eq!(outcome.departure.error.unwrap().kind(), ErrorKind::Peer);
    let error = outcome.arrival.error.as_ref().unwrap();
    assert_eq!((error.section(), error.path().as_str()), (Some("device/1"), "register"));
    assert!(!outcome.arrival.pristine);
    assert_eq!(outcome.destination_devices[1], before);
}

#[test]
fn different_machines_are_refused_before_the_guest_is_paused() {
    let mut setup = Setup::new(&BLOCKS, None);
    setup.destination_options.machine_type = "testvm2".to_owned();
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Failed);
    assert_eq!(outcome.departure.report.downtime, None);
    let error = outcome.arrival.error.as_ref().unwrap().to_string();
    assert_eq!(error, "at 0x8: the source is a machine of type testvm, this one is testvm2");
    assert!(outcome.arrival.pristine);

    let other: [(&str, u64); 3] = [("main.ram", 41), ("rom", 2), ("table", 1)];
    let mut setup = Setup::new(&BLOCKS, None);
    setup.destination.guest = Setup::new(&other, None).destination.guest;
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Failed);
    assert!(outcome.departure.report.rounds.is_empty());
    let error = outcome.arrival.error.unwrap().to_string();
    assert!(error.contains("main.ram has 163840 bytes at the source and 167936 here"), "{error}");
}

#[test]
fn a_device_too_few_or_too_many_stops_it_before_the_commit() {
    let mut setup = Setup::new(&BLOCKS, None);
    setup.destination_devices.push(Device::default());
    setup.source.cancels_at = Some(("release", setup.source_control.clone()));
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Failed);
    assert_eq!(outcome.source.cancel_granted, None, "the source has let go of its lock");
    let error = outcome.arrival.error.unwrap().to_string();
    assert!(error.contains("required sections did not arrive: device/2"), "{error}");

    let mut setup = Setup::new(&BLOCKS, None);
    setup.destination_devices.pop();
    let outcome = setup.run();
    assert_stayed(&outcome, SourcePhase::Failed);
    assert_eq!(outcome.arrival.error.unwrap().section(), Some("device/1"));
}
