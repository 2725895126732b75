//! When to switch over: a pure function from figures to a verdict.
//!
//! Downtime is all that the guest feels: last pages, device state, its way through the wire, the destination's load,
//! and two round trips (ready? yes; take over! running).

use std::fmt;
use std::time::Duration;

/// What is known at the end of a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Bytes still to send if the guest stopped now.
    pub pending_bytes: u64,
    /// Bytes that the guest dirties a second, measured over the last round.
    pub dirty_bytes_per_second: f64,
    /// Bytes a second through the wire at full speed.
    pub wire_bytes_per_second: f64,
    /// Bytes a second that rounds may send at most.
    pub bandwidth_limit: Option<u64>,
    /// From a question to the destination to its answer.
    pub round_trip: Duration,
    /// To pause the guest, and to save and load its devices.
    pub switch_over_cost: Duration,
    /// Since the migration began.
    pub elapsed: Duration,
    /// Rounds done.
    pub rounds: u32,
}

/// What the owner of the guest allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest pause that the guest may feel.
    pub downtime: Duration,
    /// Gives up after so many rounds.
    pub rounds: Option<u32>,
    /// Gives up after so much time in all.
    pub total: Option<Duration>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One more round.
    Iterate,
    /// Pause the guest now.
    SwitchOver,
    /// It cannot be done within the limits.
    GiveUp(Reason),
}

/// Why a migration gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The limit of rounds.
    Rounds {
        /// Pause that the guest would feel if it were switched over now.
        expected_downtime: Duration,
    },
    /// The limit of time.
    Total {
        /// Pause that the guest would feel if it were switched over now.
        expected_downtime: Duration,
    },
    /// Even with no page left the pause would be longer than the limit.
    FixedCost {
        /// That pause.
        least_downtime: Duration,
    },
}

/// What is to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Pause that the guest would feel if it were switched over now.
    pub downtime: Duration,
    /// Time of the whole migration; `None` if the guest dirties pages faster than they go.
    pub total: Option<Duration>,
}

/// The verdict, and what it is based on.
pub fn decide(figures: &Figures, limits: &Limits) -> (Verdict, Forecast) {
    let fixed = figures.switch_over_cost.saturating_add(figures.round_trip.saturating_mul(2));
    let downtime = fixed.saturating_add(time(figures.pending_bytes as f64, figures.wire_bytes_per_second));
    let forecast = Forecast { downtime, total: total(figures, limits, fixed) };
    let verdict = if downtime <= limits.downtime {
        Verdict::SwitchOver
    } else if fixed > limits.downtime {
        Verdict::GiveUp(Reason::FixedCost { least_downtime: fixed })
    } else if limits.rounds.is_some_and(|rounds| figures.rounds >= rounds) {
        Verdict::GiveUp(Reason::Rounds { expected_downtime: downtime })
    } else if limits.total.is_some_and(|total| figures.elapsed >= total) {
        Verdict::GiveUp(Reason::Total { expected_downtime: downtime })
    } else {
        Verdict::Iterate
    };
    (verdict, forecast)
}

/// Each round takes the time to send what the one before left, and leaves what the guest dirties meanwhile: a geometric
/// series that ends when the rest fits into the downtime.
fn total(figures: &Figures, limits: &Limits, fixed: Duration) -> Option<Duration> {
    let speed = figures.bandwidth_limit.map_or(f64::INFINITY, |limit| limit as f64).min(figures.wire_bytes_per_second);
    let fits = limits.downtime.saturating_sub(fixed).as_secs_f64() * figures.wire_bytes_per_second;
    let pending = figures.pending_bytes as f64;
    if pending <= fits {
        return Some(
            figures.elapsed.saturating_add(fixed).saturating_add(time(pending, figures.wire_bytes_per_second)),
        );
    }
    let ratio = figures.dirty_bytes_per_second / speed;
    // NaN is 0 / 0: nothing goes, and nothing is dirtied.
    if ratio.is_nan() || ratio >= 1.0 || fits <= 0.0 {
        return None;
    }
    let rounds = if ratio <= 0.0 { 1.0 } else { ((fits / pending).ln() / ratio.ln()).ceil().max(1.0) };
    let sent = pending * (1.0 - ratio.powf(rounds)) / (1.0 - ratio);
    Some(figures.elapsed.saturating_add(time(sent, speed)).saturating_add(limits.downtime))
}

fn time(bytes: f64, bytes_per_second: f64) -> Duration {
    if bytes <= 0.0 {
        return Duration::ZERO;
    }
    Duration::try_from_secs_f64(bytes / bytes_per_second).unwrap_or(Duration::MAX)
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rounds { expected_downtime } => {
                write!(f, "the limit of rounds is reached: the guest would be paused for {expected_downtime:.0?}")
            }
            Self::Total { expected_downtime } => {
                write!(f, "the limit of time is reached: the guest would be paused for {expected_downtime:.0?}")
            }
            Self::FixedCost { least_downtime } => {
                write!(f, "even with no page left the guest would be paused for {least_downtime:.1?}")
            }
        }?;
        f.write_str("; a higher downtime limit would help")
    }
}
