//! Wires with random delays of answers: the measured speed, and the predicted pause.

use std::num::NonZeroU64;
use std::time::Duration;

use vmstate::migrate::plan::Scenario;

use super::{MS, planned, written};

/// Speed in bytes a second.
const SPEED: u64 = 12_500_000;
const LIMIT: Duration = Duration::from_millis(300);

/// A guest that takes a second to send, on a wire that is limited to a part of its speed or not.
struct Case {
    jitter: Duration,
    round_trip: Duration,
    part: u64,
    /// The share of the rounds' throughput that the guest writes.
    share: f64,
    seed: u64,
}

impl Case {
    fn scenario(&self) -> Scenario {
        let rounds = SPEED / self.part;
        let mut scenario = written(SPEED, SPEED, SPEED / 2, (rounds as f64 * self.share) as u64);
        (scenario.connection.jitter, scenario.connection.round_trip) = (self.jitter, self.round_trip);
        scenario.parameters.downtime_limit = LIMIT;
        scenario.parameters.max_bandwidth = NonZeroU64::new(rounds).filter(|_| self.part > 1);
        scenario.seed = self.seed;
        scenario
    }

    /// The fault of its plan, if there is one.
    fn offence(&self) -> Option<String> {
        let scenario = self.scenario();
        let plan = planned(&scenario);
        // A limit that keeps each piece shorter than the jitter hides everything but that the wire is as fast as the limit.
        let hidden = self.part > 1 && !self.jitter.is_zero();
        let least = if hidden { 0.9 / self.part as f64 } else { 0.8 };
        let measured = plan.rounds.iter().map(|round| round.bytes_per_second as f64 / SPEED as f64);
        for (round, share) in measured.enumerate() {
            if !(least..1.2).contains(&share) {
                return Some(format!("{share:.2} of the speed was measured at the end of round {round}"));
            }
        }
        // Both answers of the pause and one of the last round are as late as possible, and the guest writes until then.
        let answer = self.round_trip + self.jitter;
        let known = if hidden { SPEED / self.part } else { SPEED } as f64;
        let left = (answer + MS * 10).as_secs_f64() * scenario.writes.bytes_per_second as f64 / known;
        let fixed = scenario.pause.stop + scenario.pause.load + 2 * answer;
        let worst = fixed + Duration::from_secs_f64(1.1 * left + scenario.pause.device_bytes as f64 / known);
        match plan.report.downtime {
            None if worst > LIMIT => plan.reason.filter(|reason| !reason.contains("gave up")),
            None => Some(format!("{:?} where it is {worst:?} at worst", plan.reason)),
            Some(downtime) if downtime.total() > LIMIT => Some(format!("it was paused for {downtime:?}")),
            Some(downtime) => {
                let (told, was) = (plan.rounds.last()?.expected_downtime, downtime.total());
                let most = 2 * self.jitter + told / 10 + MS;
                let slow = told.saturating_sub(was) > most && !hidden;
                (was > told + most || slow).then(|| format!("{told:?} was foretold, and it was {was:?}"))
            }
        }
    }
}

#[test]
fn jitter_hides_neither_the_speed_nor_the_pause() {
    let mut offences = Vec::new();
    for jitter in [0, 1, 5, 10, 30, 100] {
        for round_trip in [MS / 5, 20 * MS] {
            for part in [1, 2, 10] {
                for share in [0.0, 0.3, 0.7] {
                    for seed in 0..2 {
                        let case = Case { jitter: jitter * MS, round_trip, part, share, seed };
                        let what =
                            format!("jitter {jitter} ms, {round_trip:?}, 1/{part}, {share} written, seed {seed}");
                        offences.extend(case.offence().map(|offence| format!("{what}: {offence}")));
                    }
                }
            }
        }
    }
    assert!(offences.is_empty(), "{}: {offences:#?}", offences.len());
}
