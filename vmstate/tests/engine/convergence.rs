//! Throttle, deadline and changes of parameters in whole migrations, on a virtual wire and clock. The oracle is a model of the
//! guest, calculated by hand: the pages it dirties, the throttle that requires, and how long the guest then stands still.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::pair::guest::{Guest, Load};
use crate::pair::run::{Outcome, Setup, set};
use crate::pair::vm::End;
use crate::pair::world::{Fault, FaultKind, Side, World};
use vmstate::migrate::{Aim, DeadlineAction, Parameters, SourcePhase};

const PAGES: u64 = 150;
/// A page of data in the stream: its header and contents.
const RECORD: f64 = 8.0 + 4096.0;
/// The longest round: all pages, once.
const ROUND: Duration = Duration::from_millis(600);
const MS: Duration = Duration::from_millis(1);

/// Writes to random pages, at `times` the rate of the wire. A share `x` of all pages takes `x` of the longest round, in which the
/// guest hits the share `1 - exp(-times * (1 - throttle) * x)` of them.
fn load(pages: u64, times: f64) -> Load {
    Load { writes_per_second: times * pages as f64 / ROUND.as_secs_f64(), working_set: pages }
}

/// A guest full of data under that load.
fn busy(times: f64, fault: Option<Fault>) -> Setup {
    busy_in(PAGES, times, fault)
}

fn busy_in(pages: u64, times: f64, fault: Option<Fault>) -> Setup {
    let speed = pages as f64 * RECORD / ROUND.as_secs_f64();
    let world = World::new(fault, Some(speed), MS / 5);
    world.set_buffer(32 << 10);
    let mut setup = Setup::with(&[("main.ram", pages)], world, load(pages, times));
    for page in 0..pages {
        setup.source.guest.poke(0, page * 4096 + page, 1 + page as u8 % 200);
    }
    setup.source_options.switch_over_cost = Duration::ZERO;
    set(&setup.source_control, |parameters| {
        parameters.downtime_limit = 30 * MS;
        parameters.max_rounds = Some(30);
    });
    setup
}

fn converging(times: f64, fault: Option<Fault>) -> Setup {
    let setup = busy(times, fault);
    set(&setup.source_control, |parameters| parameters.auto_converge = true);
    setup
}

/// Makes a change at this moment of the virtual clock.
fn change(setup: &Setup, at: Duration, change: impl FnOnce(&mut Parameters) + Send + 'static) {
    let control = setup.source_control.clone();
    setup.world.at(at, move || set(&control, change));
}

fn assert_arrived(outcome: &Outcome) {
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    assert!(outcome.destination.running && !outcome.source.running);
    assert_eq!(outcome.destination.guest.memory(), outcome.source.guest.memory());
    assert_eq!(outcome.source.guest.throttle(), 0);
}

fn assert_stayed(outcome: &Outcome, why: &str) {
    let error = outcome.departure.error.as_ref().map(ToString::to_string).unwrap_or_default();
    assert!(error.contains(why), "{:?}: {error}", outcome.departure.phase);
    assert!(outcome.source.running && !outcome.destination.running);
    assert_eq!(outcome.source.guest.throttle(), 0);
}

/// The throttles above zero, in order, and the moment of the last change to zero.
fn throttles(guest: &Guest) -> (Vec<u8>, Duration) {
    let told = guest.throttles();
    let last = told.iter().rposition(|(_, percent)| *percent > 0).map_or(0, |last| last + 1);
    (told[..last].iter().map(|(_, percent)| *percent).collect(), told[last].0)
}

/// How long a guest with these throttles stands still up to that moment.
fn stopped_seconds(guest: &Guest, until: Duration) -> f64 {
    let told = guest.throttles();
    let ends = told[1..].iter().map(|(at, _)| *at).chain([until]);
    told.iter()
        .zip(ends)
        .map(|((at, percent), end)| f64::from(*percent) / 100.0 * end.saturating_sub(*at).as_secs_f64())
        .sum()
}

#[test]
fn a_guest_that_never_fits_goes_once_it_is_throttled_and_no_more_than_needed() {
    let setup = busy(2.0, None);
    setup.set_max_rounds(Some(6));
    let outcome = setup.run();
    assert_stayed(&outcome, "the limit of rounds is reached");
    assert!(outcome.departure.report.rounds.iter().all(|round| round.dirtied > PAGES * 3 / 4));
    assert!(outcome.source.guest.throttles().iter().all(|(_, percent)| *percent == 0));

    let setup = converging(2.0, None);
    let control = setup.source_control.clone();
    let outcome = setup.run();
    assert_arrived(&outcome);
    let (told, off) = throttles(&outcome.source.guest);
    // The guest dirties less than the wire carries from a throttle of 1 - 1 / 2 on, and half as much at 1 - 0.5 / 2; which pages
    // are hit is chance.
    let highest = *told.iter().max().unwrap();
    assert!((50..=78).contains(&highest), "{told:?}");
    // The throttle rises in steps, each judged by two rounds of its own at least; the same value is set again after each round.
    let mut steps = vec![(0, 2)];
    for &percent in &told {
        match steps.last_mut() {
            Some((last, rounds)) if *last == percent => *rounds += 1,
            _ => steps.push((percent, 1)),
        }
    }
    assert_eq!(steps[1].0, 20, "{steps:?}");
    for pair in steps.windows(2) {
        assert!(pair[1].0 <= pair[0].0.max(10) + 10, "{steps:?}");
        assert!(pair[0].1 >= 2 || pair[1].0 < pair[0].0, "{steps:?}");
    }
    // Off before the order to pause.
    assert!(off <= outcome.source.paused.unwrap());
    let (report, progress) = (&outcome.departure.report, control.progress());
    assert!(report.downtime.unwrap().total() <= 30 * MS, "{report:?}");
    assert_eq!((progress.throttle_percent, progress.slowdown), (0, report.slowdown));
    assert_eq!(report.slowdown.highest_throttle_percent, highest);
    // While it is throttled, the guest also stands still for rehearsals, which take only these few milliseconds.
    let (throttled, expected) = (report.slowdown.throttled.as_secs_f64(), stopped_seconds(&outcome.source.guest, off));
    assert!(throttled <= expected && throttled > 0.95 * expected, "{throttled} of {expected} s");
}

#[test]
fn the_throttle_is_relaxed_when_the_guest_writes_less() {
    let pages = 400;
    let setup = busy_in(pages, 2.0, None);
    set(&setup.source_control, |parameters| parameters.auto_converge = true);
    // The dirty rate is below 0.8 of the threshold without any throttle, so none is needed.
    setup.source_control.set_downtime_limit(3 * MS);
    let (guest, falls) = (setup.source.guest.clone(), 4 * ROUND);
    let writer = guest.clone();
    setup.world.at(falls, move || writer.set_load(load(pages, 0.38)));
    let outcome = setup.run();
    assert_arrived(&outcome);
    let told = guest.throttles();
    assert!(told.iter().any(|&(at, percent)| at < falls && percent >= 20), "{told:?}");
    let (_, off) = throttles(&guest);
    // The round in which the rate fell, and two rounds that show it. From then on there are rounds without a throttle.
    assert!(off > falls && off <= falls + 3 * ROUND, "{off:?}");
    let rounds_begin = outcome.departure.report.rounds.iter().scan(Duration::ZERO, |at, round| {
        *at += round.duration;
        Some(*at)
    });
    assert!(rounds_begin.filter(|at| *at > off).count() >= 1, "{off:?}: {:?}", outcome.departure.report.rounds);
    assert!(off < outcome.source.paused.unwrap(), "{off:?}");
}

#[test]
fn the_throttle_is_off_within_a_round_of_a_cancel_a_failure_and_giving_up() {
    let at = 7 * ROUND;
    // Cancelled in mid-round.
    let setup = converging(2.0, None);
    let (control, guest) = (setup.source_control.clone(), setup.source.guest.clone());
    setup.world.at(at, move || assert!(guest.throttle() >= 20 && control.cancel()));
    let outcome = setup.run();
    assert_eq!(outcome.departure.phase, SourcePhase::Cancelled);
    assert_stayed(&outcome, "cancelled");
    let (_, off) = throttles(&outcome.source.guest);
    assert!(off >= at && off < at + ROUND / 4, "{off:?}");

    // The connection breaks after that many bytes, which is at that moment.
    let after = (at.as_secs_f64() / ROUND.as_secs_f64() * PAGES as f64 * RECORD * 0.9) as usize;
    let outcome = converging(2.0, Some(Fault { sender: Side::Source, after, kind: FaultKind::Reset })).run();
    assert_stayed(&outcome, "");
    let broke = outcome.world.sends().last().unwrap().0;
    let (told, off) = throttles(&outcome.source.guest);
    assert!(*told.last().unwrap() >= 20, "{told:?}");
    assert!(off >= broke && off < broke + ROUND / 4, "{off:?}, broken at {broke:?}");

    let setup = converging(2.0, None);
    setup.set_max_rounds(Some(8));
    let outcome = setup.run();
    assert_stayed(&outcome, "the limit of rounds");
    let (told, _) = throttles(&outcome.source.guest);
    assert!(*told.last().unwrap() >= 20, "{told:?}");

    // The machine fails, in its work between two rounds.
    let mut setup = converging(2.0, None);
    setup.source.throttled_ends = Some(End::Error);
    assert_stayed(&setup.run(), "no prepare");
}

#[test]
fn a_source_that_panics_leaves_its_guest_at_full_speed() {
    let mut setup = converging(2.0, None);
    setup.source.throttled_ends = Some(End::Panic);
    let guest = setup.source.guest.clone();
    let panic = catch_unwind(AssertUnwindSafe(|| setup.run())).err().unwrap();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the machine panics"));
    let (told, _) = throttles(&guest);
    assert_eq!((told.last(), guest.throttle()), (Some(&20), 0));
}

/// In the middle of the first round, half of the pages remain, and those of the others that the guest has dirtied.
const DEADLINE: Duration = Duration::from_millis(300);
/// A chunk takes a tenth of a second, and the data in the socket's buffer after it a third of that.
const LATE: Duration = Duration::from_millis(150);

fn with_deadline(times: f64, action: DeadlineAction) -> Setup {
    let setup = busy(times, None);
    set(&setup.source_control, |parameters| {
        parameters.deadline = Some(DEADLINE);
        parameters.deadline_action = action;
    });
    setup
}

#[test]
fn a_deadline_in_mid_round_cancels() {
    let outcome = with_deadline(2.0, DeadlineAction::Cancel).run();
    assert_stayed(&outcome, "gave up: the deadline has passed");
    assert!((DEADLINE..DEADLINE + LATE).contains(&outcome.departure.report.total), "{:?}", outcome.departure.report);
    assert!(outcome.source.paused.is_none());
}

#[test]
fn a_deadline_in_mid_round_pauses_the_guest_however_long_that_takes() {
    let outcome = with_deadline(2.0, DeadlineAction::SwitchOver).run();
    assert_arrived(&outcome);
    let paused = outcome.source.paused.unwrap();
    assert!((DEADLINE..DEADLINE + LATE).contains(&paused), "{paused:?}");
    // Half a round was sent; 1 - exp(-2 * 0.5) of those pages are dirty again.
    let left = ROUND.as_secs_f64() * (0.5 + 0.5 * (1.0 - (-1.0_f64).exp()));
    let pause = outcome.departure.report.downtime.unwrap().total().as_secs_f64();
    assert!((0.85 * left..1.1 * left).contains(&pause), "{pause} s, expected {left} s");
}

#[test]
fn a_deadline_in_mid_round_throttles_to_the_end() {
    let outcome = with_deadline(2.0, DeadlineAction::Throttle).run();
    assert_arrived(&outcome);
    let told = outcome.source.guest.throttles();
    let (first, percent) = told[0];
    assert!((DEADLINE..DEADLINE + LATE).contains(&first), "{first:?}");
    assert_eq!(percent, 99, "without auto-converge, and at once");
    assert!(outcome.departure.report.downtime.unwrap().total() <= 30 * MS);

    // A guest that dirties twice as much as the wire carries under the highest throttle, too.
    let setup = with_deadline(2.5, DeadlineAction::Throttle);
    set(&setup.source_control, |parameters| (parameters.max_cpu_throttle, parameters.cpu_throttle_initial) = (20, 20));
    let outcome = setup.run();
    assert_stayed(&outcome, "dirties pages as fast as they go even when it is throttled by 20 %");

    let mut setup = with_deadline(2.0, DeadlineAction::Throttle);
    setup.source.refuses = Some("throttle");
    assert_stayed(&setup.run(), "gave up: the deadline has passed");
}

/// When each round ended.
fn ends(outcome: &Outcome) -> Vec<Duration> {
    let rounds = outcome.departure.report.rounds.iter();
    let begun = outcome.departure.report.setup;
    rounds
        .scan(begun, |at, round| {
            *at += round.duration;
            Some(*at)
        })
        .collect()
}

#[test]
fn a_parameter_that_changes_in_mid_round_holds_from_the_end_of_that_round() {
    // Twice the time of the longest round fits into the limit.
    let setup = busy(2.0, None);
    let at = ROUND * 5 / 2;
    change(&setup, at, |parameters| parameters.downtime_limit = 3 * ROUND);
    let outcome = setup.run();
    assert_arrived(&outcome);
    let paused = outcome.source.paused.unwrap();
    // One more round comes between a rehearsal and the pause.
    assert!(paused > at && paused < at + 2 * ROUND + LATE, "{paused:?}");

    let setup = busy(2.0, None);
    change(&setup, at, |parameters| parameters.max_rounds = Some(1));
    let outcome = setup.run();
    assert_stayed(&outcome, "the limit of rounds");
    let ends = ends(&outcome);
    assert!(*ends.last().unwrap() > at && ends[ends.len() - 2] < at, "{ends:?}");

    // The throttle is lowered, then switched off; without a throttle, the guest never fits.
    let setup = converging(2.0, None);
    let (lowered, off) = (6 * ROUND, 8 * ROUND);
    change(&setup, lowered, |parameters| {
        (parameters.max_cpu_throttle, parameters.cpu_throttle_initial) = (10, 10);
    });
    change(&setup, off, |parameters| parameters.auto_converge = false);
    setup.set_max_rounds(Some(12));
    let outcome = setup.run();
    assert_stayed(&outcome, "the limit of rounds");
    for (at, percent) in outcome.source.guest.throttles() {
        assert!(at < lowered + ROUND || percent <= 10, "{percent} % at {at:?}");
        assert!(at < off + ROUND || percent == 0, "{percent} % at {at:?}");
    }
    assert!(outcome.source.guest.throttles().iter().any(|&(at, percent)| at > lowered && percent == 10));

    let setup = busy(0.5, None);
    set(&setup.source_control, |parameters| parameters.aim = Aim::LeastDisturbance);
    change(&setup, ROUND / 2, |parameters| parameters.downtime_limit = ROUND * 3);
    change(&setup, ROUND / 2, |parameters| parameters.aim = Aim::Soonest);
    let outcome = setup.run();
    assert_arrived(&outcome);
    assert!(outcome.departure.report.rounds.len() <= 2, "{:?}", outcome.departure.report.rounds);
}

#[test]
fn a_deadline_that_is_set_in_mid_round_passes_in_it() {
    let setup = busy(2.0, None);
    let at = ROUND * 5 / 2;
    change(&setup, at, move |parameters| {
        parameters.deadline = Some(at + 50 * MS);
        parameters.deadline_action = DeadlineAction::SwitchOver;
    });
    let outcome = setup.run();
    assert_arrived(&outcome);
    let paused = outcome.source.paused.unwrap();
    assert!(paused > at + 50 * MS && paused < at + 50 * MS + LATE, "{paused:?}");
}

/// Bytes that were sent between two moments.
fn sent(outcome: &Outcome, from: Duration, to: Duration) -> f64 {
    outcome.world.sends().iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, bytes)| *bytes as f64).sum()
}

#[test]
fn a_bandwidth_limit_that_changes_in_mid_round_holds_within_a_tenth_of_a_second() {
    let setup = busy(2.0, None);
    setup.source_control.set_bandwidth_limit(100_000);
    let (raised, lowered) = (3 * ROUND, 5 * ROUND);
    change(&setup, raised, |parameters| parameters.max_bandwidth = std::num::NonZeroU64::new(1_000_000));
    change(&setup, lowered, |parameters| parameters.max_bandwidth = std::num::NonZeroU64::new(10_000));
    let control = setup.source_control.clone();
    setup.world.at(8 * ROUND, move || assert!(control.cancel()));
    let outcome = setup.run();
    assert_eq!(outcome.departure.phase, SourcePhase::Cancelled);
    for (from, to, limit) in [
        (ROUND, raised, 100_000.0),
        (raised + 100 * MS, lowered, 1_000_000.0),
        (lowered + 100 * MS, 8 * ROUND, 10_000.0),
    ] {
        let (bytes, wanted) = (sent(&outcome, from, to), limit * (to - from).as_secs_f64());
        assert!((bytes - wanted).abs() < 0.02 * wanted + RECORD, "{bytes} bytes, {wanted} wanted at {limit} bytes/s");
    }
}
