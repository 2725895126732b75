//! How far the forecast can be relied on: the pause that was foretold against the pause that the virtual clock saw.

mod pair;

use std::time::Duration;

use pair::guest::Load;
use pair::run::{Outcome, Setup};
use pair::world::World;
use vmstate::migrate::{Control, SourcePhase};

const MS: Duration = Duration::from_millis(1);

/// Pages of the guest, and how many of them, from the start, hold data.
fn guest(world: World, pages: u64, used: u64, load: Load) -> Setup {
    let setup = Setup::with(&[("main.ram", pages)], world, load);
    for page in 0..used {
        setup.source.guest.poke(0, page * 4096, 1 + (page % 200) as u8);
    }
    setup
}

/// Pause foretold before the switch-over, and measured.
fn pauses(outcome: &Outcome, control: &Control) -> (Duration, Duration) {
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    let foretold = control.progress().expected_downtime.expect("it was foretold");
    (foretold, outcome.departure.report.downtime.expect("it was measured").total())
}

/// Finding 5: what was sent as zero made the pages that the guest writes look cheap.
#[test]
fn zero_pages_do_not_make_the_pause_look_short() {
    let world = World::new(None, Some(40e6), 200 * MS / 1000);
    let setup = guest(world, 16384, 832, Load { writes_per_second: 3000.0, working_set: 800 });
    setup.source_control.set_downtime_limit(20 * MS);
    let control = setup.source_control.clone();
    let (foretold, measured) = pauses(&setup.run(), &control);
    assert!(measured <= 20 * MS, "foretold {foretold:?}, measured {measured:?}");
}

/// Finding 6: the socket's buffer drained while the source slept for the limit, so it seemed to take all at once.
#[test]
fn a_bandwidth_limit_does_not_make_the_wire_look_fast() {
    let world = World::new(None, Some(20e6), MS / 5);
    world.set_buffer(4 << 20);
    let setup = guest(world, 3000, 3000, Load { writes_per_second: 1000.0, working_set: 1000 });
    setup.source_control.set_downtime_limit(100 * MS);
    setup.source_control.set_bandwidth_limit(10 << 20);
    let control = setup.source_control.clone();
    let (foretold, measured) = pauses(&setup.run(), &control);
    assert!(measured <= 100 * MS, "foretold {foretold:?}, measured {measured:?}");
}

/// Finding 17: a limit below a record's first bytes let no page through, ever.
#[test]
fn the_smallest_bandwidth_limit_still_moves_the_guest() {
    let setup = guest(World::new(None, Some(40e6), MS), 20, 10, Load::default());
    setup.source_control.set_bandwidth_limit(1);
    let outcome = setup.run();
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    let took = outcome.departure.report.total;
    // Ten pages of data, one a second.
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(12), "{took:?}");
}

/// One point of the sweep.
#[derive(Clone, Copy, Debug)]
struct Point {
    pages: u64,
    /// Of the pages, from the start, hold data.
    used: u64,
    load: Load,
    /// Of a hundred writes so many leave a page of zeros.
    clearing: u64,
    limit: Duration,
    /// Bytes a second.
    speed: f64,
    latency: Duration,
    /// Bytes of a socket's buffer.
    buffer: usize,
    bandwidth_limit: u64,
    /// The guest's stop.
    stop: Duration,
}

/// Every `stride`-th of all combinations: with a stride that has no factor in common with the axes, all pairs of values
/// come up.
fn sweep(stride: usize) -> Vec<Point> {
    let load = |writes_per_second, working_set| Load { writes_per_second, working_set };
    let mut points = Vec::new();
    for (pages, used) in [(300, 300), (300, 120), (4000, 200)] {
        for load in [load(0.0, 1), load(150.0, 100), load(4000.0, 60), load(600.0, pages)] {
            for clearing in [0, 70] {
                for limit in [20 * MS, 60 * MS, 300 * MS] {
                    for speed in [5e6, 30e6, 200e6] {
                        for (latency, buffer) in [(MS / 10, 16 << 10), (10 * MS, 1 << 20), (MS, 208 << 10)] {
                            for bandwidth_limit in [0, 3_000_000] {
                                for stop in [Duration::ZERO, 3 * MS] {
                                    points.push(Point {
                                        pages,
                                        used,
                                        load,
                                        clearing,
                                        limit,
                                        speed,
                                        latency,
                                        buffer,
                                        bandwidth_limit,
                                        stop,
                                    });
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    points.into_iter().step_by(stride).collect()
}

impl Point {
    fn setup(&self) -> Setup {
        let world = World::new(None, Some(self.speed), self.latency);
        world.set_buffer(self.buffer);
        let mut setup = guest(world, self.pages, self.used, self.load);
        setup.source.guest.set_clearing(self.clearing);
        setup.source.pause_takes = self.stop;
        // The virtual destination loads in no time.
        setup.source_options.switch_over_cost = Duration::ZERO;
        setup.source_options.max_rounds = Some(ROUNDS);
        setup.source_control.set_downtime_limit(self.limit);
        setup.source_control.set_bandwidth_limit(self.bandwidth_limit);
        setup
    }

    /// The pause with `pages` whole pages left.
    fn pause(&self, pages: u64) -> Duration {
        // A question and the hand-over, both there and back.
        self.stop + 4 * self.latency + Duration::from_secs_f64((pages * 4104) as f64 / self.speed)
    }
}

const ROUNDS: u32 = 6;
/// Devices and framing are some 600 bytes here, which the forecast does not know of.
const UNKNOWN_BYTES: f64 = 600.0;

#[test]
fn the_pause_is_within_its_limit_and_as_foretold() {
    let (mut completed, mut offences) = (0, Vec::new());
    for point in sweep(STRIDE) {
        let setup = point.setup();
        let control = setup.source_control.clone();
        let outcome = setup.run();
        let report = &outcome.departure.report;
        let Some(downtime) = report.downtime else {
            // It was right to stay if the pause would have come too close to the limit.
            let pending = report.rounds.last().expect("rounds").dirtied;
            if point.pause(pending) + (point.pause(pending) - point.pause(0)) / 10 <= point.limit {
                offences.push(format!("stayed with {pending} pages: {point:?}, {:?}", outcome.departure.error));
            }
            continue;
        };
        completed += 1;
        let (foretold, measured) = (control.progress().expected_downtime.expect("foretold"), downtime.total());
        let tolerated = (foretold / 5).max(Duration::from_secs_f64(UNKNOWN_BYTES / point.speed));
        if measured > point.limit || measured.abs_diff(foretold) > tolerated {
            offences.push(format!("foretold {foretold:?}, measured {measured:?}: {point:?}, {:?}", report.rounds));
        }
    }
    println!("{completed} completed");
    assert!(offences.is_empty(), "{} of {completed}: {offences:#?}", offences.len());
}
const STRIDE: usize = 17;
