//! The bandwidth limit of the rounds, as a debt in bytes that is paid off over time: pure, and exact over each second.

use std::time::Duration;

/// A burst is at most the bytes that the limit allows in this part of a second.
const PIECES_PER_SECOND: u64 = 200;
/// Number of pieces that a late source may catch up on: a busy host wakes it up to 10 ms late. No second then has more than three
/// pieces beyond the limit: one at its beginning, and these. That is 1.5 percent.
const MADE_UP: f64 = 2.0;

/// The bytes that were sent ahead of the limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Bytes of the connection that are or were part of the debt. All count, also those that page channels send between two
    /// calls.
    counted: u64,
    /// The debt in bytes; below zero, by up to [`MADE_UP`] pieces, if the source is late.
    debt: f64,
    at: Duration,
    /// The limit at which the debt is paid off; 0 if there was none.
    bytes_per_second: u64,
}

/// Number of bytes that may be sent at once; at least one.
pub(super) fn piece(bytes_per_second: u64) -> u64 {
    (bytes_per_second / PIECES_PER_SECOND).max(1)
}

impl Pace {
    /// When the next piece may be sent under this limit, which has applied since the last call. The connection has `sent` this
    /// many bytes.
    pub(super) fn due(&mut self, sent: u64, now: Duration, bytes_per_second: u64) -> Duration {
        self.debt += sent.saturating_sub(std::mem::replace(&mut self.counted, sent)) as f64;
        let passed = now.saturating_sub(self.at).as_secs_f64();
        let speed = bytes_per_second as f64;
        // Data sent under another limit was a piece of that limit: it takes as long as under that limit.
        if self.bytes_per_second > 0 {
            self.debt *= speed / self.bytes_per_second as f64;
        }
        self.bytes_per_second = bytes_per_second;
        // So there is no burst after an idle time.
        let most_made_up = MADE_UP * speed / PIECES_PER_SECOND as f64;
        self.debt = (self.debt - passed * speed).max(-most_made_up);
        self.at = now;
        let left = Duration::try_from_secs_f64(self.debt.max(0.0) / speed).unwrap_or(Duration::MAX);
        now.saturating_add(left)
    }

    /// The time of the last call.
    pub(super) fn at(&self) -> Duration {
        self.at
    }

    /// Removes the limit; bytes that were sent ahead of it no longer count.
    pub(super) fn lift(&mut self, sent: u64, now: Duration) {
        *self = Self { counted: sent, at: now, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends as fast as allowed from `from` to `until`; each wait ends up to `late` too late. Records packets with their times.
    fn send(pace: &mut Pace, limit: u64, (from, until): (f64, f64), late: f64, sent: &mut Vec<(f64, u64)>) {
        let (mut now, mut total) = (from, pace.counted);
        while now < until {
            let due = pace.due(total, Duration::from_secs_f64(now), limit).as_secs_f64();
            // A rounding error of a time is not a wait.
            if due > now + 1e-6 {
                now = due + late * (sent.len() % 3) as f64 / 2.0;
                continue;
            }
            total += piece(limit);
            sent.push((now, piece(limit)));
        }
    }

    /// Number of bytes in the second that begins with each packet.
    fn seconds(sent: &[(f64, u64)], until: f64) -> impl Iterator<Item = (f64, u64)> + '_ {
        let whole = sent.iter().enumerate().filter(move |(_, (begin, _))| begin + 1.0 < until);
        whole.map(|(index, &(begin, _))| {
            let within = sent[index..].iter().take_while(|(at, _)| *at < begin + 1.0);
            (begin, within.map(|(_, bytes)| bytes).sum())
        })
    }

    #[test]
    fn each_second_has_the_limit_within_two_percent_and_a_packet() {
        let limits = [1, 2, 7, 199, 201, 1000, 65_536, 1_000_000, 134_217_728, 10_000_000_000];
        for (limit, late) in limits.into_iter().flat_map(|limit| [(limit, 0.001), (limit, 0.008)]) {
            let (mut pace, mut sent) = (Pace::default(), Vec::new());
            send(&mut pace, limit, (0.0, 5.0), late, &mut sent);
            let slack = limit as f64 * 0.02 + piece(limit) as f64;
            for (begin, bytes) in seconds(&sent, 5.0) {
                assert!((bytes as f64 - limit as f64).abs() <= slack, "{bytes} at {begin} s for {limit}");
            }
            let all: u64 = sent.iter().map(|(_, bytes)| bytes).sum();
            assert!(all as f64 >= 5.0 * limit as f64 * 0.98 - slack, "{all} for {limit}");
        }
    }

    #[test]
    fn a_change_holds_at_once_and_a_rest_is_not_made_up_for() {
        let (mut pace, mut sent) = (Pace::default(), Vec::new());
        send(&mut pace, 1_000_000, (0.0, 2.0), 0.0, &mut sent);
        sent.clear();
        send(&mut pace, 10_000, (2.0, 5.0), 0.0, &mut sent);
        for (begin, bytes) in seconds(&sent, 5.0) {
            assert!((9_750..=10_250).contains(&bytes), "{bytes} at {begin} s");
        }
        sent.clear();
        // After ten idle seconds.
        send(&mut pace, 1_000_000, (15.0, 18.0), 0.0, &mut sent);
        for (begin, bytes) in seconds(&sent, 18.0) {
            assert!(bytes <= 1_025_000, "{bytes} at {begin} s");
        }
    }
}
