//! A rate from time spans in which the wire was busy, each known as exactly as answers are punctual.
//!
//! Within a span, a late answer makes the next ones seem early, so the error of the span's length comes from its two ends only. A
//! span that is long compared with that error is used as measured. A short span gives a range for its length: at most the
//! measured time, and at least that minus the error. A rate within this range is kept, and any other is moved to the nearest end
//! of the range.

use std::time::Duration;

use super::rate::Rate;

/// A span counts as long from this multiple of the answers' delay on.
const LONG: u32 = 4;

/// An answer with an unexplained delay above this may belong to a lost packet after which nothing else was sent: such a packet is
/// sent again after 200 ms at the earliest (`TCP_RTO_MIN` of Linux), part of which may have been a wait for the bandwidth limit.
const LOST: Duration = Duration::from_millis(100);

/// The time in which the wire was busy with a chunk, according to its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Busy {
    pub(super) time: Duration,
    /// True if this time began with the chunk, false if it began with the previous answer.
    pub(super) after_rest: bool,
    /// How long the source waited for its bandwidth limit before the chunk: the wire may have been idle for that long.
    pub(super) waited: Duration,
    /// True if no other chunk is on the wire.
    pub(super) is_last: bool,
}

/// Uncertainty about the times of answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Doubt {
    /// An upper bound that delays rarely exceed.
    pub(super) late: Duration,
    /// How much shorter than the shortest measured round trip the true one may be; rarely exceeded.
    pub(super) unseen: Duration,
}

/// A rate over the recent past.
#[derive(Clone, Debug)]
pub(super) struct Stretches {
    rate: Rate,
    /// The current span.
    open: Option<Stretch>,
    /// True if a single span with a delay of [`LOST`] is ignored.
    forgives: bool,
    /// How much slower the last span was than the rate and late answers explain.
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

    /// Ignores a single answer that is as late as after a lost packet.
    pub(super) fn without_outlier(window: Duration) -> Self {
        Self { forgives: true, ..Self::new(window) }
    }

    /// Adds an amount that was transferred while the wire was `busy`.
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
        // Without an earlier measurement, the wire is assumed to be no faster than measured.
        let Some(expected) = self.expected(amount) else { return self.rate.add(amount, longest) };
        let unexplained = shortest.saturating_sub(expected);
        let before = std::mem::replace(&mut self.unexplained, unexplained);
        // Answers after a late one come early, but nothing follows the last one: only two late ones in a row lower the rate.
        let shortest = match self.forgives && is_last && unexplained >= LOST {
            true => expected.saturating_add(unexplained.min(before)),
            false => shortest,
        };
        self.rate.add(amount, expected.clamp(shortest.min(longest), longest));
    }

    /// How long this amount takes at the present rate.
    fn expected(&self, amount: f64) -> Option<Duration> {
        let seconds = amount / self.rate.per_second()?;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// The rate; `None` without a measurement.
    pub(super) fn per_second(&self) -> Option<f64> {
        self.rate.per_second().or_else(|| {
            let Stretch { amount, busy } = self.open?;
            Some(amount / busy.time.as_secs_f64())
        })
    }
}
