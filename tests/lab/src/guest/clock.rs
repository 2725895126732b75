//! Time as the guest feels it: a millisecond tick whose largest gap is the downtime felt, and clocks that must not jump.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// From one tick to the next.
const INTERVAL: Duration = Duration::from_millis(1);
/// Nanoseconds between two readings that count as one.
const TOGETHER: i64 = 200_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instants {
    monotonic: i64,
    realtime: i64,
}

impl Instants {
    /// Both clocks at one time: read again when something came between.
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

/// Both clocks in nanoseconds, and what they are read from.
pub(super) fn now() -> Value {
    let source = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let now = Instants::now();
    json!({ "monotonic_ns": now.monotonic, "realtime_ns": now.realtime, "source": source.unwrap_or_default().trim() })
}

/// Gaps between ticks since they were last taken.
#[derive(Debug, Default)]
struct Gaps {
    ticks: u64,
    monotonic: i64,
    realtime: i64,
    backward: u64,
    apart: i64,
}

impl Gaps {
    fn step(&mut self, before: Instants, after: Instants) {
        let (monotonic, realtime) = (after.monotonic - before.monotonic, after.realtime - before.realtime);
        self.ticks += 1;
        self.monotonic = self.monotonic.max(monotonic);
        self.realtime = self.realtime.max(realtime);
        self.backward += u64::from(monotonic < 0 || realtime < 0);
        self.apart = self.apart.max((realtime - monotonic).abs());
    }
}

/// The tick, running.
#[derive(Clone, Debug)]
pub(super) struct Ticks(Arc<Mutex<Gaps>>);

impl Ticks {
    pub(super) fn start() -> Self {
        let gaps = Arc::new(Mutex::new(Gaps::default()));
        let ticks = Self(Arc::clone(&gaps));
        thread::spawn(move || {
            let mut before = Instants::now();
            loop {
                thread::sleep(INTERVAL);
                let after = Instants::now();
                gaps.lock().unwrap_or_else(PoisonError::into_inner).step(before, after);
                before = after;
            }
        });
        ticks
    }

    /// The gaps since the last call: largest on either clock, and largest step of one clock against the other, in
    /// microseconds.
    pub(super) fn take(&self) -> Value {
        let gaps = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        json!({
            "ticks": gaps.ticks,
            "max_gap_us": gaps.monotonic / 1000,
            "max_gap_realtime_us": gaps.realtime / 1000,
            "max_apart_us": gaps.apart / 1000,
            "backward": gaps.backward,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_backward_steps_and_a_jump_of_one_clock_are_told_apart() {
        let at = |monotonic, realtime| Instants { monotonic, realtime };
        let mut gaps = Gaps::default();
        gaps.step(at(0, 100), at(10, 110));
        gaps.step(at(10, 110), at(60, 160));
        assert_eq!((gaps.monotonic, gaps.realtime, gaps.backward, gaps.apart), (50, 50, 0, 0));
        gaps.step(at(60, 160), at(70, 150));
        assert_eq!((gaps.backward, gaps.apart, gaps.ticks), (1, 20, 3));
    }
}
