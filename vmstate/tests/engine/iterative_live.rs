//! Whole migrations with sections in parts beside guest memory, on the virtual wire. The oracle is the source's own device: each
//! block as it was last written before the switch-over, after which it is not written any more.

use std::time::Duration;

use crate::pair::flash::{Flash, RECORD};
use crate::pair::guest::Load;
use crate::pair::run::{Outcome, Setup};
use crate::pair::world::{Fault, FaultKind, Side, World};
use vmstate::error::ErrorKind;
use vmstate::migrate::{DestinationPhase, SourcePhase};

const BLOCKS: [(&str, u64); 2] = [("main.ram", 200), ("rom", 2)];
const MS: Duration = Duration::from_millis(1);

/// A guest that writes 4000 pages a second on a wire of 20 MB/s.
fn busy(fault: Option<Fault>) -> Setup {
    let load = Load { writes_per_second: 4000.0, working_set: 64 };
    Setup::with(&BLOCKS, World::new(fault, Some(20e6), MS), load)
}

/// Flash memories of these lengths in blocks on both sides, with the writes a second of each.
fn with_flashes(mut setup: Setup, flashes: &[(usize, f64)]) -> (Setup, Vec<Flash>, Vec<Flash>) {
    let here = flashes.iter().map(|&(blocks, writes)| {
        let flash = Flash::new(blocks).written_by(&setup.source.guest, writes);
        (0..blocks as u32).for_each(|block| flash.write(block, [(block % 255) as u8 + 1; 16]));
        flash
    });
    setup.source_flashes = here.collect();
    setup.destination_flashes = flashes.iter().map(|&(blocks, _)| Flash::new(blocks)).collect();
    let (here, there) = (setup.source_flashes.clone(), setup.destination_flashes.clone());
    (setup, here, there)
}

fn assert_moved(outcome: &Outcome, here: &[Flash], there: &[Flash]) {
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    assert!(outcome.destination.running && !outcome.source.running);
    assert_eq!(outcome.destination.guest.memory(), outcome.source.guest.memory());
    assert_eq!(outcome.destination_devices, outcome.source_devices);
    for (here, there) in here.iter().zip(there) {
        assert!(here.blocks() == there.blocks(), "a block is not as it was written last");
        assert!(!here.state().0, "writes are still recorded");
        assert_eq!((here.state().1, there.state().1), (1, 1), "cleanups");
    }
}

/// The sections' headers in the stream, as kind and number. Blocks and pages are skipped according to the format.
fn marks(stream: &[u8]) -> Vec<(u8, u32)> {
    let (mut at, mut marks) = (8, Vec::new());
    let u32_at = |at: usize| u32::from_be_bytes(stream[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_be_bytes(stream[at..at + 8].try_into().unwrap());
    loop {
        let kind = stream[at];
        match kind {
            7 => at += 5 + u32_at(at + 1) as usize,
            8 => at += 5 + usize::from(u16::from_be_bytes(stream[at + 3..at + 5].try_into().unwrap())),
            0 => return marks,
            _ => {
                let id = u32_at(at + 1);
                marks.push((kind, id));
                at += 5;
                if matches!(kind, 1 | 4) {
                    at += 1 + usize::from(stream[at]) + 8;
                }
                match (kind, id) {
                    // List of blocks, then the end of the body.
                    (1, 1) => at += 8 + (1 + 8 + 8) + (1 + 3 + 8) + 8,
                    (1, _) => at += 4,
                    (4, _) => at += 8 + u32_at(at + 4) as usize,
                    (_, 1) => loop {
                        let word = u64_at(at);
                        at += 8;
                        if word & 0x10 != 0 {
                            break;
                        }
                        if word & 0x20 == 0 {
                            at += 1 + usize::from(stream[at]);
                        }
                        at += if word & 8 != 0 { 4096 } else { 1 };
                    },
                    _ => {
                        while u32_at(at) != u32::MAX {
                            at += 20;
                        }
                        at += 4;
                    }
                }
                assert_eq!((stream[at], u32_at(at + 1)), (0x7e, id), "footer at {at:#x}");
                at += 5;
            }
        }
    }
}

#[test]
fn one_section_beside_guest_memory() {
    let (setup, here, there) = with_flashes(busy(None), &[(2000, 20_000.0)]);
    let outcome = setup.run();
    assert_moved(&outcome, &here, &there);
    assert!(!outcome.departure.report.rounds.is_empty());
}

#[test]
fn several_sections_take_turns_as_in_qemu() {
    let (setup, here, there) = with_flashes(busy(None), &[(300, 1000.0), (5000, 30_000.0), (1, 0.0)]);
    let outcome = setup.run();
    assert_moved(&outcome, &here, &there);

    let marks = marks(&outcome.world.recorded());
    let of = |wanted: u8| -> Vec<u32> { marks.iter().filter(|(kind, _)| *kind == wanted).map(|(_, id)| *id).collect() };
    let place = |wanted: u8| marks.iter().position(|(kind, _)| *kind == wanted).unwrap();
    // All STARTs come first, all ENDs after all PARTs and before sections that are sent whole; each group is in the order of
    // registration.
    assert_eq!(of(1), [1, 2, 3, 4]);
    assert_eq!(of(3), [1, 2, 3, 4]);
    assert_eq!(of(4), [5, 6]);
    assert_eq!((place(1), place(2)), (0, 4));
    let last_part = marks.iter().rposition(|(kind, _)| *kind == 2).unwrap();
    assert_eq!((place(3), place(4)), (last_part + 1, last_part + 5));
    // Each section has a part in each round and in the pause, and each turn goes from the first section to the last.
    let rounds = outcome.departure.report.rounds.len();
    for id in 1..=4 {
        let parts = of(2).iter().filter(|&&part| part == id).count();
        assert!(parts > rounds, "section {id}: {parts} parts in {rounds} rounds and the pause");
    }
    let turns = of(2).windows(2).filter(|pair| pair[1] < pair[0]).count() + 1;
    assert!(turns > rounds, "{turns} turns in {rounds} rounds and the pause");
}

#[test]
fn a_machine_without_memory_has_sections_in_parts_all_the_same() {
    let (setup, here, there) =
        with_flashes(Setup::with(&[], World::new(None, None, MS), Load::default()), &[(40, 900.0)]);
    assert_moved(&setup.run(), &here, &there);
}

/// A flash of 6000 blocks of 20 bytes each on a wire of 2 MB/s, which takes 60 ms for all of them, with this many writes a
/// second.
fn flash_alone(writes: f64) -> (Setup, Vec<Flash>, Vec<Flash>) {
    let world = World::new(None, Some(2e6), MS);
    with_flashes(Setup::with(&[("main.ram", 1)], world, Load::default()), &[(6000, writes)])
}

/// The forecast includes the cost of the flash. A section that hides its pending bytes is paused longer than allowed.
#[test]
fn pending_bytes_are_forecast() {
    let limit = 25 * MS;
    let run = |lies| {
        // In 50 ms, 15,000 writes hit all but a twelfth of the blocks, which take 55 ms: the rest never gets smaller.
        let (mut setup, here, there) = flash_alone(300_000.0);
        setup.source_flashes[0].lies = lies;
        setup.source_control.set_downtime_limit(limit);
        setup.source_control.set_pause_budget(Some(Duration::from_secs(60)));
        setup.set_max_rounds(Some(10));
        (setup.run(), here, there)
    };
    let (outcome, ..) = run(false);
    let error = outcome.departure.error.unwrap().to_string();
    assert!(error.starts_with("gave up") && outcome.source.running, "{error}");

    let (outcome, here, there) = run(true);
    assert_moved(&outcome, &here, &there);
    let pause = outcome.departure.report.downtime.unwrap().total();
    assert!(pause > 2 * limit, "{pause:?}");
}

#[test]
fn a_pause_with_a_flash_keeps_its_limit() {
    let limit = 50 * MS;
    // In the 60 ms of the first round 2400 writes hit 1980 of 6000 blocks, which take 20 ms in the pause.
    let (setup, here, there) = flash_alone(40_000.0);
    setup.source_control.set_downtime_limit(limit);
    let outcome = setup.run();
    assert_moved(&outcome, &here, &there);
    let pause = outcome.departure.report.downtime.unwrap().total();
    assert!((15 * MS..=limit).contains(&pause), "{pause:?}");
}

/// Memory is sent first. The cancel comes after the first chunk, which is shorter than the memory: nothing of the flash was sent.
#[test]
fn the_remaining_bytes_of_all_sections_are_reported() {
    let (mut setup, ..) = with_flashes(busy(None), &[(100_000, 0.0)]);
    let control = setup.source_control.clone();
    setup.source.guest.cancels_in = Some((2, control.clone()));
    let outcome = setup.run();
    assert_eq!(outcome.departure.phase, SourcePhase::Cancelled);
    let (progress, pages) = (control.progress(), BLOCKS[0].1 + BLOCKS[1].1);
    let sent = progress.normal_pages + progress.zero_pages;
    assert!(0 < sent && sent < pages, "{progress:?}");
    assert_eq!(progress.remaining_bytes, (pages - sent) * 4096);
    assert_eq!(progress.remaining_section_bytes, 100_000 * RECORD);
}

#[test]
fn a_destination_without_the_section_refuses_before_the_first_page() {
    let (mut setup, here, _) = with_flashes(busy(None), &[(50, 0.0)]);
    setup.destination_flashes.clear();
    let outcome = setup.run();
    assert_eq!(outcome.departure.phase, SourcePhase::Failed);
    assert!(outcome.source.running && !outcome.destination.running);
    assert!(outcome.arrival.pristine && outcome.departure.report.rounds.is_empty());
    let error = outcome.departure.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Peer);
    let told = "flash/0 at 0x77: this machine has no such section: both sides need the same devices";
    assert_eq!(error.to_string(), format!("the destination refused the guest: {told}"));
    assert_eq!(here[0].state(), (false, 1));
}

#[test]
fn a_source_without_a_required_section_is_refused_before_the_first_page() {
    let (mut setup, ..) = with_flashes(busy(None), &[(50, 0.0)]);
    setup.source_flashes.clear();
    let outcome = setup.run();
    assert_eq!((outcome.departure.phase, outcome.arrival.phase), (SourcePhase::Failed, DestinationPhase::Failed));
    assert!(outcome.arrival.pristine && outcome.departure.report.rounds.is_empty());
    let error = outcome.arrival.error.unwrap().to_string();
    assert_eq!(error, "required sections did not arrive: flash/0");
}

#[test]
fn a_flash_of_another_size_is_refused_before_the_first_page() {
    let (mut setup, ..) = with_flashes(busy(None), &[(50, 0.0)]);
    setup.destination_flashes = vec![Flash::new(51)];
    let outcome = setup.run();
    assert!(outcome.source.running && outcome.arrival.pristine);
    let error = outcome.departure.error.unwrap().to_string();
    assert!(error.contains("flash/0") && error.contains("the source has 50 blocks, this machine 51"), "{error}");
}

#[test]
fn after_a_cancel_the_next_migration_sends_everything_anew() {
    let (mut setup, here, there) = with_flashes(busy(None), &[(500, 9000.0)]);
    let control = setup.source_control.clone();
    setup.source.guest.cancels_in = Some((3, control));
    let outcome = setup.run();
    assert_eq!(outcome.departure.phase, SourcePhase::Cancelled);
    assert_eq!((here[0].state(), there[0].state().1), ((false, 1), 1));

    here[0].write(7, *b"after the cancel");
    let mut setup = busy(None);
    setup.source.guest = outcome.source.guest.moved(&setup.world);
    setup.source_devices = outcome.source_devices;
    let again = here[0].clone().written_by(&setup.source.guest, 9000.0);
    let fresh = Flash::new(500);
    setup.source_flashes = vec![again];
    setup.destination_flashes = vec![fresh.clone()];
    let outcome = setup.run();
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    assert!(here[0].blocks() == fresh.blocks());
    assert_eq!((here[0].state(), fresh.state().1), ((false, 2), 1));
}

/// Small memory, and sections of a few bytes each.
fn small(fault: Option<Fault>) -> (Setup, Vec<Flash>, Vec<Flash>) {
    with_flashes(Setup::new(&[("r", 1)], fault), &[(3, 0.0), (1, 0.0)])
}

/// After a fault at any byte there is one guest with all of its memory, and both sides have cleaned up.
#[test]
fn a_cut_after_each_byte_leaves_one_whole_guest() {
    let (setup, ..) = small(None);
    let outcome = setup.run();
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    let length = outcome.world.sent(Side::Source);
    for kind in [FaultKind::Reset, FaultKind::Silent, FaultKind::SenderDies, FaultKind::ReceiverDies] {
        for after in 0..=length {
            let fault = Fault { sender: Side::Source, after, kind };
            let (setup, here, there) = small(Some(fault));
            let outcome = setup.run();
            let (source, destination) = (&outcome.source, &outcome.destination);
            let told = format!("{fault:?}: {:?}, {:?}", outcome.departure.error, outcome.arrival.error);
            assert!(!(source.running && destination.running), "two guests: {told}");
            if destination.running {
                assert!(here.iter().zip(&there).all(|(here, there)| here.blocks() == there.blocks()), "{told}");
            }
            for flash in here.iter().chain(&there) {
                assert!(!flash.state().0 && flash.state().1 <= 1, "{told}");
            }
        }
    }
}
