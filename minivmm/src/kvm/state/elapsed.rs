//! Time that passed since the source's pause: the difference of the wall clocks, if the monotonic clocks of both sides agree
//! with it.
//!
//! Each side measures with CLOCK_MONOTONIC from the same moment: the source sends the early section `minivmm/preflight`, and
//! the destination reads it. The destination's time until now, less the source's time until its pause, is the time since the
//! pause. This does not depend on the wall clocks, and is short by the section's time on the wire. Wall clocks under NTP are
//! more exact, so their difference is used if it is close to the measured time; a difference that is not close means that the
//! clocks disagree or were set.

/// Longest time that a section may be on the wire and in the queues of a loaded host.
const TRANSIT_NS: u64 = 250_000_000;
/// Linux slews a clock by at most 500 parts per million (`MAXFREQ`, include/linux/timex.h); two clocks differ by at most twice
/// that.
const SLEW: u64 = 1000;
/// Largest difference of wall clocks that is ever accepted.
const MOST_NS: u64 = 1_000_000_000;

/// Readings of both sides' clocks in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readings {
    /// Source's CLOCK_MONOTONIC when it sent `minivmm/preflight`.
    pub source_preflight: u64,
    /// Source's CLOCK_MONOTONIC at the pause.
    pub source_paused: u64,
    /// Source's CLOCK_REALTIME at the pause.
    pub source_wall: u64,
    /// Destination's CLOCK_MONOTONIC when it read `minivmm/preflight`.
    pub destination_preflight: u64,
    /// Destination's CLOCK_MONOTONIC now.
    pub destination_now: u64,
    /// Destination's CLOCK_REALTIME now.
    pub destination_wall: u64,
}

/// Result of comparing the readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elapsed {
    /// Time by which the guest's clocks advance, in ns.
    pub ns: u64,
    /// How far the destination's wall clock is ahead of the source's, in ns; 0 if the two agree.
    pub disagreement_ns: i64,
}

impl Elapsed {
    /// Warning for the user if the wall clocks disagree.
    pub fn warning(&self) -> Option<String> {
        let (ahead_s, passed_s) = (self.disagreement_ns as f64 / 1e9, self.ns as f64 / 1e9);
        let text = format!(
            "the wall clock of this host is ahead of the source's by {ahead_s:.3} s; the guest's clocks go on by the \
             {passed_s:.3} s that both hosts measured; let NTP set the clocks of both"
        );
        (self.disagreement_ns != 0).then_some(text)
    }
}

/// Computes the time since the source's pause; whatever the stream says, at most the time that the destination measured.
pub fn since_pause(readings: &Readings) -> Elapsed {
    let here = readings.destination_now.saturating_sub(readings.destination_preflight);
    let there = readings.source_paused.saturating_sub(readings.source_preflight);
    let measured = here.saturating_sub(there);
    let by_wall = i128::from(readings.destination_wall) - i128::from(readings.source_wall);
    let disagreement = by_wall - i128::from(measured);
    let tolerance = TRANSIT_NS.saturating_add(here / SLEW).min(MOST_NS);
    match u64::try_from(by_wall) {
        Ok(ns) if disagreement.unsigned_abs() <= tolerance.into() => Elapsed { ns, disagreement_ns: 0 },
        _ => {
            let disagreement_ns = i64::try_from(disagreement);
            let most = if disagreement < 0 { i64::MIN } else { i64::MAX };
            Elapsed { ns: measured, disagreement_ns: disagreement_ns.unwrap_or(most) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i128 = 1_000_000;
    const S: i128 = 1000 * MS;
    const HOUR: i128 = 3600 * S;
    const YEAR: i128 = 365 * 24 * HOUR;

    /// Readings of a migration: the section was `transit` on the wire, the guest was paused `rounds` after the section was
    /// sent, and `pause` has passed since. The destination's wall clock is ahead by `offset`; its monotonic clock is unrelated
    /// to the source's.
    fn migration(transit: i128, rounds: i128, pause: i128, offset: i128) -> Readings {
        let (source_boot, destination_boot, date) = (7 * HOUR, 900 * HOUR, 56 * YEAR);
        let ns = |time: i128| u64::try_from(time).unwrap();
        Readings {
            source_preflight: ns(source_boot),
            source_paused: ns(source_boot + rounds),
            source_wall: ns(date + rounds),
            destination_preflight: ns(destination_boot + transit),
            destination_now: ns(destination_boot + rounds + pause),
            destination_wall: ns(date + rounds + pause + offset),
        }
    }

    fn elapsed(readings: &Readings) -> (i128, i128) {
        let Elapsed { ns, disagreement_ns } = since_pause(readings);
        (ns.into(), disagreement_ns.into())
    }

    #[test]
    fn wall_clocks_that_agree_are_used() {
        for (transit, rounds, pause, offset) in
            [(0, 0, 0, 0), (MS, 2 * S, 300 * MS, 0), (40 * MS, 60 * S, 5 * S, 3 * MS), (MS, HOUR, 100 * MS, -90 * MS)]
        {
            assert_eq!(elapsed(&migration(transit, rounds, pause, offset)), (pause + offset, 0));
        }
    }

    /// The result is the true pause less the transit time, and the offset plus the transit time, which cannot be distinguished.
    #[test]
    fn wall_clocks_that_disagree_never_reach_the_guest() {
        for offset in [2 * S, HOUR, -HOUR, 10 * YEAR, -10 * YEAR, -2 * S] {
            let readings = migration(5 * MS, 3 * S, 200 * MS, offset);
            assert_eq!(elapsed(&readings), (195 * MS, offset + 5 * MS));
        }
    }

    #[test]
    fn a_wall_clock_that_is_set_during_the_migration_is_not_used() {
        let mut readings = migration(MS, 30 * S, 50 * MS, 0);
        readings.source_wall -= (20 * S) as u64;
        assert_eq!(elapsed(&readings), (49 * MS, 20 * S + MS));
        // The wall clock was set back: the pause would be negative.
        let mut readings = migration(MS, 30 * S, 50 * MS, 0);
        readings.destination_wall -= (60 * MS) as u64;
        assert_eq!(elapsed(&readings), (49 * MS, -59 * MS));
    }

    /// A difference of more than a second never counts as agreement, however long the migration took.
    #[test]
    fn a_long_migration_forgives_a_second_at_most() {
        assert_eq!(elapsed(&migration(0, 100 * HOUR, S, 900 * MS)), (1900 * MS, 0));
        assert_eq!(elapsed(&migration(0, 100 * HOUR, S, 1001 * MS)), (S, 1001 * MS));
    }

    /// Whatever a stream claims, no sum overflows, and the result is no more than the destination measured.
    #[test]
    fn hostile_readings_move_the_clocks_by_no_more_than_was_measured() {
        let extremes = [0, 1, u64::MAX / 2, u64::MAX];
        for source_preflight in extremes {
            for source_paused in extremes {
                for source_wall in extremes {
                    let honest = migration(MS, S, 100 * MS, 0);
                    let readings = Readings { source_preflight, source_paused, source_wall, ..honest };
                    let here = honest.destination_now - honest.destination_preflight;
                    let Elapsed { ns, .. } = since_pause(&readings);
                    assert!(ns <= here + TRANSIT_NS + here / SLEW, "{readings:?}: {ns}");
                }
            }
        }
    }
}
