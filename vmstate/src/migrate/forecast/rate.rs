//! A rate over the recent past: sums of amounts and of times, in which older measurements fade.

use std::time::Duration;

/// Amount of something a second. As a ratio of two sums, each measurement has the weight of its duration, and many short ones
/// have the same effect as a long one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    amount: f64,
    seconds: f64,
    /// After this much measured time, a measurement has 1/e of its weight.
    window: Duration,
}

impl Rate {
    /// Creates a rate without measurements.
    pub(crate) fn new(window: Duration) -> Self {
        Self { amount: 0.0, seconds: 0.0, window }
    }

    /// Adds `amount`, measured in `time`.
    pub(crate) fn add(&mut self, amount: f64, time: Duration) {
        let left = (-time.as_secs_f64() / self.window.as_secs_f64()).exp();
        self.amount = self.amount * left + amount;
        self.seconds = self.seconds * left + time.as_secs_f64();
    }

    /// The rate; `None` without a measurement. Infinite if the time is below the clock's resolution.
    pub(crate) fn per_second(&self) -> Option<f64> {
        (self.amount > 0.0 || self.seconds > 0.0).then(|| self.amount / self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn near(rate: &Rate, expected: f64) -> bool {
        (rate.per_second().unwrap() / expected - 1.0).abs() < 0.01
    }

    #[test]
    fn long_measurements_outweigh_short_ones() {
        let mut rate = Rate::new(1000 * MS);
        assert_eq!(rate.per_second(), None);
        rate.add(100.0, 100 * MS);
        assert!(near(&rate, 1000.0));
        // A hundredth of the time, at a tenth of the rate.
        rate.add(0.1, MS);
        assert!(near(&rate, 991.0));
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut rate = Rate::new(100 * MS);
        rate.add(1e6, 1000 * MS);
        for _ in 0..50 {
            rate.add(100.0, 10 * MS);
        }
        // Five windows leave e^-5 of the old.
        let old = 1000.0 * (-5.0_f64).exp();
        assert!(rate.per_second().unwrap() < 1e4 * 1.01 + 1e6 * old / 100.0, "{rate:?}");
        assert!(rate.per_second().unwrap() > 1e4, "{rate:?}");
    }

    #[test]
    fn no_time_is_infinitely_fast() {
        let mut rate = Rate::new(MS);
        rate.add(0.0, Duration::ZERO);
        assert_eq!(rate.per_second(), None);
        rate.add(1.0, Duration::ZERO);
        assert_eq!(rate.per_second(), Some(f64::INFINITY));
    }
}
