//! A rate out of stretches of time in which the wire was busy, each known as exactly as answers are punctual.
//!
//! Within a stretch a late answer makes the next ones seem early, so what is known of its length is wrong by its two ends only. A
//! stretch that is long against that is taken at its word. A short one says that it took no longer than it seems, and that
//! much shorter at most: a rate that agrees with this stays as it is, and any other is moved as far as it has to be.

use std::time::Duration;

use super::rate::Rate;

/// A stretch that is so many times as long as answers may be late is long.
const LONG: u32 = 4;

/// An answer that is later than explained by this much may be one of a lost packet behind which nothing else was sent: that is sent
/// again after 200 ms at the earliest (`TCP_RTO_MIN` of Linux), of which a wait for the bandwidth limit may take a part.
const LOST: Duration = Duration::from_millis(100);

/// The time in which the wire was busy with a chunk, as its answer tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Busy {
    pub(super) time: Duration,
    /// True if this time began with the chunk, false if with the answer before.
    pub(super) after_rest: bool,
    /// Before the chunk the source waited for its bandwidth limit: so long the wire may have had nothing to do.
    pub(super) waited: Duration,
    /// True if no other chunk is on the way.
    pub(super) is_last: bool,
}

/// Uncertainty about the times of answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Doubt {
    /// An answer is hardly ever later than this.
    pub(super) late: Duration,
    /// The true shortest round trip is hardly ever shorter than the shortest measured one by more than this.
    pub(super) unseen: Duration,
}

/// A rate over the recent past.
#[derive(Clone, Debug)]
pub(super) struct Stretches {
    rate: Rate,
    /// The stretch that goes on.
    open: Option<Stretch>,
    /// One stretch that is [`LOST`] is not believed.
    forgives: bool,
    /// By so much the last stretch was slower than the rate and late answers explain.
    unexplained: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Stretch {
    amount: f64,
    busy: Busy,
}

impl Stretches {
    pub(super) fn new(window: Duration) -> Self {
        Self { rate: Rate::new(window), open: None, forgives: false, unexplained: Duration::ZERO }
    }

    /// Does not believe a single answer that is as late as after a lost packet.
    pub(super) fn forgiving(window: Duration) -> Self {
        Self { forgives: true, ..Self::new(window) }
    }

    /// So much went while the wire was `busy`.
    pub(super) fn add(&mut self, amount: f64, busy: Busy, doubt: Doubt) {
        if busy.after_rest {
            self.close(doubt);
        }
        let stretch = match self.open {
            None => Stretch { amount, busy: Busy { waited: Duration::ZERO, ..busy } },
            Some(Stretch { amount: before, busy: Busy { time, after_rest, waited, .. } }) => {
                let (time, waited) = (time.saturating_add(busy.time), waited.saturating_add(busy.waited));
                Stretch { amount: before + amount, busy: Busy { time, after_rest, waited, is_last: busy.is_last } }
            }
        };
        self.open = Some(stretch);
        if busy.is_last || stretch.busy.time >= doubt.late.saturating_mul(LONG) {
            self.close(doubt);
        }
    }

    fn close(&mut self, doubt: Doubt) {
        let Some(Stretch { amount, busy }) = self.open.take() else { return };
        let Busy { time, after_rest, waited, is_last } = busy;
        let (shortest, longest) = if time >= doubt.late.saturating_mul(LONG) {
            (time, time)
        } else {
            let seems_early = if after_rest { doubt.unseen } else { doubt.late };
            (time.saturating_sub(doubt.late), time.saturating_add(seems_early))
        };
        let shortest = shortest.saturating_sub(waited);
        // As long as nothing is known, the wire is no faster than was seen.
        let Some(expected) = self.expected(amount) else { return self.rate.add(amount, longest) };
        let unexplained = shortest.saturating_sub(expected);
        let before = std::mem::replace(&mut self.unexplained, unexplained);
        // Behind a late answer the others come early, but there are none behind the last one: only two in a row make the wire slow.
        let shortest = match self.forgives && is_last && unexplained >= LOST {
            true => expected.saturating_add(unexplained.min(before)),
            false => shortest,
        };
        self.rate.add(amount, expected.clamp(shortest.min(longest), longest));
    }

    /// How long so much takes at the rate that is known.
    fn expected(&self, amount: f64) -> Option<Duration> {
        let seconds = amount / self.rate.per_second()?;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// `None` until something was measured.
    pub(super) fn per_second(&self) -> Option<f64> {
        self.rate.per_second().or_else(|| {
            let Stretch { amount, busy } = self.open?;
            Some(amount / busy.time.as_secs_f64())
        })
    }
}
