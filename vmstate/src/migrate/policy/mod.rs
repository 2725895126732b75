//! Decides what a source does next: a pure function from figures and parameters to a decision. `docs/migration-policy.md` has the
//! formulas with worked numbers.
//!
//! The downtime is the whole time for which the guest stands still: the stop, the last pages, the device state, their transfer,
//! the destination's load, and two round trips (ping READY and its answer; end of the stream and the final answer).

mod disturbance;
#[cfg(test)]
mod tests;
mod throttle;

use std::fmt;
use std::time::Duration;

use super::parameters::{DeadlineAction, Parameters};

/// The figures at the end of a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Bytes that the pending pages are expected to take on the wire.
    pub pending_bytes: f64,
    /// Bytes that the guest dirties a second.
    pub dirty_bytes_per_second: f64,
    /// Bytes that the devices take on the wire.
    pub device_bytes: f64,
    /// Speed of the wire in bytes a second, without a limit, while the guest runs.
    pub wire_bytes_per_second: f64,
    /// Speed in bytes a second while the guest is paused: no vCPU competes for the host's processors.
    pub paused_bytes_per_second: f64,
    /// True if an answer has measured the speed of the wire. Without one, the time for the pending bytes is unknown.
    pub is_wire_measured: bool,
    /// The shortest time from a ping to the destination to its answer.
    pub round_trip: Duration,
    /// The usual delay of an answer beyond that.
    pub lateness: Duration,
    /// How long the guest continues to write after the order to pause.
    pub stopping: Duration,
    /// Time to pause the guest, to save and load its devices, and to hand it over.
    pub switch_over_cost: Duration,
    /// The least such time of the last rehearsals: on a busy host, a single one does not predict the next.
    pub least_switch_over_cost: Duration,
    /// Time since the migration began.
    pub elapsed: Duration,
    /// Number of completed rounds.
    pub rounds: u32,
    /// The last two rounds, the newest first.
    pub last_rounds: [Option<RoundFigures>; 2],
    /// The least that was pending at the end of one of the eight rounds before the last.
    pub least_pending_bytes: f64,
    /// Number of rounds since the one that left a twentieth less than all before it.
    pub stalled_rounds: u32,
    /// Percentage of the time for which throttled vCPUs stand still; `None` if the machine cannot throttle.
    pub throttle: Option<u8>,
}

/// The figures of a round on which the throttle depends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundFigures {
    /// Bytes on the wire for the pages that the guest dirtied.
    pub dirtied_bytes: f64,
    /// Bytes that were sent.
    pub sent_bytes: f64,
    /// The throttle, in percent.
    pub throttle: u8,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundDecision {
    /// One more round.
    Iterate,
    /// Run one more round, with this higher throttle in percent.
    ThrottleMore(u8),
    /// Run one more round, with this lower throttle in percent.
    ThrottleLess(u8),
    /// Pause the guest now.
    SwitchOver,
    /// Switch to post-copy now: within the limits, the migration cannot complete otherwise.
    Postcopy(GiveUpReason),
    /// Give up: the migration cannot complete within its limits.
    GiveUp(GiveUpReason),
}

/// Why a migration gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUpReason {
    /// The limit of rounds is reached.
    Rounds {
        /// The pause, if the switch-over began now.
        expected_downtime: Duration,
    },
    /// The deadline has passed.
    Deadline {
        /// The pause, if the switch-over began now.
        expected_downtime: Duration,
    },
    /// The deadline has passed, and the highest throttle did not help.
    Throttle {
        /// The pause, if the switch-over began now.
        expected_downtime: Duration,
        /// The highest throttle.
        percent: u8,
    },
    /// Rounds make no progress, and each costs the guest.
    Stalled {
        /// The pause, if the switch-over began now.
        expected_downtime: Duration,
        /// Number of successive rounds without progress.
        rounds: u32,
    },
    /// Even without a pending page, the pause would exceed the limit.
    FixedCost {
        /// The pause without a pending page.
        least_downtime: Duration,
    },
}

/// The prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// The pause, if the switch-over began now.
    pub downtime: Duration,
    /// Time of the whole migration; `None` if the guest dirties pages about as fast as they are sent, or faster.
    pub total: Option<Duration>,
}

/// A peer that has just started answers slowly, so the first rounds do not prove that it always does.
const COLD_ROUNDS: u32 = 3;
/// The ratio of dirtied to sent bytes above which no end is in sight. A guest that writes all its pages over and over dirties
/// each only once a round, so the ratio comes close to 1 and never exceeds it.
const NO_PROGRESS_RATIO: f64 = 0.95;

/// The switch-over requires that the pause fits even if the pages take a tenth longer than expected. A forecast that is right on
/// average and just fits is exceeded every other time; and since it is evaluated after each round until it fits once, it is then
/// more often too low than not.
const MARGIN: f64 = 1.1;
/// It also requires that the pause fits with both answers twice as late as usual.
const LATENESS: u32 = 2;
/// The most rounds that are predicted. At the ratio [`NO_PROGRESS_RATIO`], a tenth of the pending bytes is left after 45 rounds, so a
/// migration that needs more has no end in sight either.
const PREDICTED_ROUNDS: u32 = 1000;

/// The decision at the end of a round, with the forecast on which it is based.
pub fn decide(figures: &Figures, parameters: &Parameters) -> (RoundDecision, Forecast) {
    let known = Known { figures, parameters };
    (known.decision(), known.forecast())
}

/// The forecast at any moment.
pub fn forecast(figures: &Figures, parameters: &Parameters) -> Forecast {
    Known { figures, parameters }.forecast()
}

/// The decision that the deadline requires, also within a round; `None` until it passes.
pub fn overdue(figures: &Figures, parameters: &Parameters) -> Option<RoundDecision> {
    let known = Known { figures, parameters };
    known.is_overdue().then(|| known.decision())
}

#[derive(Clone, Copy)]
struct Known<'a> {
    figures: &'a Figures,
    parameters: &'a Parameters,
}

impl Known<'_> {
    fn decision(self) -> RoundDecision {
        match self.next() {
            // A pause that is too long without a pending page is as long in post-copy.
            RoundDecision::GiveUp(reason)
                if self.parameters.postcopy_ram && !matches!(reason, GiveUpReason::FixedCost { .. }) =>
            {
                RoundDecision::Postcopy(reason)
            }
            decision => decision,
        }
    }

    fn next(self) -> RoundDecision {
        let Self { figures, parameters } = self;
        // Before the log was read at the end of a round, the guest's writes since the beginning are unknown.
        let fits = figures.rounds > 0 && self.fits(figures.pending_bytes);
        let rounds_are_over = parameters.max_rounds.is_some_and(|rounds| figures.rounds >= rounds);
        if fits && (self.is_overdue() || rounds_are_over || self.is_the_moment()) {
            return RoundDecision::SwitchOver;
        }
        if self.is_overdue() {
            return self.past_the_deadline();
        }
        let expected_downtime = self.downtime(figures.pending_bytes, 1.0, LATENESS);
        let over_the_limit_in_the_end =
            parameters.deadline.is_some() && parameters.deadline_action == DeadlineAction::SwitchOver;
        if let Some(reason) = self.is_too_long_without_pages().filter(|_| !over_the_limit_in_the_end) {
            return RoundDecision::GiveUp(reason);
        }
        if rounds_are_over {
            return RoundDecision::GiveUp(GiveUpReason::Rounds { expected_downtime });
        }
        if let Some(decision) = throttle::decide(figures, parameters, fits) {
            return decision;
        }
        if !fits && self.is_futile() && !over_the_limit_in_the_end {
            let rounds = figures.stalled_rounds;
            return RoundDecision::GiveUp(GiveUpReason::Stalled { expected_downtime, rounds });
        }
        RoundDecision::Iterate
    }

    fn is_overdue(self) -> bool {
        self.parameters.deadline.is_some_and(|deadline| self.figures.elapsed >= deadline)
    }

    /// The decision after the deadline, if the pause would exceed its limit.
    fn past_the_deadline(self) -> RoundDecision {
        let expected_downtime = self.downtime(self.figures.pending_bytes, 1.0, LATENESS);
        let highest = self.parameters.max_cpu_throttle;
        match (self.parameters.deadline_action, self.figures.throttle) {
            (DeadlineAction::SwitchOver, _) => RoundDecision::SwitchOver,
            (DeadlineAction::Cancel, _) | (DeadlineAction::Throttle, None) => {
                RoundDecision::GiveUp(GiveUpReason::Deadline { expected_downtime })
            }
            (DeadlineAction::Throttle, Some(now)) if now < highest => RoundDecision::ThrottleMore(highest),
            (DeadlineAction::Throttle, Some(now)) if now > highest => RoundDecision::ThrottleLess(highest),
            (DeadlineAction::Throttle, Some(percent)) => {
                let reason = match throttle::share(self.figures) {
                    Some(shares) if shares.least >= NO_PROGRESS_RATIO => {
                        Some(GiveUpReason::Throttle { expected_downtime, percent })
                    }
                    Some(_) if self.has_settled() => {
                        Some(GiveUpReason::Stalled { expected_downtime, rounds: self.figures.stalled_rounds })
                    }
                    _ => self.is_too_long_without_pages(),
                };
                reason.map_or(RoundDecision::Iterate, RoundDecision::GiveUp)
            }
        }
    }

    /// True if many rounds did not lower the pending bytes, and nor did the last one.
    fn has_settled(self) -> bool {
        let [Some(last), Some(before)] = self.figures.last_rounds else { return false };
        self.figures.stalled_rounds >= disturbance::STALLED_ROUNDS
            && last.dirtied_bytes >= before.dirtied_bytes * NO_PROGRESS_RATIO
    }

    /// The reason, if even without a pending page the pause would certainly exceed its limit.
    fn is_too_long_without_pages(self) -> Option<GiveUpReason> {
        let least_downtime = self.fixed(self.figures.least_switch_over_cost, LATENESS);
        let proved = least_downtime > self.parameters.downtime_limit && self.figures.rounds >= COLD_ROUNDS;
        proved.then_some(GiveUpReason::FixedCost { least_downtime })
    }

    fn forecast(self) -> Forecast {
        Forecast { downtime: self.expected(self.figures.pending_bytes), total: self.total() }
    }

    /// The pause without a pending page, with this cost of the switch-over and answers this many times as late as usual.
    fn fixed(self, switch_over_cost: Duration, lateness: u32) -> Duration {
        let devices = time(self.figures.device_bytes, self.paused_bytes_per_second());
        let answer = self.figures.round_trip.saturating_add(self.figures.lateness.saturating_mul(lateness));
        switch_over_cost.saturating_add(devices).saturating_add(answer.saturating_mul(2))
    }

    /// The pause with `pending` bytes left when it is ordered.
    fn expected(self, pending: f64) -> Duration {
        self.downtime(pending, 1.0, 1)
    }

    /// As for [`expected`](Self::expected), if the bytes take `margin` times as long and answers are `lateness` times as late.
    /// The guest continues to write until it stands still.
    fn downtime(self, pending: f64, margin: f64, lateness: u32) -> Duration {
        let figures = self.figures;
        let written = figures.dirty_bytes_per_second * figures.stopping.as_secs_f64();
        self.fixed(figures.switch_over_cost, lateness)
            .saturating_add(time((pending + written) * margin, self.paused_bytes_per_second()))
    }

    fn fits(self, pending: f64) -> bool {
        let known = self.figures.is_wire_measured || self.parameters.avail_switchover_bandwidth.is_some();
        (known || pending <= 0.0) && self.downtime(pending, MARGIN, LATENESS) <= self.parameters.downtime_limit
    }

    /// The speed of the wire in the pause.
    fn paused_bytes_per_second(self) -> f64 {
        let known = self.parameters.avail_switchover_bandwidth;
        known.map_or(self.figures.paused_bytes_per_second, |known| known.get() as f64)
    }

    /// The speed of the wire in a round.
    fn round_bytes_per_second(self) -> f64 {
        let limit = self.parameters.max_bandwidth.map_or(f64::INFINITY, |limit| limit.get() as f64);
        limit.min(self.figures.wire_bytes_per_second)
    }

    /// The usual time from a ping to its answer.
    fn answer(self) -> Duration {
        self.figures.round_trip.saturating_add(self.figures.lateness)
    }

    /// The duration of a round that begins with `pending` bytes: until they are sent and their arrival is acknowledged.
    fn round(self, pending: f64) -> Duration {
        time(pending, self.round_bytes_per_second()).saturating_add(self.answer())
    }

    /// The time of all further rounds: each takes its time, and leaves the bytes that the guest dirties meanwhile, until those
    /// fit.
    fn total(self) -> Option<Duration> {
        let figures = self.figures;
        let (mut pending, mut elapsed) = (figures.pending_bytes, figures.elapsed);
        let ratio = figures.dirty_bytes_per_second / self.round_bytes_per_second();
        // The pending bytes of the rounds converge to this number, which the guest dirties in the round trip of a round. NaN is 0
        // / 0: nothing is sent, and nothing is dirtied.
        let least = figures.dirty_bytes_per_second * self.answer().as_secs_f64() / (1.0 - ratio);
        let has_end = ratio < NO_PROGRESS_RATIO && self.fits(least);
        for _ in 0..PREDICTED_ROUNDS {
            if self.fits(pending) && !self.is_worth_a_round(pending) {
                return Some(elapsed.saturating_add(self.expected(pending)));
            }
            if !has_end {
                return None;
            }
            let round = self.round(pending);
            elapsed = elapsed.saturating_add(round);
            pending = figures.dirty_bytes_per_second * round.as_secs_f64();
        }
        None
    }
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
            Self::Deadline { expected_downtime } => {
                write!(f, "the deadline has passed: the guest would be paused for {expected_downtime:.0?}")
            }
            Self::Throttle { expected_downtime, percent } => write!(
                f,
                "the deadline has passed, and the guest dirties pages as fast as they go even when it is throttled by \
                 {percent} %: it would be paused for {expected_downtime:.0?}"
            ),
            Self::Stalled { expected_downtime, rounds } => write!(
                f,
                "{rounds} rounds did not lower what remains: the guest would be paused for {expected_downtime:.0?}"
            ),
            Self::FixedCost { least_downtime } => {
                write!(f, "even with no page left the guest would be paused for {least_downtime:.1?}")
            }
        }?;
        f.write_str("; a higher downtime limit would help")
    }
}
