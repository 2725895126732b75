//! When to switch over: a pure function from figures to a verdict.
//!
//! Downtime is all that the guest feels: the stop, last pages, device state, its way through the wire, the
//! destination's load, and two round trips (ready? yes; take over! running).

use std::fmt;
use std::time::Duration;

use crate::ram::NORMAL_RECORD;

/// What is known at the end of a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Bytes that the pending pages are expected to take on the wire.
    pub pending_bytes: f64,
    /// Bytes that the guest dirties a second.
    pub dirty_bytes_per_second: f64,
    /// Bytes that the devices take on the wire.
    pub device_bytes: f64,
    /// Bytes a second through the wire at full speed, while the guest runs.
    pub wire_bytes_per_second: f64,
    /// Bytes a second while it stands: no vCPU competes for the host's processors.
    pub paused_bytes_per_second: f64,
    /// Bytes a second that rounds may send at most.
    pub bandwidth_limit: Option<u64>,
    /// From a question to the destination to its answer.
    pub round_trip: Duration,
    /// How long the guest still writes after the order to pause.
    pub stopping: Duration,
    /// To pause the guest, to save and load its devices, and to let go of it.
    pub switch_over_cost: Duration,
    /// The least that this was in the last rehearsals: on a busy host a single one says nothing about the next.
    pub least_switch_over_cost: Duration,
    /// Since the migration began.
    pub elapsed: Duration,
    /// Rounds done.
    pub rounds: u32,
}

/// What the owner of the guest allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvergenceLimits {
    /// The longest pause that the guest may feel.
    pub downtime: Duration,
    /// Gives up after so many rounds.
    pub rounds: Option<u32>,
    /// Gives up after so much time in all.
    pub total: Option<Duration>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundDecision {
    /// One more round.
    Iterate,
    /// Pause the guest now.
    SwitchOver,
    /// It cannot be done within the limits.
    GiveUp(GiveUpReason),
}

/// Why a migration gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUpReason {
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
    /// Time of the whole migration; `None` if the guest dirties pages about as fast as they go, or faster.
    pub total: Option<Duration>,
}

/// A peer that has just started answers slowly, so the first rounds do not yet prove that it always does.
const COLD_ROUNDS: u32 = 3;
/// Dirtied to sent, above which no end is in sight. A guest that writes all its pages over and over dirties each only
/// once a round, so it comes close to 1 and never beyond.
const HOPELESS: f64 = 0.95;

/// Switches over only if the pause would still fit were the pages to take a tenth longer than expected. A forecast that
/// is right on average and just fits is exceeded every other time; and one that is asked after each round, until it
/// fits for once, is then more often too low than not.
const MARGIN: f64 = 1.1;
/// Rounds that are foretold at most. A tenth of the pending bytes is left after 45 rounds at the ratio [`HOPELESS`], so
/// whoever needs more has no end in sight either.
const FORETOLD: u32 = 1000;

/// The bandwidth limit that the rounds keep: one page a second at least, since with less no page would ever go.
pub fn workable(bandwidth_limit: Option<u64>) -> Option<u64> {
    bandwidth_limit.map(|limit| limit.max(NORMAL_RECORD))
}

/// The verdict, and what it is based on.
pub fn decide(figures: &Figures, limits: &ConvergenceLimits) -> (RoundDecision, Forecast) {
    let least = fixed(figures, figures.least_switch_over_cost);
    let downtime = downtime(figures, figures.pending_bytes, 1.0);
    let forecast = Forecast { downtime, total: total(figures, limits) };
    let verdict = if fits(figures, figures.pending_bytes, limits) {
        RoundDecision::SwitchOver
    } else if least > limits.downtime && figures.rounds >= COLD_ROUNDS {
        RoundDecision::GiveUp(GiveUpReason::FixedCost { least_downtime: least })
    } else if limits.rounds.is_some_and(|rounds| figures.rounds >= rounds) {
        RoundDecision::GiveUp(GiveUpReason::Rounds { expected_downtime: downtime })
    } else if limits.total.is_some_and(|total| figures.elapsed >= total) {
        RoundDecision::GiveUp(GiveUpReason::Total { expected_downtime: downtime })
    } else {
        RoundDecision::Iterate
    };
    (verdict, forecast)
}

/// The pause with no page left, if the switch-over costs that much.
fn fixed(figures: &Figures, switch_over_cost: Duration) -> Duration {
    let devices = time(figures.device_bytes, figures.paused_bytes_per_second);
    switch_over_cost.saturating_add(devices).saturating_add(figures.round_trip.saturating_mul(2))
}

/// The pause with `pending` bytes left when it is ordered, if these take `margin` times as long as expected. The guest
/// writes on until it stands still.
fn downtime(figures: &Figures, pending: f64, margin: f64) -> Duration {
    let written = figures.dirty_bytes_per_second * figures.stopping.as_secs_f64();
    fixed(figures, figures.switch_over_cost)
        .saturating_add(time((pending + written) * margin, figures.paused_bytes_per_second))
}

fn fits(figures: &Figures, pending: f64, limits: &ConvergenceLimits) -> bool {
    downtime(figures, pending, MARGIN) <= limits.downtime
}

/// Each round takes the time to send what the one before left and to hear that it arrived, and leaves what the guest
/// dirties meanwhile, until that fits into the downtime.
fn total(figures: &Figures, limits: &ConvergenceLimits) -> Option<Duration> {
    let limit = workable(figures.bandwidth_limit).map_or(f64::INFINITY, |limit| limit as f64);
    let speed = limit.min(figures.wire_bytes_per_second);
    let (mut pending, mut elapsed) = (figures.pending_bytes, figures.elapsed);
    for _ in 0..FORETOLD {
        if fits(figures, pending, limits) {
            return Some(elapsed.saturating_add(downtime(figures, pending, 1.0)));
        }
        // NaN is 0 / 0: nothing goes, and nothing is dirtied.
        let ratio = figures.dirty_bytes_per_second / speed;
        if ratio.is_nan() || ratio >= HOPELESS {
            return None;
        }
        let round = time(pending, speed).saturating_add(figures.round_trip);
        elapsed = elapsed.saturating_add(round);
        pending = figures.dirty_bytes_per_second * round.as_secs_f64();
    }
    None
}

fn time(bytes: f64, bytes_per_second: f64) -> Duration {
    if bytes <= 0.0 {
        return Duration::ZERO;
    }
    Duration::try_from_secs_f64(bytes / bytes_per_second).unwrap_or(Duration::MAX)
}

impl fmt::Display for GiveUpReason {
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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// 100 MB pending, 1 GB/s wire, 100 MB/s dirtied, 2 ms round trip, 1 MB of devices, 5 ms to save and load them; and a limit of 300 ms.
    fn figures() -> (Figures, ConvergenceLimits) {
        let figures = Figures {
            pending_bytes: 1e8,
            dirty_bytes_per_second: 1e8,
            device_bytes: 1e6,
            wire_bytes_per_second: 1e9,
            paused_bytes_per_second: 1e9,
            bandwidth_limit: None,
            round_trip: 2 * MS,
            stopping: Duration::ZERO,
            switch_over_cost: 5 * MS,
            least_switch_over_cost: 5 * MS,
            elapsed: 1000 * MS,
            rounds: 3,
        };
        (figures, ConvergenceLimits { downtime: 300 * MS, rounds: None, total: None })
    }

    #[test]
    fn all_that_the_guest_feels_counts() {
        let (mut figures, mut limits) = figures();
        let (verdict, forecast) = decide(&figures, &limits);
        assert_eq!(forecast.downtime, (100 + 6 + 4) * MS);
        assert_eq!(forecast.total, Some(1110 * MS));
        assert_eq!(verdict, RoundDecision::SwitchOver);
        // 100 ms for the pages may become 110.
        limits.downtime = 120 * MS;
        assert_eq!(decide(&figures, &limits).0, RoundDecision::SwitchOver);
        for change in [
            |figures: &mut Figures| figures.pending_bytes += 1e6,
            |figures: &mut Figures| figures.round_trip += MS,
            |figures: &mut Figures| figures.switch_over_cost += MS,
            |figures: &mut Figures| figures.device_bytes += 1e6,
            |figures: &mut Figures| figures.paused_bytes_per_second *= 0.99,
            // A tenth of a millisecond of the wire for each millisecond in which the guest writes on.
            |figures: &mut Figures| figures.stopping = MS,
        ] {
            let mut more = figures;
            change(&mut more);
            assert_eq!(decide(&more, &limits).0, RoundDecision::Iterate, "{more:?}");
        }
        // A limit on the rounds slows no switch-over, and vCPUs that compete with the rounds stand by then.
        figures.wire_bytes_per_second = 1.0;
        figures.bandwidth_limit = Some(1);
        assert_eq!(decide(&figures, &limits).0, RoundDecision::SwitchOver);
    }

    #[test]
    fn predicts_the_rounds_to_come() {
        let (mut figures, mut limits) = figures();
        limits.downtime = 12 * MS;
        // 1.8 ms of 1 GB/s fit. 100 MB take 100 ms and a round trip, and leave 10.2 MB; these take 12.2 ms and leave
        // 1.22 MB, which the pause takes along.
        let total = decide(&figures, &limits).1.total.unwrap();
        let expected = Duration::from_secs_f64(1.0 + 0.102 + 0.0122 + 0.00122 + 0.010);
        assert!(total.abs_diff(expected) < MS / 1000, "{total:?}");
        figures.bandwidth_limit = Some(200_000_000);
        // Half is left by each round, and 0.2 MB for its round trip.
        let (mut pending, mut expected) = (100.0, 1.0);
        while pending > 2.0 / 1.1 {
            expected += pending / 200.0 + 0.002;
            pending = pending / 2.0 + 0.2;
        }
        expected += 0.010 + pending / 1000.0;
        let total = decide(&figures, &limits).1.total.unwrap();
        assert!(total.abs_diff(Duration::from_secs_f64(expected)) < MS / 1000, "{total:?}");
        figures.bandwidth_limit = Some(100_000_000);
        assert_eq!(decide(&figures, &limits).1.total, None);
    }

    #[test]
    fn a_limit_that_lets_no_page_through_is_raised_to_one_that_does() {
        assert_eq!(workable(None), None);
        assert_eq!(workable(Some(59)), Some(4104));
        assert_eq!(workable(Some(1 << 20)), Some(1 << 20));
        let (mut figures, limits) = figures();
        figures.pending_bytes = 3e8 + 4104.0;
        figures.dirty_bytes_per_second = 0.0;
        figures.bandwidth_limit = Some(59);
        let total = decide(&figures, &limits).1.total.unwrap();
        assert!(total.abs_diff(Duration::from_secs_f64(1.0 + (3e8 + 4104.0) / 4104.0)) < 20 * MS, "{total:?}");
    }

    #[test]
    fn gives_up_with_a_reason() {
        let (figures, mut limits) = figures();
        limits.downtime = 50 * MS;
        let verdict = |limits: &ConvergenceLimits| decide(&figures, limits).0;
        assert_eq!(verdict(&limits), RoundDecision::Iterate);
        limits.rounds = Some(4);
        assert_eq!(verdict(&limits), RoundDecision::Iterate);
        limits.rounds = Some(3);
        let expected_downtime = 110 * MS;
        assert_eq!(verdict(&limits), RoundDecision::GiveUp(GiveUpReason::Rounds { expected_downtime }));
        limits = ConvergenceLimits { rounds: None, total: Some(1000 * MS), ..limits };
        assert_eq!(verdict(&limits), RoundDecision::GiveUp(GiveUpReason::Total { expected_downtime }));
        limits = ConvergenceLimits { downtime: 9 * MS, rounds: None, total: None };
        assert_eq!(verdict(&limits), RoundDecision::GiveUp(GiveUpReason::FixedCost { least_downtime: 10 * MS }));
        // A switch-over that was cheaper a moment ago may be so again.
        let hopeful = Figures { least_switch_over_cost: 4 * MS, switch_over_cost: 500 * MS, ..figures };
        assert_eq!(decide(&hopeful, &limits).0, RoundDecision::Iterate);
    }

    #[test]
    fn no_figure_makes_it_panic() {
        let numbers = [0.0, 1.0, 1e18, f64::INFINITY, f64::NAN];
        for dirty_bytes_per_second in numbers {
            for wire_bytes_per_second in numbers {
                for pending_bytes in [0.0, 1.0, 1e30, f64::INFINITY, f64::NAN] {
                    for bandwidth_limit in [None, Some(0), Some(u64::MAX)] {
                        let (figures, limits) = figures();
                        let figures = Figures {
                            pending_bytes,
                            dirty_bytes_per_second,
                            wire_bytes_per_second,
                            paused_bytes_per_second: wire_bytes_per_second,
                            device_bytes: pending_bytes,
                            bandwidth_limit,
                            round_trip: Duration::MAX,
                            stopping: Duration::MAX,
                            ..figures
                        };
                        decide(&figures, &limits);
                        decide(&figures, &ConvergenceLimits { downtime: Duration::MAX, ..limits });
                    }
                }
            }
        }
    }
}
