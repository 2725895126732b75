//! How long a thread sleeps, however busy the host is: time in which the thread neither had a processor nor waited for one.

use std::fs;
use std::time::{Duration, Instant};

/// Measures the time that the calling thread sleeps, from [`SleepTimer::start`] on.
#[derive(Clone, Copy, Debug)]
pub struct SleepTimer {
    begun: Instant,
    active: Duration,
}

impl SleepTimer {
    /// Starts at the present.
    ///
    /// # Panics
    /// When the kernel keeps no scheduler statistics.
    #[must_use]
    pub fn start() -> Self {
        Self { active: active(), begun: Instant::now() }
    }

    /// The time that this thread, which must be the one of [`SleepTimer::start`], has slept since.
    ///
    /// # Panics
    /// As [`SleepTimer::start`].
    #[must_use]
    pub fn elapsed(&self) -> Duration {
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
        let timer = SleepTimer::start();
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {}
        assert!(timer.elapsed() < Duration::from_millis(100), "{:?}", timer.elapsed());
        std::thread::sleep(Duration::from_millis(300));
        assert!(timer.elapsed() >= Duration::from_millis(250), "{:?}", timer.elapsed());
    }
}
