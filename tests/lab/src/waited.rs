//! How long a thread waits voluntarily, however busy the host is: time in which it neither had a processor nor wanted
//! one.

use std::fs;
use std::time::{Duration, Instant};

/// A point in time of the calling thread.
#[derive(Clone, Copy, Debug)]
pub struct Waited {
    begun: Instant,
    active: Duration,
}

impl Waited {
    /// The present.
    ///
    /// # Panics
    /// When the kernel keeps no scheduler statistics.
    #[must_use]
    pub fn now() -> Self {
        Self { active: active(), begun: Instant::now() }
    }

    /// The time that this thread, which must be the one of [`Waited::now`], has waited since.
    ///
    /// # Panics
    /// As [`Waited::now`].
    #[must_use]
    pub fn since(&self) -> Duration {
        let elapsed = self.begun.elapsed();
        elapsed.saturating_sub(active().saturating_sub(self.active))
    }
}

/// Time on a processor or waiting for one (Documentation/scheduler/sched-stats.rst: the first two numbers, in
/// nanoseconds).
fn active() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel has scheduler statistics");
    let numbers = text.split(' ').take(2).map(|number| number.parse::<u64>().expect("a number"));
    Duration::from_nanos(numbers.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_counts_as_waiting_and_work_does_not() {
        let before = Waited::now();
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {}
        assert!(before.since() < Duration::from_millis(100), "{:?}", before.since());
        std::thread::sleep(Duration::from_millis(300));
        assert!(before.since() >= Duration::from_millis(250), "{:?}", before.since());
    }
}
