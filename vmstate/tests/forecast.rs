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
    /// Percent of the pages that hold nothing.
    zero: u64,
    /// Pages that the guest writes to in a second, and how many it writes to over and over.
    load: (f64, u64),
    /// Milliseconds.
    limit: u32,
    /// Bytes a second.
    speed: f64,
    latency: Duration,
    /// Bytes of the socket's buffer.
    buffer: usize,
    bandwidth: Option<u64>,
    /// The guest's stop.
    stop: Duration,
}

#[derive(Debug)]
struct Result_ {
    point: Point,
    rounds: usize,
    foretold: Duration,
    measured: Option<Duration>,
    total: Duration,
    why: String,
}

fn run(point: Point) -> Result_ {
    let Point { pages, zero, load: (writes_per_second, working_set), limit, speed, latency, buffer, bandwidth, stop } =
        point;
    let world = World::new(None, Some(speed), latency);
    world.set_buffer(buffer);
    let mut setup = guest(world, pages, pages * (100 - zero) / 100, Load { writes_per_second, working_set });
    setup.source.pause_takes = stop;
    setup.source_options.switch_over_cost = Duration::ZERO;
    setup.source_options.max_rounds = Some(40);
    setup.source_control.set_downtime_limit(limit * MS);
    if let Some(bandwidth) = bandwidth {
        setup.source_control.set_bandwidth_limit(bandwidth);
    }
    let control = setup.source_control.clone();
    let outcome = setup.run();
    let report = &outcome.departure.report;
    Result_ {
        point,
        rounds: report.rounds.len(),
        foretold: control.progress().expected_downtime.unwrap_or_default(),
        measured: report.downtime.map(|downtime| downtime.total()),
        total: report.total,
        why: outcome.departure.error.map(|error| error.to_string()).unwrap_or_default(),
    }
}

#[test]
fn explore() {
    let mut count = 0;
    let mut bad = 0;
    let started = std::time::Instant::now();
    for pages in [500, 4000] {
        for zero in [0, 90] {
            for load in [(0.0, 1), (1000.0, 400), (20_000.0, 300), (3000.0, 4000_u64.min(pages))] {
                for limit in [20, 100, 300] {
                    for speed in [5e6, 40e6, 1e9] {
                        for (latency, buffer) in [(100 * MS / 1000, 16 << 10), (10 * MS, 4 << 20), (MS, 256 << 10)] {
                            for bandwidth in [None, Some(2_000_000)] {
                                let n = count;
                                count += 1;
                                if n % 7 != 0 {
                                    continue;
                                }
                                let stop = if n % 2 == 0 { Duration::ZERO } else { 3 * MS };
                                let point = Point { pages, zero, load, limit, speed, latency, buffer, bandwidth, stop };
                                let result = run(point);
                                if let Some(measured) = result.measured {
                                    let off = measured.as_secs_f64() / result.foretold.as_secs_f64() - 1.0;
                                    let over = measured > limit * MS;
                                    if over || off.abs() > 0.2 {
                                        bad += 1;
                                        println!(
                                            "{} {:+.0}% {result:?}",
                                            if over { "OVER" } else { "    " },
                                            off * 100.0
                                        );
                                    }
                                } else {
                                    println!("stay {result:?}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    println!("{bad} bad of {} in {:?}", count / 7, started.elapsed());
}
