//! How much the vCPUs are throttled: no more than the last two rounds call for, and less as soon as they allow it.
//!
//! A guest whose vCPUs stand still for a part of the time dirties less in proportion. So a throttle `t` that leaves a
//! share `r` of what is sent dirtied needs to be `1 - (1 - t) * threshold / r` for the threshold.

use super::{Figures, RoundDecision};
use crate::migrate::parameters::Parameters;

/// The throttle is taken back to where the share becomes this part of the threshold: at the threshold itself the next
/// fluctuation would bring it back.
const RELAXED: f64 = 0.8;

/// What the guest dirtied in the last two rounds, in shares of what was sent, under the throttle that is in effect now.
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
    // Nothing sent and nothing dirtied is no load.
    let share = |dirtied: f64, sent: f64| if dirtied > 0.0 { dirtied / sent } else { 0.0 };
    let (last, before) = (share(last.dirtied_bytes, last.sent_bytes), share(before.dirtied_bytes, before.sent_bytes));
    Some(Shares { least: last.min(before), most: last.max(before) })
}

/// What changes; `fits`: the pause would be within its limit, so no higher throttle is needed.
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

/// The throttle in percent that makes the share of `share` under the throttle `now` one of `wanted`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates here, which is what is wanted"
)]
fn needed(now: u8, share: f64, wanted: f64) -> u8 {
    let running = 1.0 - f64::from(now) / 100.0;
    // The difference of two numbers close to each other has an error of some 1e-16; without this 20 % could become 21.
    ((1.0 - running * wanted / share) * 100.0 - 1e-9).ceil().max(0.0) as u8
}
