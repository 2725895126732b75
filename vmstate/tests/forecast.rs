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
