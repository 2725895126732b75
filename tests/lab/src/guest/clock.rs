//! Time as the guest feels it: a millisecond tick whose largest gap is the downtime felt, and clocks that must not jump.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// Time between two ticks.
const INTERVAL: Duration = Duration::from_millis(1);
/// Longest time in nanoseconds between two readings that count as one moment.
const TOGETHER: i64 = 200_000;

/// Nanoseconds above which a gap is listed, and how many are listed at most: each digit of the answer costs the host an
/// exit.
const LONG: i64 = 5_000_000;
const KEPT: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instants {
    monotonic: i64,
    realtime: i64,
}

impl Instants {
    /// Reads both clocks at one moment: again while more than [`TOGETHER`] passed in between.
    fn now() -> Self {
        let read = |clock| clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec());
        let mut last = Self { monotonic: 0, realtime: 0 };
        for _ in 0..5 {
            let before = read(ClockId::CLOCK_MONOTONIC);
            let realtime = read(ClockId::CLOCK_REALTIME);
            let monotonic = read(ClockId::CLOCK_MONOTONIC);
            last = Self { monotonic, realtime };
            if monotonic - before < TOGETHER {
                break;
            }
        }
        last
    }
}

/// Both clocks in nanoseconds, and the kernel's clock source.
pub(super) fn now() -> Value {
    let source = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let now = Instants::now();
    json!({ "monotonic_ns": now.monotonic, "realtime_ns": now.realtime, "source": source.unwrap_or_default().trim() })
}

/// Gaps between ticks since the last query.
#[derive(Debug, Default)]
struct Gaps {
    ticks: u64,
    monotonic: i64,
    /// The largest gaps: readings of the monotonic clock before and after each, the largest gap first.
    longest: Vec<[i64; 2]>,
    realtime: i64,
    backward: u64,
    /// The largest step back of either clock.
    furthest_back: i64,
    apart: i64,
    /// The last tick.
    last: Option<Instants>,
}

impl Gaps {
    /// Accounts for the time since the last tick, at a tick or at a query before the next one.
    fn step(&mut self, after: Instants) {
        let Some(before) = self.last.replace(after) else { return };
        let (monotonic, realtime) = (after.monotonic - before.monotonic, after.realtime - before.realtime);
        self.ticks += 1;
        self.monotonic = self.monotonic.max(monotonic);
        if monotonic > LONG {
            let place = self.longest.partition_point(|[begin, end]| end - begin >= monotonic);
            self.longest.insert(place, [before.monotonic, after.monotonic]);
            self.longest.truncate(KEPT);
        }
        self.realtime = self.realtime.max(realtime);
        self.backward += u64::from(monotonic < 0 || realtime < 0);
        self.furthest_back = self.furthest_back.max(-monotonic).max(-realtime);
        self.apart = self.apart.max((realtime - monotonic).abs());
    }
}

/// The thread that ticks, and its gaps.
#[derive(Clone, Debug)]
pub(super) struct Ticks(Arc<Mutex<Gaps>>);

impl Ticks {
    pub(super) fn start() -> Self {
        let gaps = Arc::new(Mutex::new(Gaps::default()));
        let ticks = Self(Arc::clone(&gaps));
        thread::spawn(move || {
            loop {
                thread::sleep(INTERVAL);
                // Read the clocks under the lock: a reading taken before a wait for the lock would look like a step
                // back.
                let mut gaps = gaps.lock().unwrap_or_else(PoisonError::into_inner);
                gaps.step(Instants::now());
            }
        });
        ticks
    }

    /// The gaps since the last call: largest on either clock, and largest step of one clock against the other, in
    /// microseconds; and when the largest ones on the monotonic clock began and ended, in nanoseconds of that clock.
    pub(super) fn take(&self) -> Value {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Include the time since the last tick, so that timers that no longer fire show.
        current.step(Instants::now());
        let last = current.last;
        let gaps = std::mem::replace(&mut *current, Gaps { last, ..Gaps::default() });
        json!({
            "ticks": gaps.ticks,
            "max_gap_us": gaps.monotonic / 1000,
            "gaps_ns": gaps.longest,
            "max_gap_realtime_us": gaps.realtime / 1000,
            "max_apart_us": gaps.apart / 1000,
            "backward": gaps.backward,
            "furthest_back_us": gaps.furthest_back / 1000,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_backward_steps_and_a_jump_of_one_clock_are_distinguished() {
        let at = |monotonic, realtime| Instants { monotonic, realtime };
        let mut gaps = Gaps::default();
        gaps.step(at(0, 100));
        gaps.step(at(10, 110));
        gaps.step(at(60, 160));
        assert_eq!((gaps.monotonic, gaps.realtime, gaps.backward, gaps.apart), (50, 50, 0, 0));
        assert!(gaps.longest.is_empty(), "all of them are short");
        gaps.step(at(70, 150));
        assert_eq!((gaps.backward, gaps.apart, gaps.ticks), (1, 20, 3));
    }

    #[test]
    fn the_largest_gaps_are_kept_in_their_order() {
        let mut gaps = Gaps::default();
        let mut moment = 0;
        for length in [0, 1, 7, 3, 9, 7, 8, 6, 5, 4, 2].map(|tens| tens * 10_000_000) {
            moment += length;
            gaps.step(Instants { monotonic: moment, realtime: moment });
        }
        let lengths: Vec<_> = gaps.longest.iter().map(|[begin, end]| (end - begin) / 10_000_000).collect();
        assert_eq!(lengths, [9, 8, 7, 7, 6, 5, 4, 3]);
        assert_eq!(gaps.longest[0], [110_000_000, 200_000_000]);
    }

    #[test]
    fn a_missing_tick_is_reported() {
        let ticks = Ticks(Arc::default());
        let begun = Instants { monotonic: 0, realtime: 0 };
        ticks.0.lock().unwrap().step(begun);
        assert!(ticks.take()["max_gap_us"].as_i64() > Some(0));
    }
}
