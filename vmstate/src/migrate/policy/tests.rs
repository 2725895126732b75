//! Numbers calculated by hand, and properties over random figures.

use std::num::NonZeroU64;

use proptest::prelude::*;

use super::*;
use crate::migrate::parameters::Aim;

const MS: Duration = Duration::from_millis(1);

/// 100 MB pending, 1 GB/s wire, 100 MB/s dirtied, 2 ms round trip, 1 MB of devices, 5 ms to save and load them; and a limit of 300 ms.
fn figures() -> (Figures, Parameters) {
    let figures = Figures {
        pending_bytes: 1e8,
        dirty_bytes_per_second: 1e8,
        device_bytes: 1e6,
        wire_bytes_per_second: 1e9,
        paused_bytes_per_second: 1e9,
        is_wire_measured: true,
        round_trip: 2 * MS,
        lateness: Duration::ZERO,
        stopping: Duration::ZERO,
        switch_over_cost: 5 * MS,
        least_switch_over_cost: 5 * MS,
        elapsed: 1000 * MS,
        rounds: 3,
        last_rounds: [None; 2],
        least_pending_bytes: f64::INFINITY,
        stalled_rounds: 0,
        throttle: Some(0),
    };
    (figures, Parameters { downtime_limit: 300 * MS, ..Parameters::default() })
}

fn bandwidth(bytes_per_second: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(bytes_per_second)
}

fn decision(figures: &Figures, parameters: &Parameters) -> RoundDecision {
    decide(figures, parameters).0
}

#[test]
fn all_that_the_guest_feels_counts() {
    let (mut figures, mut parameters) = figures();
    let (verdict, forecast) = decide(&figures, &parameters);
    assert_eq!(forecast.downtime, (100 + 6 + 4) * MS);
    assert_eq!(forecast.total, Some(1110 * MS));
    assert_eq!(verdict, RoundDecision::SwitchOver);
    // 100 ms for the pages may become 110.
    parameters.downtime_limit = 120 * MS;
    assert_eq!(decision(&figures, &parameters), RoundDecision::SwitchOver);
    for change in [
        |figures: &mut Figures| figures.pending_bytes += 1e6,
        |figures: &mut Figures| figures.round_trip += MS,
        |figures: &mut Figures| figures.switch_over_cost += MS,
        |figures: &mut Figures| figures.device_bytes += 1e6,
        |figures: &mut Figures| figures.paused_bytes_per_second *= 0.99,
        // A tenth of a millisecond of the wire for each millisecond in which the guest continues to write.
        |figures: &mut Figures| figures.stopping = MS,
    ] {
        let mut more = figures;
        change(&mut more);
        assert_eq!(decision(&more, &parameters), RoundDecision::Iterate, "{more:?}");
    }
    // A limit on the rounds does not slow the switch-over, in which no vCPU competes any more.
    figures.wire_bytes_per_second = 1.0;
    parameters.max_bandwidth = bandwidth(1);
    assert_eq!(decision(&figures, &parameters), RoundDecision::SwitchOver);
}

#[test]
fn answers_may_be_twice_as_late_as_usual() {
    let (mut figures, mut parameters) = figures();
    (figures.lateness, parameters.downtime_limit) = (5 * MS, 140 * MS);
    assert_eq!(decide(&figures, &parameters).1.downtime, (110 + 2 * 5) * MS);
    assert_eq!(decision(&figures, &parameters), RoundDecision::SwitchOver);
    figures.lateness += MS / 2;
    assert_eq!(decision(&figures, &parameters), RoundDecision::Iterate);
}

#[test]
fn a_given_switch_over_bandwidth_is_used() {
    let (mut figures, mut parameters) = figures();
    figures.paused_bytes_per_second = 1e8;
    // A second for the pages and 10 ms for the devices.
    assert_eq!(decide(&figures, &parameters).1.downtime, (1000 + 10 + 5 + 4) * MS);
    parameters.avail_switchover_bandwidth = bandwidth(500_000_000);
    assert_eq!(decide(&figures, &parameters).1.downtime, (200 + 2 + 5 + 4) * MS);
    assert_eq!(decision(&figures, &parameters), RoundDecision::SwitchOver);
}

#[test]
fn predicts_the_rounds_to_come() {
    let (mut figures, mut parameters) = figures();
    parameters.downtime_limit = 12 * MS;
    // 1.8 ms of 1 GB/s fit. 100 MB take 100 ms and a round trip, and leave 10.2 MB; these take 12.2 ms and leave 1.22 MB, which
    // are sent in the pause.
    let total = decide(&figures, &parameters).1.total.unwrap();
    let expected = Duration::from_secs_f64(1.0 + 0.102 + 0.0122 + 0.00122 + 0.010);
    assert!(total.abs_diff(expected) < MS / 1000, "{total:?}");
    parameters.max_bandwidth = bandwidth(200_000_000);
    // Half is left by each round, and 0.2 MB for its round trip.
    let (mut pending, mut expected) = (100.0, 1.0);
    while pending > 2.0 / 1.1 {
        expected += pending / 200.0 + 0.002;
        pending = pending / 2.0 + 0.2;
    }
    expected += 0.010 + pending / 1000.0;
    let total = decide(&figures, &parameters).1.total.unwrap();
    assert!(total.abs_diff(Duration::from_secs_f64(expected)) < MS / 1000, "{total:?}");
    parameters.max_bandwidth = bandwidth(100_000_000);
    assert_eq!(decide(&figures, &parameters).1.total, None);
    // A speed of one byte a second is valid.
    (figures.dirty_bytes_per_second, figures.pending_bytes) = (0.0, 2e6);
    parameters.max_bandwidth = bandwidth(1);
    let total = decide(&figures, &parameters).1.total.unwrap();
    assert_eq!(total.as_secs(), 1 + 2_000_000);
}

#[test]
fn gives_up_with_a_reason() {
    let (figures, mut parameters) = figures();
    parameters.downtime_limit = 50 * MS;
    let verdict = |parameters: &Parameters| decision(&figures, parameters);
    assert_eq!(verdict(&parameters), RoundDecision::Iterate);
    parameters.max_rounds = Some(4);
    assert_eq!(verdict(&parameters), RoundDecision::Iterate);
    parameters.max_rounds = Some(3);
    let expected_downtime = 110 * MS;
    assert_eq!(verdict(&parameters), RoundDecision::GiveUp(GiveUpReason::Rounds { expected_downtime }));
    parameters = Parameters { max_rounds: None, deadline: Some(1000 * MS), ..parameters };
    assert_eq!(verdict(&parameters), RoundDecision::GiveUp(GiveUpReason::Deadline { expected_downtime }));
    parameters = Parameters { downtime_limit: 9 * MS, deadline: None, ..parameters };
    let fixed = RoundDecision::GiveUp(GiveUpReason::FixedCost { least_downtime: 10 * MS });
    assert_eq!(verdict(&parameters), fixed);
    // A switch-over that was cheaper a moment ago may be so again.
    let hopeful = Figures { least_switch_over_cost: 4 * MS, switch_over_cost: 500 * MS, ..figures };
    assert_eq!(decision(&hopeful, &parameters), RoundDecision::Iterate);
    // If the deadline's action may exceed the limit, the migration is not given up before.
    parameters.deadline = Some(1001 * MS);
    assert_eq!(verdict(&parameters), fixed);
    parameters.deadline_action = DeadlineAction::SwitchOver;
    assert_eq!(verdict(&parameters), RoundDecision::Iterate);
}

#[test]
fn a_deadline_does_what_was_asked_for() {
    let (mut figures, mut parameters) = figures();
    parameters = Parameters { downtime_limit: 50 * MS, deadline: Some(1001 * MS), ..parameters };
    assert_eq!(overdue(&figures, &parameters), None);
    figures.elapsed += MS;
    let after = |figures: &Figures, parameters: &Parameters| overdue(figures, parameters).expect("it has passed");
    let gives_up = RoundDecision::GiveUp(GiveUpReason::Deadline { expected_downtime: 110 * MS });
    assert_eq!(after(&figures, &parameters), gives_up);
    parameters.deadline_action = DeadlineAction::SwitchOver;
    assert_eq!(after(&figures, &parameters), RoundDecision::SwitchOver);
    parameters.deadline_action = DeadlineAction::Throttle;
    parameters.max_cpu_throttle = 80;
    assert_eq!(after(&figures, &parameters), RoundDecision::ThrottleMore(80));
    figures.throttle = Some(80);
    assert_eq!(after(&figures, &parameters), RoundDecision::Iterate);
    // Two rounds under the highest throttle that leave as much as they sent.
    let round = |dirtied_bytes| Some(RoundFigures { dirtied_bytes, sent_bytes: 1e8, throttle: 80 });
    figures.last_rounds = [round(1e8), round(0.94e8)];
    assert_eq!(after(&figures, &parameters), RoundDecision::Iterate);
    figures.last_rounds = [round(1e8), round(0.96e8)];
    let reason = GiveUpReason::Throttle { expected_downtime: 110 * MS, percent: 80 };
    assert_eq!(after(&figures, &parameters), RoundDecision::GiveUp(reason));
    // The share would be low enough, but the rounds no longer leave less: further rounds are useless.
    let small = |dirtied_bytes| Some(RoundFigures { dirtied_bytes, sent_bytes: 1e8, throttle: 80 });
    let settled = Figures { last_rounds: [small(1e6), small(1e6)], stalled_rounds: 8, ..figures };
    let stalled = GiveUpReason::Stalled { expected_downtime: 110 * MS, rounds: 8 };
    assert_eq!(after(&settled, &parameters), RoundDecision::GiveUp(stalled));
    for hopeful in [
        Figures { stalled_rounds: 7, ..settled },
        Figures { last_rounds: [small(1e6), small(1.1e6)], ..settled },
        // From before the throttle.
        Figures { last_rounds: [small(1e6), small(1e6).map(|round| RoundFigures { throttle: 0, ..round })], ..settled },
    ] {
        assert_eq!(after(&hopeful, &parameters), RoundDecision::Iterate);
    }
    // Nor are they useful where the pause would be too long without a page.
    let slow = Figures { least_switch_over_cost: 50 * MS, last_rounds: [small(1e6), small(1.1e6)], ..figures };
    let fixed = GiveUpReason::FixedCost { least_downtime: 55 * MS };
    assert_eq!(after(&slow, &parameters), RoundDecision::GiveUp(fixed));
    figures.throttle = None;
    assert_eq!(after(&figures, &parameters), gives_up);
    // A pause that fits begins, whatever the deadline's action.
    for deadline_action in [DeadlineAction::Cancel, DeadlineAction::SwitchOver, DeadlineAction::Throttle] {
        let parameters = Parameters { downtime_limit: 120 * MS, deadline_action, ..parameters };
        assert_eq!(after(&figures, &parameters), RoundDecision::SwitchOver);
    }
}

#[test]
fn a_deadline_in_the_first_round_finds_nothing_that_fits() {
    let (figures, mut parameters) = figures();
    let figures = Figures { rounds: 0, pending_bytes: 0.0, dirty_bytes_per_second: 0.0, ..figures };
    parameters.deadline = Some(MS);
    let mut decided = |action| {
        parameters.deadline_action = action;
        overdue(&figures, &parameters).expect("it has passed")
    };
    // The guest's writes since the round began are in no figure yet.
    let gives_up = GiveUpReason::Deadline { expected_downtime: 10 * MS };
    assert_eq!(decided(DeadlineAction::Cancel), RoundDecision::GiveUp(gives_up));
    assert_eq!(decided(DeadlineAction::SwitchOver), RoundDecision::SwitchOver);
    assert_eq!(decided(DeadlineAction::Throttle), RoundDecision::ThrottleMore(99));
}

/// Before the first answer, no pause is known to fit, so only the deadline's action decides.
#[test]
fn with_an_unmeasured_wire_no_pause_fits() {
    let (figures, parameters) = figures();
    let unknown = Figures {
        wire_bytes_per_second: f64::INFINITY,
        paused_bytes_per_second: f64::INFINITY,
        is_wire_measured: false,
        ..figures
    };
    assert_eq!(decision(&unknown, &parameters), RoundDecision::Iterate);
    let overdue = |figures: &Figures, deadline_action, avail| {
        let deadline = Some(figures.elapsed);
        let given = Parameters { deadline, deadline_action, avail_switchover_bandwidth: avail, ..parameters };
        overdue(figures, &given).unwrap()
    };
    assert!(matches!(overdue(&unknown, DeadlineAction::Cancel, None), RoundDecision::GiveUp(_)));
    assert_eq!(overdue(&unknown, DeadlineAction::SwitchOver, None), RoundDecision::SwitchOver);
    assert_eq!(overdue(&unknown, DeadlineAction::Throttle, None), RoundDecision::ThrottleMore(99));
    // If the user sets the speed, or nothing is left to send, no measurement is needed.
    assert_eq!(overdue(&unknown, DeadlineAction::Cancel, bandwidth(1_000_000_000)), RoundDecision::SwitchOver);
    let nothing = Figures { pending_bytes: 0.0, ..unknown };
    assert_eq!(overdue(&nothing, DeadlineAction::Cancel, None), RoundDecision::SwitchOver);
}

fn shares(last: f64, before: f64, throttle: u8) -> (Figures, Parameters) {
    let (figures, parameters) = figures();
    let round = |share| Some(RoundFigures { dirtied_bytes: share * 1e6, sent_bytes: 1e8, throttle });
    let figures = Figures { last_rounds: [round(last), round(before)], throttle: Some(throttle), ..figures };
    (figures, Parameters { downtime_limit: 50 * MS, auto_converge: true, ..parameters })
}

#[test]
fn throttles_no_more_than_two_rounds_call_for() {
    for (last, before, now, then) in [
        // QEMU's step where it is needed: 1 - 1 * 50/100 = 50 %.
        (100.0, 100.0, 0, RoundDecision::ThrottleMore(20)),
        (100.0, 100.0, 20, RoundDecision::ThrottleMore(30)),
        (100.0, 100.0, 95, RoundDecision::ThrottleMore(98)),
        (500.0, 500.0, 95, RoundDecision::ThrottleMore(99)),
        (500.0, 500.0, 99, RoundDecision::Iterate),
        // 1 - 50/60 is a sixth; 1 - 0.7 * 50/55 is 36.4 %.
        (60.0, 60.0, 0, RoundDecision::ThrottleMore(17)),
        (55.0, 90.0, 30, RoundDecision::ThrottleMore(37)),
        // Both rounds have to exceed the threshold.
        (100.0, 50.0, 0, RoundDecision::Iterate),
        (50.0, 100.0, 0, RoundDecision::Iterate),
        (51.0, 51.0, 0, RoundDecision::ThrottleMore(2)),
        // Down to where 40 % would be left: 1 - 0.5 * 40/25 = 20 %.
        (25.0, 25.0, 50, RoundDecision::ThrottleLess(20)),
        (25.0, 10.0, 50, RoundDecision::ThrottleLess(20)),
        (10.0, 10.0, 50, RoundDecision::ThrottleLess(0)),
        (0.0, 0.0, 99, RoundDecision::ThrottleLess(0)),
        (41.0, 41.0, 50, RoundDecision::Iterate),
    ] {
        let (figures, parameters) = shares(last, before, now);
        assert_eq!(decision(&figures, &parameters), then, "{last} % after {before} % under {now} %");
    }
}

#[test]
fn a_throttle_needs_leave_a_machine_that_can_and_a_pause_that_does_not_fit() {
    let (figures, parameters) = shares(100.0, 100.0, 0);
    let set = |change: fn(&mut Figures, &mut Parameters)| {
        let (mut figures, mut parameters) = (figures, parameters);
        change(&mut figures, &mut parameters);
        decision(&figures, &parameters)
    };
    assert_eq!(set(|_, parameters| parameters.auto_converge = false), RoundDecision::Iterate);
    assert_eq!(set(|figures, _| figures.throttle = None), RoundDecision::Iterate);
    assert_eq!(set(|figures, _| figures.last_rounds[1] = None), RoundDecision::Iterate);
    // A round before the last change says nothing about this throttle.
    assert_eq!(set(|figures, _| figures.throttle = Some(20)), RoundDecision::Iterate);
    assert_eq!(set(|_, parameters| parameters.throttle_trigger_threshold = 100), RoundDecision::Iterate);
    assert_eq!(set(|_, parameters| parameters.cpu_throttle_initial = 45), RoundDecision::ThrottleMore(45));
    assert_eq!(set(|_, parameters| parameters.downtime_limit = 300 * MS), RoundDecision::SwitchOver);
    let (figures, parameters) = shares(100.0, 100.0, 60);
    let off = Parameters { auto_converge: false, ..parameters };
    assert_eq!(decision(&figures, &off), RoundDecision::ThrottleLess(0));
    let lower = Parameters { max_cpu_throttle: 40, ..parameters };
    assert_eq!(decision(&figures, &lower), RoundDecision::ThrottleLess(40));
    // For the aim of least disturbance the pause may fit already, and the throttle is not raised for a shorter one.
    let fits = Parameters { downtime_limit: 300 * MS, aim: Aim::LeastDisturbance, ..parameters };
    let helps = Figures { dirty_bytes_per_second: 1e6, throttle: Some(0), ..figures };
    let round = |throttle| Some(RoundFigures { dirtied_bytes: 1e8, sent_bytes: 1e8, throttle });
    let helps = Figures { last_rounds: [round(0), round(0)], ..helps };
    assert_eq!(decision(&helps, &fits), RoundDecision::Iterate);
}

#[test]
fn least_disturbance_goes_on_while_a_round_saves_more_than_it_costs() {
    let (mut figures, mut parameters) = figures();
    parameters.aim = Aim::LeastDisturbance;
    // A round of 102 ms costs 5.1 ms, and the pause becomes 110 - 89.8 = 20.2 ms; a difference of 11 ms would not be noticed.
    assert_eq!(decision(&figures, &parameters), RoundDecision::Iterate);
    // 10.2 MB: 12.2 ms cost 0.61 ms and save 8.98 ms; 2.02 ms are not noticed. 1.22 MB: 3.22 ms cost 0.16 ms and save 1.22 -
    // 0.322 = 0.898 ms, which is not noticed. So two rounds come first: 1 s + 102 ms + 12.2 ms + 11.22 ms.
    let total = decide(&figures, &parameters).1.total.unwrap();
    assert!(total.abs_diff(Duration::from_secs_f64(1.12542)) < MS / 1000, "{total:?}");
    figures.pending_bytes = 1.02e7;
    assert_eq!(decision(&figures, &parameters), RoundDecision::Iterate);
    figures.pending_bytes = 1.22e6;
    assert_eq!(decision(&figures, &parameters), RoundDecision::SwitchOver);
    // Each round leaves the same: no gain. And vCPUs that stand still half of the time pay for it.
    (figures.pending_bytes, figures.dirty_bytes_per_second) = (1e8, 1e9);
    assert_eq!(decision(&figures, &parameters), RoundDecision::SwitchOver);
    (figures.dirty_bytes_per_second, figures.throttle) = (5e8, Some(0));
    assert_eq!(decision(&figures, &parameters), RoundDecision::Iterate);
    figures.throttle = Some(50);
    parameters.auto_converge = true;
    assert_eq!(decision(&figures, &parameters), RoundDecision::SwitchOver);
}

#[test]
fn least_disturbance_waits_for_a_minimum_but_not_for_ever_and_never_exceeds_the_limit() {
    let (mut figures, mut parameters) = figures();
    parameters.aim = Aim::LeastDisturbance;
    figures.dirty_bytes_per_second = 1e9;
    // 110 ms now, 99 ms plus a tenth would be enough.
    figures.least_pending_bytes = 8.8e7;
    assert_eq!(decision(&figures, &parameters), RoundDecision::Iterate);
    figures.least_pending_bytes = 9.1e7;
    assert_eq!(decision(&figures, &parameters), RoundDecision::SwitchOver);
    (figures.least_pending_bytes, figures.stalled_rounds) = (1e7, 7);
    assert_eq!(decision(&figures, &parameters), RoundDecision::Iterate);
    figures.stalled_rounds = 8;
    assert_eq!(decision(&figures, &parameters), RoundDecision::SwitchOver);
    parameters.downtime_limit = 50 * MS;
    let reason = GiveUpReason::Stalled { expected_downtime: 110 * MS, rounds: 8 };
    assert_eq!(decision(&figures, &parameters), RoundDecision::GiveUp(reason));
    figures.stalled_rounds = 7;
    assert_eq!(decision(&figures, &parameters), RoundDecision::Iterate);
    parameters.aim = Aim::Soonest;
    figures.stalled_rounds = u32::MAX;
    assert_eq!(decision(&figures, &parameters), RoundDecision::Iterate);
}

fn any_figures() -> impl Strategy<Value = Figures> {
    let bytes = || prop_oneof![Just(0.0), 1.0..1e13_f64];
    let speed = || 1.0..1e11_f64;
    let time = |most: u64| (0..most).prop_map(Duration::from_micros);
    let throttle = prop_oneof![Just(None), (0..100_u8).prop_map(Some)];
    let round = move || {
        let round = (bytes(), bytes(), 0..100_u8);
        round.prop_map(|(dirtied_bytes, sent_bytes, throttle)| RoundFigures { dirtied_bytes, sent_bytes, throttle })
    };
    (
        (bytes(), bytes(), 0.0..1e8, speed(), speed(), time(500_000), time(100_000), time(400_000)),
        (time(10_000_000), 0..20_u32, proptest::option::of(round()), proptest::option::of(round())),
        (bytes(), 0..20_u32, throttle, any::<bool>()),
    )
        .prop_map(|(a, b, (least_pending_bytes, stalled_rounds, throttle, same))| {
            let of_now = |round: Option<RoundFigures>| {
                let now = throttle.filter(|_| same);
                round.map(|round| RoundFigures { throttle: now.unwrap_or(round.throttle), ..round })
            };
            Figures {
                pending_bytes: a.0,
                dirty_bytes_per_second: a.1,
                device_bytes: a.2,
                wire_bytes_per_second: a.3,
                paused_bytes_per_second: a.4.max(a.3),
                is_wire_measured: true,
                round_trip: a.5,
                lateness: a.5 / 3,
                stopping: a.6,
                switch_over_cost: a.7,
                least_switch_over_cost: a.7 / 2,
                elapsed: b.0,
                rounds: b.1,
                last_rounds: [of_now(b.2), of_now(b.3)],
                least_pending_bytes,
                stalled_rounds,
                throttle,
            }
        })
}

fn any_parameters() -> impl Strategy<Value = Parameters> {
    let actions =
        prop_oneof![Just(DeadlineAction::Cancel), Just(DeadlineAction::SwitchOver), Just(DeadlineAction::Throttle)];
    let aims = prop_oneof![Just(Aim::Soonest), Just(Aim::LeastDisturbance)];
    let percents = (1..=100_u8, 1..=99_u8, 1..=99_u8, 1..=99_u8);
    let limits = (
        proptest::option::of(1..1_u64 << 40),
        proptest::option::of(0..10_000_000_u64),
        proptest::option::of(1..20_u32),
    );
    (0..2_000_000_u64, aims, any::<bool>(), percents, limits, actions).prop_map(
        |(downtime, aim, auto_converge, percents, (bandwidth, deadline, max_rounds), deadline_action)| Parameters {
            downtime_limit: Duration::from_micros(downtime),
            max_bandwidth: bandwidth.and_then(NonZeroU64::new),
            aim,
            auto_converge,
            throttle_trigger_threshold: percents.0,
            cpu_throttle_initial: percents.1.min(percents.3),
            cpu_throttle_increment: percents.2,
            max_cpu_throttle: percents.3,
            deadline: deadline.map(Duration::from_micros),
            deadline_action,
            max_rounds,
            ..Parameters::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// More pending pages, a slower wire or a stricter limit never turn another decision into a switch-over. (For the aim of
    /// least disturbance they may: a round may no longer be worth its time.)
    #[test]
    fn more_to_send_never_makes_it_switch_over(figures in any_figures(), parameters in any_parameters(), more in 1.0..100.0_f64) {
        let parameters = Parameters { aim: Aim::Soonest, ..parameters };
        if decision(&figures, &parameters) != RoundDecision::SwitchOver {
            let fuller = Figures { pending_bytes: figures.pending_bytes * more + 1.0, ..figures };
            prop_assert_ne!(decision(&fuller, &parameters), RoundDecision::SwitchOver);
            let slower = Figures { paused_bytes_per_second: figures.paused_bytes_per_second / more, ..figures };
            prop_assert_ne!(decision(&slower, &parameters), RoundDecision::SwitchOver);
            let stricter = Parameters { downtime_limit: parameters.downtime_limit / 2, ..parameters };
            prop_assert_ne!(decision(&figures, &stricter), RoundDecision::SwitchOver);
        }
    }

    /// The limit is exceeded only if the deadline's action allows it.
    #[test]
    fn nothing_switches_over_above_the_limit_but_the_deadline(figures in any_figures(), parameters in any_parameters()) {
        let (decision, forecast) = decide(&figures, &parameters);
        if decision == RoundDecision::SwitchOver && forecast.downtime > parameters.downtime_limit {
            prop_assert_eq!(parameters.deadline_action, DeadlineAction::SwitchOver);
            prop_assert!(parameters.deadline.is_some_and(|deadline| figures.elapsed >= deadline));
        }
    }

    /// A throttle rises by one step at most, never above its maximum, and does not fall if the guest dirties more.
    #[test]
    fn a_throttle_keeps_to_its_parameters(figures in any_figures(), parameters in any_parameters(), more in 1.0..10.0_f64) {
        let overdue = overdue(&figures, &parameters).is_some();
        let now = figures.throttle;
        let next = |decision| match decision {
            RoundDecision::ThrottleMore(percent) | RoundDecision::ThrottleLess(percent) => percent,
            _ => now.unwrap_or_default(),
        };
        let after = decision(&figures, &parameters);
        match after {
            RoundDecision::ThrottleMore(percent) => {
                let now = now.expect("it can be throttled");
                prop_assert!(now < percent && percent <= parameters.max_cpu_throttle);
                let step = if now == 0 { parameters.cpu_throttle_initial } else { parameters.cpu_throttle_increment };
                prop_assert!(overdue || (parameters.auto_converge && percent - now <= step), "{now} to {percent}");
            }
            RoundDecision::ThrottleLess(percent) => prop_assert!(percent < now.expect("it is throttled")),
            _ => {}
        }
        let dirtier = |round: RoundFigures| RoundFigures { dirtied_bytes: round.dirtied_bytes * more, ..round };
        let worse = Figures { last_rounds: figures.last_rounds.map(|round| round.map(dirtier)), ..figures };
        let with_more = decision(&worse, &parameters);
        let goes_on = |decision| !matches!(decision, RoundDecision::SwitchOver | RoundDecision::GiveUp(_));
        if goes_on(after) && goes_on(with_more) {
            prop_assert!(next(with_more) >= next(after), "{after:?}, with more {with_more:?}");
        }
    }

    #[test]
    fn no_figure_makes_it_panic(
        bytes in proptest::collection::vec(prop_oneof![Just(0.0), Just(1e30), Just(f64::INFINITY), Just(f64::NAN)], 6),
        figures in any_figures(),
        parameters in any_parameters(),
    ) {
        let round = RoundFigures { dirtied_bytes: bytes[4], sent_bytes: bytes[5], throttle: figures.throttle.unwrap_or(0) };
        let figures = Figures {
            pending_bytes: bytes[0],
            dirty_bytes_per_second: bytes[1],
            wire_bytes_per_second: bytes[2],
            paused_bytes_per_second: bytes[2],
            device_bytes: bytes[3],
            least_pending_bytes: bytes[3],
            round_trip: Duration::MAX,
            lateness: Duration::MAX,
            stopping: Duration::MAX,
            last_rounds: [Some(round); 2],
            ..figures
        };
        decide(&figures, &parameters);
        decide(&figures, &Parameters { downtime_limit: Duration::MAX, ..parameters });
    }
}
