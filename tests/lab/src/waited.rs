//! How long a thread waits by its own will, however busy the host is: time in which it neither had a processor nor wanted
//! one.

use std::fs;
use std::time::{Duration, Instant};

/// A moment of the calling thread.
#[derive(Clone, Copy, Debug)]
pub struct Waited {
    begun: Instant,
    active: Duration,
}

impl Waited {
    /// This moment.
    ///
    /// # Panics
    /// Where the kernel keeps no statistics of its scheduler.
    #[must_use]
    pub fn now() -> Self {
        Self { active: active(), begun: Instant::now() }
    }

    /// What this thread, the same one, has waited since.
    ///
    /// # Panics
    /// As [`Waited::now`].
    #[must_use]
    pub fn since(&self) -> Duration {
        let elapsed = self.begun.elapsed();
        elapsed.saturating_sub(active().saturating_sub(self.active))
    }
}

/// Documentation/scheduler/sched-stats.rst: nanoseconds on a processor, then nanoseconds in wait for one.
fn active() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel has statistics of its scheduler");
    let numbers = text.split(' ').take(2).map(|number| number.parse::<u64>().expect("a number"));
    Duration::from_nanos(numbers.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_no_wait_and_a_sleep_is() {
        let before = Waited::now();
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {}
        assert!(before.since() < Duration::from_millis(100), "{:?}", before.since());
        std::thread::sleep(Duration::from_millis(300));
        assert!(before.since() >= Duration::from_millis(250), "{:?}", before.since());
    }
}
