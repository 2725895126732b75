//! Waits for memory: the writes that took longer than a write to a page that is there.

use std::time::Duration;

use serde_json::{Value, json};

/// Time above which a write counts as a wait: above what a host with slow exits needs to map a page that it has.
const LONG: Duration = Duration::from_micros(300);

/// The waits since the last query.
#[derive(Debug, Default)]
pub(super) struct Waits(Vec<Duration>);

impl Waits {
    /// Counts a write that took this time, if it is a wait.
    pub(super) fn add(&mut self, time: Duration) {
        if time > LONG {
            self.0.push(time);
        }
    }

    /// The [`figures`] of the waits since the last call.
    pub(super) fn take(&mut self) -> Value {
        figures(std::mem::take(&mut self.0))
    }
}

/// The number of these waits, their median, 99th percentile and sum, in microseconds. The longest one is left out: it
/// contains the pause of the guest, if there was one.
pub fn figures(mut waits: Vec<Duration>) -> Value {
    waits.sort_unstable();
    waits.pop();
    let at = |percent: usize| waits.get(waits.len() * percent / 100).map(|wait| wait.as_micros() as u64);
    let sum: Duration = waits.iter().sum();
    json!({ "waits": waits.len(), "median_us": at(50), "p99_us": at(99), "sum_us": sum.as_micros() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: of 1 to 101 ms the longest is left out; half of the other hundred are below 51, and 99 below 100.
    #[test]
    fn percentiles_are_of_the_long_writes_without_the_longest() {
        let mut waits = Waits::default();
        for ms in (1..=101).rev() {
            waits.add(Duration::from_millis(ms));
            waits.add(LONG);
        }
        let taken = waits.take();
        assert_eq!((&taken["waits"], &taken["median_us"]), (&json!(100), &json!(51_000)));
        assert_eq!((&taken["p99_us"], &taken["sum_us"]), (&json!(100_000), &json!(5_050_000)));
        assert_eq!(waits.take()["median_us"], Value::Null, "nothing since the last query");
    }
}
