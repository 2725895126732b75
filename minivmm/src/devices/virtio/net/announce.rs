//! Times at which a card announces itself to the network: QEMU's `AnnounceParameters` (qapi/net.json) and its timer
//! (net/announce.c).

use std::time::{Duration, Instant};

/// Number and intervals of announcements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcing {
    /// Interval between the first and the second one.
    pub initial: Duration,
    /// Longest interval.
    pub max: Duration,
    /// Number of announcements.
    pub rounds: u32,
    /// Growth of each further interval.
    pub step: Duration,
}

impl Default for Announcing {
    /// Defaults of QEMU's migrations (migration/options.c).
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { initial: ms(50), max: ms(550), rounds: 5, step: ms(100) }
    }
}

impl Announcing {
    /// A single announcement.
    pub const ONCE: Self = Self { initial: Duration::ZERO, max: Duration::ZERO, rounds: 1, step: Duration::ZERO };

    /// Interval after announcement number `sent`, if there is another one.
    fn distance(&self, sent: u32) -> Option<Duration> {
        let longer = self.step.saturating_mul(sent.saturating_sub(1));
        (sent < self.rounds).then(|| self.initial.saturating_add(longer).min(self.max))
    }
}

/// Announcements that are under way.
#[derive(Debug)]
pub(super) struct Announcement {
    with: Announcing,
    sent: u32,
    next: Instant,
}

impl Announcement {
    /// Begins with one that is due at once; `None` if there are no rounds.
    pub(super) fn begin(with: Announcing) -> Option<Self> {
        (with.rounds > 0).then(|| Self { with, sent: 0, next: Instant::now() })
    }

    /// Time until the next announcement; zero if it is due.
    pub(super) fn wait(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Records an announcement; returns what is left.
    pub(super) fn record_sent(mut self) -> Option<Self> {
        self.sent += 1;
        self.next = Instant::now() + self.with.distance(self.sent)?;
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that QEMU's `qemu_announce_timer_step` gives with its defaults, and with a low limit.
    #[test]
    fn distances_grow_as_qemus_do() {
        let distances = |with: Announcing| -> Vec<u128> {
            (1..).map_while(|sent| with.distance(sent)).map(|distance| distance.as_millis()).collect()
        };
        assert_eq!(distances(Announcing::default()), [50, 150, 250, 350]);
        let limited = Announcing { max: Duration::from_millis(200), ..Announcing::default() };
        assert_eq!(distances(limited), [50, 150, 200, 200]);
        assert_eq!(distances(Announcing::ONCE), []);
        assert!(Announcement::begin(Announcing { rounds: 0, ..Announcing::ONCE }).is_none());
    }
}
