//! What a source does next: a pure function from figures and parameters to a decision. `docs/migration-policy.md` has the
//! formulas with worked numbers.
//!
//! Downtime is all that the guest feels: the stop, last pages, device state, its way through the wire, the
//! destination's load, and two round trips (ready? yes; take over! running).

mod disturbance;
#[cfg(test)]
mod tests;
mod throttle;

use std::fmt;
use std::time::Duration;

use super::parameters::{DeadlineAction, Parameters};

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
    /// An answer has told how fast the wire is. Without one nobody knows how long what is pending will take.
    pub is_wire_measured: bool,
    /// From a question to the destination to its answer, at least.
    pub round_trip: Duration,
    /// By how much an answer usually comes later than that.
    pub lateness: Duration,
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
    /// What the last two of them were like, the newest first.
    pub last_rounds: [Option<RoundFigures>; 2],
    /// The least that was pending at the end of one of the eight rounds before the last.
    pub least_pending_bytes: f64,
    /// Rounds since the one that left a twentieth less than all before it.
    pub stalled_rounds: u32,
    /// Percentage of the time that throttled vCPUs stand still; `None`: the machine cannot throttle.
    pub throttle: Option<u8>,
}

/// A round, as far as a throttle is decided by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundFigures {
    /// Bytes that what the guest dirtied will take on the wire.
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
    /// One more round, with vCPUs that stand still for more of the time: so many percent.
    ThrottleMore(u8),
    /// One more round, with vCPUs that stand still for less of it.
    ThrottleLess(u8),
    /// Pause the guest now.
    SwitchOver,
    /// Hand the guest over now, and the rest of its memory behind it: within the limits it cannot be done otherwise.
    Postcopy(GiveUpReason),
    /// Give up: the migration cannot complete within its limits.
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
    /// The deadline.
    Deadline {
        /// Pause that the guest would feel if it were switched over now.
        expected_downtime: Duration,
    },
    /// The deadline, after which the highest throttle did not help.
    Throttle {
        /// Pause that the guest would feel if it were switched over now.
        expected_downtime: Duration,
        /// The highest throttle.
        percent: u8,
    },
    /// Rounds no longer help, and each is a burden to the guest.
    Stalled {
        /// Pause that the guest would feel if it were switched over now.
        expected_downtime: Duration,
        /// Rounds in a row that did not help.
        rounds: u32,
    },
    /// Even with no page left the pause would be longer than the limit.
    FixedCost {
        /// The pause with no page left.
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
/// And were both answers later than usual by as much again.
const LATENESS: u32 = 2;
/// Rounds that are foretold at most. A tenth of the pending bytes is left after 45 rounds at the ratio [`HOPELESS`], so
/// whoever needs more has no end in sight either.
const FORETOLD: u32 = 1000;

/// The decision at the end of a round, and what it is based on.
pub fn decide(figures: &Figures, parameters: &Parameters) -> (RoundDecision, Forecast) {
    let known = Known { figures, parameters };
    (known.decision(), known.forecast())
}

/// What is to be expected, as of any moment.
pub fn foretell(figures: &Figures, parameters: &Parameters) -> Forecast {
    Known { figures, parameters }.forecast()
}

/// What the deadline demands, also within a round: `None` until it passes.
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
            // A pause that is too long without a page is as long in post-copy.
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
        // Before the log was read at the end of a round nobody knows what the guest has written since the beginning.
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
        if !fits && self.is_a_burden_for_nothing() && !over_the_limit_in_the_end {
            let rounds = figures.stalled_rounds;
            return RoundDecision::GiveUp(GiveUpReason::Stalled { expected_downtime, rounds });
        }
        RoundDecision::Iterate
    }

    fn is_overdue(self) -> bool {
        self.parameters.deadline.is_some_and(|deadline| self.figures.elapsed >= deadline)
    }

    /// The deadline has passed, and the pause would be longer than its limit.
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
                    Some(shares) if shares.least >= HOPELESS => {
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

    /// Many rounds did not lower what remains, and nor did the last one.
    fn has_settled(self) -> bool {
        let [Some(last), Some(before)] = self.figures.last_rounds else { return false };
        self.figures.stalled_rounds >= disturbance::STALLED_ROUNDS
            && last.dirtied_bytes >= before.dirtied_bytes * HOPELESS
    }

    /// Even with no page left the pause would not fit, and that is proved.
    fn is_too_long_without_pages(self) -> Option<GiveUpReason> {
        let least_downtime = self.fixed(self.figures.least_switch_over_cost, LATENESS);
        let proved = least_downtime > self.parameters.downtime_limit && self.figures.rounds >= COLD_ROUNDS;
        proved.then_some(GiveUpReason::FixedCost { least_downtime })
    }

    fn forecast(self) -> Forecast {
        Forecast { downtime: self.expected(self.figures.pending_bytes), total: self.total() }
    }

    /// The pause with no page left, if the switch-over costs that much and answers are so many times as late as usual.
    fn fixed(self, switch_over_cost: Duration, lateness: u32) -> Duration {
        let devices = time(self.figures.device_bytes, self.paused_bytes_per_second());
        let answer = self.figures.round_trip.saturating_add(self.figures.lateness.saturating_mul(lateness));
        switch_over_cost.saturating_add(devices).saturating_add(answer.saturating_mul(2))
    }

    /// The pause with `pending` bytes left when it is ordered.
    fn expected(self, pending: f64) -> Duration {
        self.downtime(pending, 1.0, 1)
    }

    /// As [`expected`](Self::expected), if the bytes take `margin` times as long and answers are `lateness` times as late. The guest
    /// writes on until it stands still.
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

    /// What the pause has of the wire.
    fn paused_bytes_per_second(self) -> f64 {
        let known = self.parameters.avail_switchover_bandwidth;
        known.map_or(self.figures.paused_bytes_per_second, |known| known.get() as f64)
    }

    /// What a round has of the wire.
    fn round_bytes_per_second(self) -> f64 {
        let limit = self.parameters.max_bandwidth.map_or(f64::INFINITY, |limit| limit.get() as f64);
        limit.min(self.figures.wire_bytes_per_second)
    }

    /// From a question to its answer, usually.
    fn answer(self) -> Duration {
        self.figures.round_trip.saturating_add(self.figures.lateness)
    }

    /// How long a round takes that begins with `pending` bytes: until they are sent and it is heard that they arrived.
    fn round(self, pending: f64) -> Duration {
        time(pending, self.round_bytes_per_second()).saturating_add(self.answer())
    }

    /// Each round takes its time, and leaves what the guest dirties meanwhile, until that is little enough.
    fn total(self) -> Option<Duration> {
        let figures = self.figures;
        let (mut pending, mut elapsed) = (figures.pending_bytes, figures.elapsed);
        let ratio = figures.dirty_bytes_per_second / self.round_bytes_per_second();
        // To that many bytes rounds come closer and closer: what is dirtied in the round trip of a round remains. NaN is 0 / 0: nothing
        // goes, and nothing is dirtied.
        let least = figures.dirty_bytes_per_second * self.answer().as_secs_f64() / (1.0 - ratio);
        let has_end = ratio < HOPELESS && self.fits(least);
        for _ in 0..FORETOLD {
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
