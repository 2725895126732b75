//! Rate limits of a device: token buckets for bytes and operations. Work may begin while there is a token, and is charged
//! afterwards, so a bucket can be in debt by one piece of work.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::config::{Rate, RateLimits};
use crate::sync::lock;

const NANOSECONDS: u128 = 1_000_000_000;

type Clock = dyn Fn() -> Instant + Send + Sync;

/// Limits of a device, or of one direction of a network card. Clones share the buckets, so that a reset of the machine does not
/// refill them.
#[derive(Clone, Default)]
pub struct Limiter(Option<Arc<LimiterState>>);

struct LimiterState {
    made: Instant,
    now: Box<Clock>,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    /// Makes full buckets with these rates.
    pub fn new(limits: RateLimits) -> Self {
        Self::with_clock(limits, Box::new(Instant::now))
    }

    /// Makes a limiter with another clock.
    pub fn with_clock(limits: RateLimits, now: Box<Clock>) -> Self {
        if limits == RateLimits::default() {
            return Self::default();
        }
        let [bytes, operations] = [limits.bytes, limits.operations].map(|rate| rate.map(Bucket::new));
        Self(Some(Arc::new(LimiterState { made: now(), now, buckets: Mutex::new(Buckets { bytes, operations }) })))
    }

    /// Returns how long the next piece of work has to wait; `None` if it may begin.
    pub(super) fn wait(&self) -> Option<Duration> {
        let shared = self.0.as_deref()?;
        let buckets = shared.lock();
        let ready_at = [&buckets.bytes, &buckets.operations].into_iter().flatten().map(Bucket::ready_at).max()?;
        let wait = ready_at.checked_sub(shared.elapsed()).filter(|wait| *wait != 0)?;
        // A wait longer than `Duration` can express becomes its maximum.
        Some(Duration::new((wait / NANOSECONDS).try_into().unwrap_or(u64::MAX), (wait % NANOSECONDS) as u32))
    }

    /// Takes tokens for work that was done.
    pub(super) fn charge(&self, operations: u64, bytes: u64) {
        let Some(shared) = &self.0 else { return };
        let now = shared.elapsed();
        let mut buckets = shared.lock();
        let Buckets { bytes: of_bytes, operations: of_operations } = &mut *buckets;
        for (bucket, count) in [(of_bytes, bytes), (of_operations, operations)] {
            if let Some(bucket) = bucket {
                bucket.take(now, count);
            }
        }
    }
}

impl LimiterState {
    fn elapsed(&self) -> Nanoseconds {
        (self.now)().saturating_duration_since(self.made).as_nanos()
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        lock(&self.buckets)
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Limiter").field(&self.0.as_ref().map(|shared| &shared.buckets)).finish()
    }
}

/// Nanoseconds since the limiter was made.
type Nanoseconds = u128;

/// A token bucket, stored as the time at which it will be full again (generic cell rate algorithm).
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    full_at: Nanoseconds,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        Self { rate, full_at: 0 }
    }

    /// Time at which there is a token.
    fn ready_at(&self) -> Nanoseconds {
        self.full_at.saturating_sub(self.time_for(self.rate.burst.get() - 1))
    }

    fn take(&mut self, now: Nanoseconds, count: u64) {
        self.full_at = self.full_at.max(now).saturating_add(self.time_for(count));
    }

    /// Time in which `count` tokens are added, rounded up, so that no count is free.
    fn time_for(&self, count: u64) -> Nanoseconds {
        (u128::from(count) * NANOSECONDS).div_ceil(self.rate.per_second.get().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u64, burst: u64) -> Option<Rate> {
        Some(Rate { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
    }

    /// Makes a limiter and its clock in nanoseconds.
    fn limiter(limits: RateLimits) -> (Limiter, Arc<Mutex<u64>>) {
        let (start, time) = (Instant::now(), Arc::new(Mutex::new(0)));
        let shown = Arc::clone(&time);
        (Limiter::with_clock(limits, Box::new(move || start + Duration::from_nanos(*shown.lock().unwrap()))), time)
    }

    /// Counts the operations of `bytes` that begin within `seconds` if each begins as soon as it may.
    fn operations(limits: RateLimits, bytes: u64, seconds: u64) -> u64 {
        let (limiter, time) = limiter(limits);
        let mut count = 0;
        loop {
            if let Some(wait) = limiter.wait() {
                *time.lock().unwrap() += wait.as_nanos() as u64;
            }
            if *time.lock().unwrap() >= seconds * 1_000_000_000 {
                return count;
            }
            limiter.charge(1, bytes);
            count += 1;
        }
    }

    #[test]
    fn without_limits_nothing_waits() {
        let limiter = Limiter::new(RateLimits::default());
        limiter.charge(u64::MAX, u64::MAX);
        assert_eq!(limiter.wait(), None);
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let limits = RateLimits { operations: rate(10, 5), ..RateLimits::default() };
        assert_eq!(operations(limits, 1 << 40, 1), 5 + 9, "at 0, then every 100 ms until a second is over");
        let limits = RateLimits { bytes: rate(1000, 4000), ..RateLimits::default() };
        // 4000 bytes at once, where the last operation is in debt; then 10 operations a second.
        assert_eq!(operations(limits, 100, 1), 40 + 10);
        assert_eq!(operations(limits, 100, 3), 40 + 30);
        let both = RateLimits { operations: rate(10, 5), ..limits };
        assert_eq!(operations(both, 100, 1), 5 + 9, "the narrower limit counts");
    }

    #[test]
    fn work_larger_than_the_burst_is_paid_for_afterwards() {
        let (limiter, time) = limiter(RateLimits { bytes: rate(1000, 10), ..RateLimits::default() });
        assert_eq!(limiter.wait(), None);
        limiter.charge(1, 5000);
        // 5000 tokens are charged, of which 10 were there; one more is needed to begin.
        assert_eq!(limiter.wait(), Some(Duration::from_millis(4991)));
        *time.lock().unwrap() = 4_990_999_999;
        assert_eq!(limiter.wait(), Some(Duration::from_nanos(1)));
        *time.lock().unwrap() = 4_991_000_000;
        assert_eq!(limiter.wait(), None);
    }

    #[test]
    fn rest_fills_the_bucket_and_no_more() {
        let limits = RateLimits { operations: rate(1, 3), ..RateLimits::default() };
        let (limiter, time) = limiter(limits);
        limiter.charge(3, 0);
        *time.lock().unwrap() = 3600 * 1_000_000_000;
        for _ in 0..3 {
            assert_eq!(limiter.wait(), None);
            limiter.charge(1, 0);
        }
        assert_eq!(limiter.wait(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn clones_share_the_buckets() {
        let (limiter, _time) = limiter(RateLimits { operations: rate(1, 1), ..RateLimits::default() });
        limiter.clone().charge(1, 0);
        assert_eq!(limiter.wait(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn the_largest_numbers_are_no_trouble() {
        for (per_second, burst) in [(1, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX), (1, 1)] {
            let (limiter, _time) = limiter(RateLimits { bytes: rate(per_second, burst), ..RateLimits::default() });
            for _ in 0..3 {
                limiter.charge(1, u64::MAX);
            }
            assert_ne!(limiter.wait(), None, "{per_second} and {burst}");
        }
    }
}
