//! What a migration that gives up would need: the same engine, asked again with other figures.

use std::num::NonZeroU64;
use std::time::Duration;

use super::{Plan, Scenario, run};
use crate::error::Result;

/// What would let a migration complete, each on its own; `None`: that alone would not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Remedies {
    /// A wire of so many bytes a second, or a limit of the bandwidth that high where that is what slows it down: to a twentieth, as little as is enough.
    pub bytes_per_second: Option<u64>,
    /// A downtime limit, likewise.
    pub downtime_limit: Option<Duration>,
    /// The highest throttle that `auto-converge` then comes to, in percent.
    pub auto_converge: Option<u8>,
}

/// Times by which more is tried.
const DOUBLINGS: u32 = 12;
/// What completes does so within so many rounds, unless a throttle has to go up first: no more are tried.
const TRIED_ROUNDS: u32 = 50;
/// And halvings of what lies between too little and enough: to a twentieth of it.
const HALVINGS: u32 = 4;

impl Scenario {
    /// Plays it with more of each until it completes.
    ///
    /// # Errors
    /// As [`Scenario::check`].
    pub fn remedies(&self) -> Result<Remedies> {
        let bytes_per_second = self.least(self.connection.bytes_per_second as f64, |scenario, speed| {
            scenario.connection.bytes_per_second = super::whole(speed);
            let limit = &mut scenario.parameters.max_bandwidth;
            *limit = limit.and_then(|own| NonZeroU64::new(own.get().max(super::whole(speed))));
        })?;
        let limit = self.parameters.downtime_limit.max(Duration::from_millis(1));
        let downtime_limit = self.least(limit.as_secs_f64(), |scenario, limit| {
            scenario.parameters.downtime_limit = Duration::from_secs_f64(limit);
        })?;
        let mut throttled = *self;
        throttled.parameters.auto_converge = true;
        let auto_converge = if self.parameters.auto_converge { None } else { completed(&throttled)? };
        Ok(Remedies {
            bytes_per_second: bytes_per_second.map(|speed| super::whole(speed.ceil())),
            downtime_limit: downtime_limit.map(Duration::from_secs_f64),
            auto_converge: auto_converge.map(|plan| plan.report.slowdown.highest_throttle_percent),
        })
    }

    fn tried_rounds(&self) -> Option<u32> {
        let is_throttled = self.parameters.auto_converge || self.parameters.deadline.is_some();
        (!is_throttled).then_some(TRIED_ROUNDS)
    }

    /// The least of what `change` sets, from `now` on, with which it completes.
    fn least(&self, now: f64, change: impl Fn(&mut Self, f64)) -> Result<Option<f64>> {
        let enough = |value: f64| -> Result<bool> {
            let mut changed = *self;
            change(&mut changed, value);
            changed.parameters.max_rounds = changed.parameters.max_rounds.or(changed.tried_rounds());
            // What is out of its range is not enough.
            Ok(changed.check().is_ok() && completed(&changed)?.is_some())
        };
        let (mut too_little, mut most) = (now, now);
        for _ in 0..DOUBLINGS {
            most *= 2.0;
            if enough(most)? {
                for _ in 0..HALVINGS {
                    let middle = (too_little + most) / 2.0;
                    *(if enough(middle)? { &mut most } else { &mut too_little }) = middle;
                }
                return Ok(Some(most));
            }
            too_little = most;
        }
        Ok(None)
    }
}

fn completed(scenario: &Scenario) -> Result<Option<Plan>> {
    Ok(Some(run(scenario)?).filter(Plan::is_completed))
}
