//! Thousands of guests, wires and parameters: each plan ends, and each end is correct according to a calculation that does not
//! use the engine.

use std::num::NonZeroU64;
use std::thread;
use std::time::Duration;

use vmstate::migrate::plan::{MOST_ROUNDS, Pattern, Pause, Plan, Scenario, run};
use vmstate::migrate::{Aim, DeadlineAction, SourcePhase};

use super::{MS, RECORD};

const SCENARIOS: u64 = 2000;
/// One guest in this many has up to 24 TiB.
const LARGE: u64 = 12;
const TIB: f64 = (1_u64 << 40) as f64;

/// Numbers that are the same in each run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    /// Draws a number; each factor of ten is equally likely.
    fn between(&mut self, least: f64, most: f64) -> f64 {
        least * (most / least).powf(self.below(1 << 20) as f64 / (1 << 20) as f64)
    }
}

fn scenario(number: u64) -> Scenario {
    let draw = &mut Draw(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let is_large = number < LARGE;
    let speed = if is_large { draw.between(2e10, 1e11) } else { draw.between(3e5, 2e10) };
    let mut scenario = Scenario::new(1, speed as u64);
    scenario.connection.round_trip = Duration::from_secs_f64(draw.between(1e-5, 0.1));
    scenario.connection.jitter = draw.of(&[0, 0, 0, 1, 5, 30, 100]) * MS;
    scenario.connection.loss = if is_large { 0.0 } else { draw.of(&[0.0, 0.0, 1e-6, 1e-3, 0.01]) };
    let speed = bytes_per_second(&scenario);
    let memory = if is_large { draw.between(1e12, 24.0 * TIB) } else { speed * draw.between(0.1, 2.0) };
    scenario.memory = (memory as u64).max(1 << 20);
    scenario.seed = number;
    scenario.zero = (memory * draw.of(&[0.0, 0.0, 0.5])) as u64;
    scenario.vcpus = draw.of(&[1, 2, 8, 64, 256]);
    scenario.pause = Pause::with_vcpus(scenario.vcpus);
    scenario.writes.bytes_per_second = (speed * draw.of(&[0.0, 0.1, 0.5, 0.8, 1.3, 4.0])) as u64;
    scenario.writes.working_set = (memory * draw.of(&[0.01, 0.1, 0.5, 1.0])) as u64;
    scenario.writes.pattern = draw.of(&[Pattern::Steady, Pattern::Bursty, Pattern::Phased, Pattern::HotSpot]);
    let parameters = &mut scenario.parameters;
    parameters.downtime_limit = MS * draw.of(&[20, 100, 300, 2000]);
    parameters.aim = draw.of(&[Aim::Soonest, Aim::Soonest, Aim::LeastDisturbance]);
    parameters.auto_converge = draw.of(&[false, false, true]);
    parameters.max_bandwidth =
        draw.of(&[None, None, None, None, None, NonZeroU64::new(speed as u64 / 2).filter(|_| !is_large)]);
    parameters.max_rounds = if is_large { Some(3) } else { draw.of(&[Some(3), Some(10), Some(20), None]) };
    if parameters.max_rounds.is_none() || draw.below(4) == 0 {
        parameters.deadline = Some(Duration::from_secs_f64(memory / speed * draw.of(&[0.5, 2.0, 8.0])));
        parameters.deadline_action =
            draw.of(&[DeadlineAction::Cancel, DeadlineAction::SwitchOver, DeadlineAction::Throttle]);
    }
    if number.is_multiple_of(4) {
        // A case whose end follows from the balance between wire and writes.
        parameters.deadline = None;
        (parameters.aim, parameters.auto_converge, parameters.max_rounds) = (Aim::Soonest, false, Some(20));
        scenario.writes.pattern = Pattern::Steady;
        (scenario.connection.jitter, scenario.connection.loss) = (Duration::ZERO, 0.0);
    }
    scenario
}

/// Speed of the wire for pages.
fn bytes_per_second(scenario: &Scenario) -> f64 {
    let connection = scenario.connection;
    let lossy = 1448.0 * 1.22 / (connection.round_trip.as_secs_f64() * connection.loss.sqrt());
    lossy.min(connection.bytes_per_second as f64 * (1.0 - connection.loss))
}

/// Duration of a pause without any page.
fn fixed(scenario: &Scenario) -> Duration {
    let devices = scenario.pause.device_bytes as f64 / bytes_per_second(scenario);
    scenario.pause.stop + scenario.pause.load + 2 * scenario.connection.round_trip + Duration::from_secs_f64(devices)
}

/// How much later than expected the two answers of a pause may come; a guest in a burst writes five times as much until it stands
/// still.
fn unforeseen(scenario: &Scenario) -> Duration {
    let connection = scenario.connection;
    let late = if connection.loss > 0.0 { 2 * connection.round_trip.max(200 * MS) } else { Duration::ZERO };
    let burst = match scenario.writes.pattern {
        Pattern::Steady | Pattern::HotSpot => 0.0,
        _ => {
            5.0 * scenario.writes.bytes_per_second as f64 * scenario.pause.stop.as_secs_f64()
                / bytes_per_second(scenario)
        }
    };
    2 * connection.jitter + late + Duration::from_secs_f64(burst)
}

/// The fault of the plan, if there is one.
fn offence(scenario: &Scenario, plan: &Plan) -> Option<&'static str> {
    let (parameters, report) = (scenario.parameters, &plan.report);
    let reason = plan.reason.as_deref().unwrap_or_default();
    let wrong = |right: bool, what| (!right).then_some(what);
    let rounds = plan.rounds.len() as u32;
    let regardless = parameters.deadline.is_some() && parameters.deadline_action == DeadlineAction::SwitchOver;
    let most = parameters.max_rounds.unwrap_or(if parameters.deadline.is_none() { MOST_ROUNDS } else { u32::MAX });
    let lasts = report.rounds.iter().map(|round| round.duration).max().unwrap_or_default();
    let overdue = parameters.deadline.is_some_and(|deadline| report.total >= deadline);
    let throttled_to_the_end = overdue && parameters.deadline_action == DeadlineAction::Throttle;
    if rounds > most && !throttled_to_the_end {
        return Some("more rounds than allowed");
    }
    if let Some(downtime) = report.downtime {
        let most = parameters.downtime_limit + parameters.downtime_limit / 50 + unforeseen(scenario);
        let overdue = regardless && overdue;
        return wrong(plan.phase == SourcePhase::Completed, "a downtime and not completed")
            .or_else(|| wrong(reason.is_empty(), "completed, with a reason"))
            .or_else(|| wrong(overdue || downtime.total() <= most, "the pause is longer than its limit"));
    }
    // With jitter, a limited source measures no more of the wire than its limit.
    let mut known = *scenario;
    if let Some(limit) = parameters.max_bandwidth.filter(|_| !scenario.connection.jitter.is_zero()) {
        known.connection.bytes_per_second = limit.get().min(known.connection.bytes_per_second);
    }
    let fixed_is_too_much = fixed(&known) + unforeseen(scenario) > parameters.downtime_limit.mul_f64(0.9);
    let since_deadline = parameters.deadline.map(|deadline| report.total.checked_sub(deadline));
    match () {
        () if plan.phase != SourcePhase::Failed => Some("neither completed nor failed"),
        () if reason.contains("limit of rounds") => wrong(rounds == most, "gave up before the last round"),
        () if reason.contains("the deadline has passed, and the guest dirties") => wrong(
            parameters.deadline_action == DeadlineAction::Throttle && since_deadline.flatten().is_some(),
            "throttled to the end without a deadline",
        ),
        () if reason.contains("the deadline has passed") => {
            // Checked after each chunk, and after a rehearsal, whose answers may be late.
            let most = Duration::from_secs(1) + 8 * unforeseen(scenario) + 4 * scenario.connection.round_trip;
            let punctual = since_deadline.flatten().is_some_and(|late| late <= most);
            wrong(
                punctual && parameters.deadline_action == DeadlineAction::Cancel,
                "gave up at another time than its deadline",
            )
        }
        () if reason.contains("rounds did not lower") => {
            let asked = parameters.aim == Aim::LeastDisturbance || throttled_to_the_end;
            wrong(asked && rounds > 8, "stalled, and nobody asked")
        }
        () if reason.contains("even with no page left") => wrong(fixed_is_too_much, "a pause without pages would fit"),
        // Once a pause has begun, only unforeseeable events make it too long.
        () if reason.contains("the guest is paused for") => {
            wrong(regardless || unforeseen(scenario) > parameters.downtime_limit, "the pause broke its budget")
        }
        () => Some("gave up without a reason of its own"),
    }
    .or_else(|| wrong(lasts < Duration::from_secs(4000), "a round without end"))
}

/// Whether the plan must complete or must not, from the balance between wire and writes; `None` if that does not decide.
fn verdict(scenario: &Scenario) -> Option<bool> {
    let parameters = scenario.parameters;
    let speed =
        parameters.max_bandwidth.map_or(f64::INFINITY, |limit| limit.get() as f64).min(bytes_per_second(scenario));
    let is_plain = scenario.writes.pattern == Pattern::Steady
        && unforeseen(scenario).is_zero()
        && !parameters.auto_converge
        && parameters.aim == Aim::Soonest
        && parameters.deadline.is_none();
    if !is_plain {
        return None;
    }
    let rate = scenario.writes.bytes_per_second as f64 * RECORD;
    let memory = (scenario.memory - scenario.zero) as f64 * RECORD;
    let set = (scenario.writes.working_set as f64 * RECORD).min(memory);
    // The rest at the end of each round once it is constant; the pause has no bandwidth limit.
    let left = set * (1.0 - speed / rate).max(0.0);
    // While the guest stops, and for a round trip, it continues to write.
    let tail = (scenario.pause.stop + 2 * scenario.connection.round_trip).as_secs_f64() * rate;
    let pause = |bytes: f64| fixed(scenario).as_secs_f64() + bytes / bytes_per_second(scenario);
    let limit = parameters.downtime_limit.as_secs_f64();
    let rounds_needed = if rate < 0.6 * speed { 8 } else { 20 };
    if pause(left + tail) * 1.3 < limit && rate < 0.9 * speed && parameters.max_rounds >= Some(rounds_needed) {
        return Some(true);
    }
    (pause(left * 0.9) * 0.9 > limit).then_some(false)
}

fn judge(number: u64) -> Result<(bool, Option<bool>), String> {
    let scenario = scenario(number);
    let plan = run(&scenario).map_err(|error| format!("{number}: {error}"))?;
    let expected = verdict(&scenario);
    let what = match expected {
        Some(must) if must != plan.is_completed() => Some("the other verdict than by the balance"),
        _ => offence(&scenario, &plan),
    };
    let told = || (plan.phase, plan.reason.as_deref(), plan.report.downtime.map(|downtime| downtime.total()));
    match what {
        Some(what) => Err(format!(
            "{number}: {what}: {:?} after {} rounds and {:?}, {scenario:?}",
            told(),
            plan.rounds.len(),
            plan.report.total
        )),
        None => Ok((plan.is_completed(), expected)),
    }
}

#[test]
fn each_plan_ends_within_its_limits_or_with_the_right_reason() {
    let judged: Vec<_> = thread::scope(|scope| {
        let parts: Vec<_> = (0..4)
            .map(|part| scope.spawn(move || (part..SCENARIOS).step_by(4).map(judge).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("no panic")).collect()
    });
    let offences: Vec<_> = judged.iter().filter_map(|judged| judged.as_ref().err()).collect();
    let listed: Vec<_> = offences.iter().take(10).collect();
    assert!(offences.is_empty(), "{} of {SCENARIOS}: {listed:#?}", offences.len());
    let count = |wanted: &dyn Fn(bool, Option<bool>) -> bool| {
        judged.iter().flatten().filter(|&&(completed, expected)| wanted(completed, expected)).count() as u64
    };
    let (completed, foreseen) = (count(&|completed, _| completed), count(&|_, expected| expected.is_some()));
    assert!(completed > SCENARIOS / 5 && completed < SCENARIOS * 4 / 5, "{completed} completed");
    assert!(foreseen > 50 && count(&|_, expected| expected == Some(true)) > 20, "{foreseen} foreseen");
}
