//! Plans of migrations, compared with independent calculations: geometric series, the balance of a working set, the least cost of
//! a pause.

mod jitter;
mod sweep;

use std::num::NonZeroU64;
use std::time::Duration;

use vmstate::migrate::plan::{MOST_ROUNDS, Pattern, Pause, Plan, Scenario, run};

const MS: Duration = Duration::from_millis(1);
const GIB: u64 = 1 << 30;
/// Bytes of a page on the wire for each byte in memory.
const RECORD: f64 = 4104.0 / 4096.0;

fn planned(scenario: &Scenario) -> Plan {
    run(scenario).expect("a scenario that can be")
}

fn written(memory: u64, speed: u64, working_set: u64, bytes_per_second: u64) -> Scenario {
    let mut scenario = Scenario::new(memory, speed);
    scenario.writes.working_set = working_set;
    scenario.writes.bytes_per_second = bytes_per_second;
    scenario
}

fn seconds(plan: &Plan, round: usize) -> f64 {
    plan.rounds[round].round.duration.as_secs_f64()
}

#[track_caller]
fn near(value: f64, expected: f64, tolerance: f64) {
    assert!((value / expected - 1.0).abs() <= tolerance, "{value} is not within {tolerance} of {expected}");
}

#[test]
fn rounds_of_a_guest_that_writes_everywhere_are_a_geometric_series() {
    for share in [0.05, 0.1, 0.2] {
        let (memory, speed) = (1024 * GIB, 10 * GIB);
        let mut scenario = written(memory, speed, memory, (speed as f64 * share) as u64);
        scenario.parameters.downtime_limit = 30 * MS;
        let plan = planned(&scenario);
        assert!(plan.is_completed() && plan.rounds.len() > 2, "{plan:?}");
        let first = memory as f64 * RECORD / speed as f64;
        near(seconds(&plan, 0), first, 0.01);
        // A page that is written before it is sent is sent once: on average half of the pages are still to be sent.
        near(seconds(&plan, 1), first * share * RECORD / 2.0, share * 0.6);
        for round in 2..plan.rounds.len() {
            // The time of a rehearsal between two rounds is negligible beside a long round.
            if seconds(&plan, round) > 0.1 {
                near(seconds(&plan, round) / seconds(&plan, round - 1), share * RECORD, share * 0.6);
            }
        }
    }
}

#[test]
fn a_working_set_that_is_written_faster_than_it_goes_comes_to_a_balance() {
    // At the end of each round, the clean part is the share of writes that the wire carries: a share v / r of the working set.
    for (speed, rate) in [(125_000_000, 200_000_000), (125_000_000, 1_250_000_000), (1_250_000_000, 1_500_000_000)] {
        let mut scenario = written(GIB, speed, GIB, rate);
        scenario.parameters.downtime_limit = 20 * MS;
        let plan = planned(&scenario);
        let left = 1.0 - speed as f64 / (rate as f64 * RECORD);
        let last = plan.rounds.last().expect("rounds");
        near(last.round.dirtied as f64 * 4096.0, left * GIB as f64, 0.02);
        near(last.expected_downtime.as_secs_f64(), left * GIB as f64 * RECORD / speed as f64, 0.05);
        assert_eq!(plan.rounds.len(), MOST_ROUNDS as usize);
        assert!(plan.reason.is_some_and(|reason| reason.contains("limit of rounds")));
    }
}

#[test]
fn a_pause_is_what_its_parts_are() {
    let mut scenario = Scenario::new(GIB, 125_000_000);
    scenario.pause = Pause::with_vcpus(1);
    (scenario.pause.stop, scenario.pause.load) = (7 * MS, 11 * MS);
    scenario.pause.device_bytes = 1_250_000;
    scenario.connection.round_trip = 3 * MS;
    let plan = planned(&scenario);
    let downtime = plan.report.downtime.expect("it completes");
    // The two pings of a switch-over each cost a round trip.
    let expected = 7 * MS + 10 * MS + 11 * MS + 2 * (3 * MS);
    assert!(downtime.total().abs_diff(expected) < MS / 5, "{downtime:?}");
    // After a rehearsal, the guest runs for a round.
    assert_eq!((downtime.pause, plan.rounds.len()), (7 * MS, 2));
    assert!(plan.rounds[1].expected_downtime.abs_diff(downtime.total()) < MS);
}

#[test]
fn work_besides_pages_takes_its_time_while_the_guest_writes() {
    let plain = written(GIB, 125_000_000, GIB, 10_000_000);
    let mut scenario = plain;
    (scenario.setup, scenario.after_round) = (40 * MS, 300 * MS);
    let (without, with) = (planned(&plain), planned(&scenario));
    assert!(with.report.setup.abs_diff(without.report.setup + 40 * MS) < MS);
    assert_eq!(without.rounds.len(), with.rounds.len());
    let round = seconds(&with, 1) - seconds(&without, 1);
    // 3 MB more were written, nearly all of it to pages that had not been written before.
    assert!((0.022..0.0245).contains(&round), "{round}");
    let more = with.report.total - without.report.total - 40 * MS - 300 * MS * with.rounds.len() as u32;
    assert!(more < 50 * MS, "{more:?}");
}

#[test]
fn time_grows_with_memory_and_not_with_pages_that_stay_clean() {
    let plan = |memory: u64| planned(&written(memory, 50 * GIB, 4 * GIB, 8 * GIB));
    let (small, large) = (plan(64 * GIB), plan(24 << 40));
    near(seconds(&large, 0) / seconds(&small, 0), 384.0, 0.01);
    assert!(small.is_completed() && large.is_completed());
    // The first round of both leaves nearly all of the working set, which in a large memory was written again long before the
    // round's end.
    near(seconds(&large, 1), 4.0 / 50.0, 0.02);
    for round in 2..small.rounds.len().min(large.rounds.len()) {
        near(seconds(&large, round), seconds(&small, round), 0.2);
    }
}

#[test]
fn zero_pages_cost_a_look_and_nine_bytes() {
    let mut scenario = Scenario::new(64 * GIB, 125_000_000);
    scenario.zero = 63 * GIB;
    let plan = planned(&scenario);
    let pages = plan.report.pages;
    assert_eq!((pages.normal, pages.zero), (GIB / 4096, 63 * GIB / 4096));
    let bytes = GIB as f64 * RECORD + 63.0 * GIB as f64 / 4096.0 * 9.0;
    near(plan.report.bytes as f64, bytes, 0.001);
    near(plan.report.total.as_secs_f64(), bytes / 125e6 + 63.0 * GIB as f64 / 1e10, 0.02);
}

#[test]
fn a_bandwidth_limit_is_kept_in_the_rounds_alone() {
    let mut scenario = written(GIB, 1_250_000_000, 64 << 20, 50 << 20);
    scenario.parameters.max_bandwidth = NonZeroU64::new(125_000_000);
    let plan = planned(&scenario);
    near(seconds(&plan, 0), GIB as f64 * RECORD / 125e6, 0.01);
    assert!(plan.is_completed());
}

#[test]
fn losses_slow_a_long_way_down_as_tcp_does() {
    let mut scenario = Scenario::new(GIB, 1_250_000_000);
    scenario.connection.round_trip = 20 * MS;
    scenario.connection.loss = 0.0001;
    // 1448 bytes * 1.22 / (0.02 s * 0.01): 8.8 MB/s.
    near(seconds(&planned(&scenario), 0), GIB as f64 * RECORD / 8.83e6, 0.02);
}

#[test]
fn a_throttle_lets_a_guest_go_that_writes_too_much() {
    let mut scenario = written(GIB, 125_000_000, GIB, 250_000_000);
    assert!(!planned(&scenario).is_completed());
    let remedies = scenario.remedies().expect("a scenario that can be");
    scenario.parameters.auto_converge = true;
    let plan = planned(&scenario);
    assert!(plan.is_completed());
    let slowdown = plan.report.slowdown;
    assert_eq!(remedies.auto_converge, Some(slowdown.highest_throttle_percent));
    // At least half of the writes must remain, and the threshold is half of what the wire carries: a throttle of at most three
    // quarters.
    assert!((50..=76).contains(&slowdown.highest_throttle_percent), "{slowdown:?}");
    let highest = plan.rounds.iter().map(|round| round.throttle_percent).max();
    assert_eq!(highest, Some(slowdown.highest_throttle_percent));
    assert!(slowdown.throttled > Duration::ZERO && slowdown.throttled < plan.report.total.mul_f64(0.76));
}

#[test]
fn what_would_help_does_help_and_a_quarter_less_does_not() {
    let scenario = written(GIB, 125_000_000, GIB, 200_000_000);
    let remedies = scenario.remedies().expect("a scenario that can be");
    let with = |change: &dyn Fn(&mut Scenario)| {
        let mut changed = scenario;
        change(&mut changed);
        planned(&changed).is_completed()
    };
    let speed = remedies.bytes_per_second.expect("a faster wire helps");
    assert!(with(&|scenario| scenario.connection.bytes_per_second = speed));
    assert!(!with(&|scenario| scenario.connection.bytes_per_second = speed / 4 * 3));
    let limit = remedies.downtime_limit.expect("a longer pause helps");
    assert!(with(&|scenario| scenario.parameters.downtime_limit = limit));
    assert!(!with(&|scenario| scenario.parameters.downtime_limit = limit / 4 * 3));
}

#[test]
fn the_same_seed_gives_the_same_plan() {
    let mut scenario = written(GIB, 125_000_000, GIB / 4, 60_000_000);
    (scenario.writes.pattern, scenario.vcpus) = (Pattern::Bursty, 3);
    (scenario.connection.jitter, scenario.connection.loss) = (5 * MS, 0.001);
    let plans = [1, 1, 2].map(|seed| {
        scenario.seed = seed;
        planned(&scenario)
    });
    assert_eq!((&plans[0].report, &plans[0].rounds), (&plans[1].report, &plans[1].rounds));
    assert_ne!(plans[0].report, plans[2].report);
}

#[test]
fn what_cannot_be_is_refused_with_what_can() {
    let refused = |change: &dyn Fn(&mut Scenario)| {
        let mut scenario = Scenario::new(GIB, 125_000_000);
        change(&mut scenario);
        run(&scenario).expect_err("it cannot be").to_string()
    };
    assert!(refused(&|scenario| scenario.memory = 0).contains("an exbibyte"));
    assert!(refused(&|scenario| scenario.zero = 2 * GIB).contains("memory"));
    assert!(refused(&|scenario| scenario.connection.bytes_per_second = 0).contains("a byte a second"));
    assert!(refused(&|scenario| scenario.connection.loss = 1.0).contains("100 %"));
    assert!(refused(&|scenario| scenario.connection.loss = f64::NAN).contains("100 %"));
    assert!(refused(&|scenario| scenario.connection.round_trip = 10_000 * MS).contains("5 s"));
    assert!(refused(&|scenario| scenario.pause.device_bytes = u64::MAX).contains("a gibibyte"));
    assert!(refused(&|scenario| scenario.setup = Duration::MAX).contains("a day"));
    assert!(refused(&|scenario| scenario.vcpus = 0).contains("4096"));
    assert!(refused(&|scenario| scenario.parameters.max_cpu_throttle = 0).contains("max-cpu-throttle"));
}
