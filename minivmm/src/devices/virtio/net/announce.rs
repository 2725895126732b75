//! When a card tells the network where it is: QEMU's `AnnounceParameters` (qapi/net.json) and its timer (net/announce.c).

use std::time::{Duration, Instant};

/// How often, and at what distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcing {
    /// Between the first time and the second one.
    pub initial: Duration,
    /// Longest distance.
    pub max: Duration,
    /// How many times.
    pub rounds: u32,
    /// By how much each further distance is longer.
    pub step: Duration,
}

impl Default for Announcing {
    /// QEMU's, of its migrations (migration/options.c).
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { initial: ms(50), max: ms(550), rounds: 5, step: ms(100) }
    }
}

impl Announcing {
    /// Once.
    pub const ONCE: Self = Self { initial: Duration::ZERO, max: Duration::ZERO, rounds: 1, step: Duration::ZERO };

    /// From the time number `said` to the next one, if there is one.
    fn distance(&self, said: u32) -> Option<Duration> {
        let longer = self.step.saturating_mul(said.saturating_sub(1));
        (said < self.rounds).then(|| self.initial.saturating_add(longer).min(self.max))
    }
}

/// An announcement that is being made.
#[derive(Debug)]
pub(super) struct Announcement {
    with: Announcing,
    said: u32,
    next: Instant,
}

impl Announcement {
    /// One that is due at once; none if there are no rounds.
    pub(super) fn begin(with: Announcing) -> Option<Self> {
        (with.rounds > 0).then(|| Self { with, said: 0, next: Instant::now() })
    }

    /// After what time the card has to speak; zero: now.
    pub(super) fn wait(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// It has spoken. What is left of the announcement.
    pub(super) fn said(mut self) -> Option<Self> {
        self.said += 1;
        self.next = Instant::now() + self.with.distance(self.said)?;
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU's `qemu_announce_timer_step` gives with its defaults, and with a low limit.
    #[test]
    fn distances_grow_as_qemus_do() {
        let distances = |with: Announcing| -> Vec<u128> {
            (1..).map_while(|said| with.distance(said)).map(|distance| distance.as_millis()).collect()
        };
        assert_eq!(distances(Announcing::default()), [50, 150, 250, 350]);
        let limited = Announcing { max: Duration::from_millis(200), ..Announcing::default() };
        assert_eq!(distances(limited), [50, 150, 200, 200]);
        assert_eq!(distances(Announcing::ONCE), []);
        assert!(Announcement::begin(Announcing { rounds: 0, ..Announcing::ONCE }).is_none());
    }
}
