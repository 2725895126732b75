//! Changes that would let a migration complete which gives up: found by running the same engine with other parameters.

use std::num::NonZeroU64;
use std::time::Duration;

use super::{Plan, Scenario, run};
use crate::error::Result;

/// For each parameter, the value that would let the migration complete if only this one changes; `None` if none would.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Remedies {
    /// The lowest sufficient speed of the wire, in bytes a second, to within a twentieth; or a higher bandwidth limit, if the
    /// limit is what slows the migration.
    pub bytes_per_second: Option<u64>,
    /// The lowest sufficient downtime limit, to within a twentieth.
    pub downtime_limit: Option<Duration>,
    /// The highest throttle in percent that `auto-converge` would then reach.
    pub auto_converge: Option<u8>,
}

/// How often the value is doubled.
const DOUBLINGS: u32 = 12;
/// A migration that completes does so within this many rounds, unless a throttle has to rise first: no more are tried.
const TRIED_ROUNDS: u32 = 50;
/// How often the range between an insufficient and a sufficient value is halved: to a twentieth of it.
const HALVINGS: u32 = 4;

impl Scenario {
    /// Runs the plan with increased values of each parameter until it completes.
    ///
    /// # Errors
    /// As for [`Scenario::check`].
    pub fn remedies(&self) -> Result<Remedies> {
        let bytes_per_second = self.least(self.connection.bytes_per_second as f64, |scenario, speed| {
            scenario.connection.bytes_per_second = super::round_down(speed);
            let limit = &mut scenario.parameters.max_bandwidth;
            *limit = limit.and_then(|own| NonZeroU64::new(own.get().max(super::round_down(speed))));
        })?;
        let limit = self.parameters.downtime_limit.max(Duration::from_millis(1));
        let downtime_limit = self.least(limit.as_secs_f64(), |scenario, limit| {
            scenario.parameters.downtime_limit = Duration::from_secs_f64(limit);
        })?;
        let mut throttled = *self;
        throttled.parameters.auto_converge = true;
        let auto_converge = if self.parameters.auto_converge { None } else { completed(&throttled)? };
        Ok(Remedies {
            bytes_per_second: bytes_per_second.map(|speed| super::round_down(speed.ceil())),
            downtime_limit: downtime_limit.map(Duration::from_secs_f64),
            auto_converge: auto_converge.map(|plan| plan.report.slowdown.highest_throttle_percent),
        })
    }

    fn tried_rounds(&self) -> Option<u32> {
        let is_throttled = self.parameters.auto_converge || self.parameters.deadline.is_some();
        (!is_throttled).then_some(TRIED_ROUNDS)
    }

    /// The least value, from `now` on, with which the plan completes after `change`.
    fn least(&self, now: f64, change: impl Fn(&mut Self, f64)) -> Result<Option<f64>> {
        let enough = |value: f64| -> Result<bool> {
            let mut changed = *self;
            change(&mut changed, value);
            changed.parameters.max_rounds = changed.parameters.max_rounds.or(changed.tried_rounds());
            // A value out of its range is not sufficient.
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
