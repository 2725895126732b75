//! Tests: measurements of a wire whose answers have random delays and stay in order.

use std::time::Duration;

use super::{Chunk, Measures, WireSpeed};
use crate::ram::PageCount;

const MS: f64 = 1e-3;
const ROUND_TRIP: f64 = 2.0 * MS;

/// The delay of an answer.
#[derive(Clone, Copy, Debug)]
enum Late {
    /// Evenly distributed from zero to this many seconds.
    Evenly(f64),
    /// Half of the answers below this many seconds, one of ten nine times as much, and one of twenty twenty times, which is the
    /// maximum.
    Seldom(f64),
}

/// A source and its wire as a formula: bytes leave one after another, and are answered a round trip later plus a delay.
struct Link {
    speed: f64,
    late: Late,
    seed: u64,
    now: f64,
    free: f64,
    answered: f64,
    measured: WireSpeed,
}

impl Link {
    fn new(speed: f64, late: Late, seed: u64) -> Self {
        let mut link = Self { speed, late, seed, now: 0.0, free: 0.0, answered: 0.0, measured: WireSpeed::new() };
        while link.measured.wants_lone_probe() {
            link.send(&[0], 0.0);
        }
        link
    }

    fn random(&mut self) -> f64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as f64 / (1_u64 << 31) as f64
    }

    /// Sends chunks, one each `interval` or at once, and receives all answers.
    fn send(&mut self, chunks: &[u64], interval: f64) {
        let mut answers = Vec::new();
        for &bytes in chunks {
            let (begun, waited) = (Duration::from_secs_f64(self.now), Duration::from_secs_f64(interval));
            // Answers that have arrived by then are received first.
            answers.retain(|&at: &f64| {
                let is_there = at <= self.now;
                assert!(!is_there || self.measured.answered(Duration::from_secs_f64(at)));
                !is_there
            });
            let pages = PageCount { normal: bytes / 4104, zero: 0 };
            self.measured.sent(Chunk { waited, ..Chunk::new(begun, bytes, pages, Measures::Rounds) });
            self.free = self.free.max(self.now) + bytes as f64 / self.speed;
            let random = self.random();
            let late = match self.late {
                Late::Evenly(most) => most * random,
                Late::Seldom(median) => median * (1.0 / (1.0 - random) - 1.0).min(20.0),
            };
            self.answered = self.answered.max(self.free + ROUND_TRIP + late);
            answers.push(self.answered);
            self.now += interval;
        }
        for at in answers {
            assert!(self.measured.answered(Duration::from_secs_f64(at)));
        }
        self.now = self.now.max(self.answered);
    }

    fn measured(&self) -> f64 {
        self.measured.bytes_per_second().expect("it was measured") / self.speed
    }
}

fn links() -> impl Iterator<Item = Link> {
    let lates = [0.0, 1.0, 5.0, 10.0, 30.0, 100.0].map(|most| Late::Evenly(most * MS));
    let lates = lates.into_iter().chain([0.3, 1.0, 5.0].map(|median| Late::Seldom(median * MS)));
    lates.flat_map(|late| {
        let speeds = [1e6, 1e8, 1e10];
        speeds.into_iter().flat_map(move |speed| (0..8).map(move |seed| Link::new(speed, late, seed)))
    })
}

#[test]
fn a_long_round_measures_the_speed_and_short_rounds_keep_it() {
    for mut link in links() {
        // Two seconds, in chunks of 20 ms; then rounds of one chunk that takes a hundredth to a tenth of a second.
        let chunk = (link.speed / 50.0) as u64;
        link.send(&[chunk; 100], 0.0);
        let first = link.measured();
        assert!((0.8..1.2).contains(&first), "{first} of {} {:?}", link.speed, link.late);
        for round in 0..50 {
            link.send(&[(link.speed / 100.0) as u64 * (1 + round % 10)], 0.0);
            let measured = link.measured();
            // Rare delays of the length of a whole round are, in doubt, taken for a slow wire.
            let least = if matches!(link.late, Late::Evenly(_)) { 0.7 } else { 0.4 };
            assert!((least..1.25).contains(&measured), "{measured} of {} {:?}, round {round}", link.speed, link.late);
        }
    }
}

#[test]
fn a_wire_that_slows_down_is_noticed_in_rounds_that_are_longer_than_its_jitter() {
    for mut link in links() {
        link.send(&[(link.speed / 50.0) as u64; 100], 0.0);
        link.speed /= 10.0;
        for _ in 0..10 {
            link.send(&[(link.speed / 20.0) as u64; 10], 0.0);
        }
        let measured = link.measured();
        assert!((0.7..2.0).contains(&measured), "{measured} of {} {:?}", link.speed, link.late);
    }
}

#[test]
fn a_wire_that_waits_for_a_limit_is_shown_to_be_as_fast_as_that() {
    for mut link in links() {
        // Pieces that take half a millisecond, one every 5 ms.
        link.send(&[(link.speed / 2000.0) as u64; 1000], 5.0 * MS);
        let measured = link.measured();
        assert!((0.08..1.2).contains(&measured), "{measured} of {} {:?}", link.speed, link.late);
    }
}
