//! The throttle of the vCPUs: no higher than the last two rounds require, and lowered as soon as they allow it.
//!
//! A guest whose vCPUs stand still for part of the time dirties proportionally less. So if a throttle `t` results in a share `r`
//! of dirtied to sent bytes, the threshold requires a throttle of `1 - (1 - t) * threshold / r`.

use super::{Figures, RoundDecision};
use crate::migrate::parameters::Parameters;

/// The throttle is lowered to where the share becomes this part of the threshold: at the threshold itself, the next fluctuation
/// would raise it again.
const RELAXED: f64 = 0.8;

/// The shares of dirtied to sent bytes in the last two rounds, under the present throttle.
pub(super) struct Shares {
    pub(super) least: f64,
    pub(super) most: f64,
}

pub(super) fn share(figures: &Figures) -> Option<Shares> {
    let [Some(last), Some(before)] = figures.last_rounds else { return None };
    let throttle = figures.throttle?;
    if last.throttle != throttle || before.throttle != throttle {
        return None;
    }
    // If nothing is sent and nothing dirtied, there is no load.
    let share = |dirtied: f64, sent: f64| if dirtied > 0.0 { dirtied / sent } else { 0.0 };
    let (last, before) = (share(last.dirtied_bytes, last.sent_bytes), share(before.dirtied_bytes, before.sent_bytes));
    Some(Shares { least: last.min(before), most: last.max(before) })
}

/// The change of the throttle, if any; `fits` says that the pause would be within its limit, so no higher throttle is needed.
pub(super) fn decide(figures: &Figures, parameters: &Parameters, fits: bool) -> Option<RoundDecision> {
    let now = figures.throttle?;
    let highest = if parameters.auto_converge { parameters.max_cpu_throttle } else { 0 };
    if now > highest {
        return Some(RoundDecision::ThrottleLess(highest));
    }
    let shares = share(figures)?;
    let threshold = f64::from(parameters.throttle_trigger_threshold) / 100.0;
    if shares.least > threshold && now < highest && !fits {
        let step = if now == 0 { parameters.cpu_throttle_initial } else { parameters.cpu_throttle_increment };
        let needed = needed(now, shares.least, threshold).max(now + 1);
        return Some(RoundDecision::ThrottleMore(needed.min(now.saturating_add(step)).min(highest)));
    }
    let enough = needed(now, shares.most, threshold * RELAXED);
    (enough < now).then_some(RoundDecision::ThrottleLess(enough))
}

/// The throttle in percent that turns the share `share` under the throttle `now` into `wanted`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates here, which is what is wanted"
)]
fn needed(now: u8, share: f64, wanted: f64) -> u8 {
    let running = 1.0 - f64::from(now) / 100.0;
    // The difference of two close numbers has an error of some 1e-16; without this correction, 20 % could become 21.
    ((1.0 - running * wanted / share) * 100.0 - 1e-9).ceil().max(0.0) as u8
}
