//! Whole migrations with XBZRLE on a virtual wire: the oracle is the source guest's own memory, to which every write was made.

use std::time::Duration;

use crate::pair::guest::Load;
use crate::pair::run::{Outcome, Setup};
use crate::pair::world::World;
use vmstate::migrate::{Parameters, SourcePhase};
use vmstate::ram::XbzrleCount;

const BLOCKS: [(&str, u64); 3] = [("main.ram", 700), ("rom", 2), ("table", 300)];
const WORKING_SET: u64 = 400;
const CACHE: u64 = 16 << 20;

/// A guest full of data that writes single bytes, on a wire of 5 MB/s: sent whole, its dirty pages would be 16 MB a second.
fn busy(cache: Option<u64>) -> Setup {
    let world = World::new(None, Some(5e6), Duration::from_micros(200));
    let setup = Setup::with(&BLOCKS, world, Load { writes_per_second: 4000.0, working_set: WORKING_SET });
    fill(&setup);
    use_xbzrle(&setup, cache);
    setup.source_control.set_downtime_limit(Duration::from_millis(30));
    set(&setup, |parameters| parameters.max_rounds = Some(30));
    setup
}

fn set(setup: &Setup, change: impl FnOnce(&mut Parameters)) {
    let mut parameters = setup.source_control.parameters();
    change(&mut parameters);
    setup.source_control.set_parameters(parameters).unwrap();
}

fn use_xbzrle(setup: &Setup, cache: Option<u64>) {
    set(setup, |parameters| {
        parameters.xbzrle = cache.is_some();
        parameters.xbzrle_cache_size = cache.unwrap_or(parameters.xbzrle_cache_size);
    });
}

fn fill(setup: &Setup) {
    for page in 0..BLOCKS[0].1 {
        for at in 0..64 {
            setup.source.guest.poke(0, page * 4096 + at * 61, (page * at % 251) as u8 | 1);
        }
    }
}

fn assert_arrived(outcome: &Outcome) {
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    assert!(outcome.destination.running && !outcome.source.running);
    assert!(outcome.destination.guest.memory() == outcome.source.guest.memory());
}

fn run(setup: Setup) -> (Outcome, Option<XbzrleCount>) {
    let control = setup.source_control.clone();
    (setup.run(), control.progress().xbzrle)
}

#[test]
fn a_guest_arrives_that_writes_more_pages_than_the_wire_takes() {
    let (outcome, count) = run(busy(None));
    assert_eq!((outcome.departure.phase, count), (SourcePhase::Failed, None));
    let error = outcome.departure.error.unwrap().to_string();
    assert!(error.contains("rounds"), "{error}");

    let (outcome, count) = run(busy(Some(CACHE)));
    assert_arrived(&outcome);
    let (count, report) = (count.unwrap(), &outcome.departure.report);
    assert!(count.encoded > 300 && count.encoding_rate > 20.0, "{count:?}");
    assert_eq!((count.cache_bytes, count.overflow), (CACHE, 0));
    let downtime = report.downtime.unwrap().total();
    assert!(downtime < Duration::from_millis(30), "{downtime:?}");
    // The destination counts as many pages as the source, in whatever form they were sent.
    assert_eq!(outcome.arrival.report.pages, report.pages);
}

#[test]
fn each_page_arrives_as_it_was_written_last() {
    // A cache that holds all, some and few of the pages; a log that clears when it is read; pages that become zero.
    const CASES: [(u64, bool, u64, u64); 4] =
        [(CACHE, false, 30, 60), (CACHE, true, 0, 60), (1 << 20, false, 0, 400), (8 << 12, true, 60, 400)];
    for (cache, clears_when_read, zeros, limit) in CASES {
        let mut setup = busy(Some(cache));
        setup.source.guest.clears_when_read = clears_when_read;
        setup.source.guest.set_clearing(zeros);
        set(&setup, |parameters| parameters.max_rounds = None);
        setup.source_control.set_downtime_limit(Duration::from_millis(limit));
        let (outcome, count) = run(setup);
        assert_arrived(&outcome);
        assert!(count.unwrap().pages > 0 || cache < CACHE, "{count:?}");
    }
}

#[test]
fn a_guest_that_was_kept_arrives_the_next_time() {
    let mut setup = busy(Some(CACHE));
    setup.source_control.set_downtime_limit(Duration::from_millis(7));
    setup.source.guest.cancels_in = Some((3 * 4, setup.source_control.clone()));
    let (outcome, count) = run(setup);
    assert_eq!(outcome.departure.phase, SourcePhase::Cancelled, "{:?}", outcome.departure.error);
    assert!(outcome.source.running && count.unwrap().encoded > 0, "{count:?}");
    // The destination is a new one: it does not have the pages in the cancelled migration's cache.
    let setup = Setup::again(outcome, &BLOCKS);
    use_xbzrle(&setup, Some(CACHE));
    let (outcome, _) = run(setup);
    assert_arrived(&outcome);
}
