//! The numbers of packets that have arrived: a source numbers the packets of all its channels together, so a gap is a packet that
//! has not arrived yet.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};

/// The most numbers beyond a gap. A channel's socket holds some thousands of packets that only list zero pages.
const BEYOND_MAX: usize = 1 << 17;

/// The numbers that have arrived.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// All numbers below this one have arrived.
    next: u64,
    beyond: BTreeSet<u64>,
}

impl Numbers {
    /// True if no number before the last one is missing.
    pub(super) fn is_gapless(&self) -> bool {
        self.beyond.is_empty()
    }

    /// Records the arrival of a number.
    ///
    /// # Errors
    /// `Malformed` if the number has arrived before, or too many numbers before it are missing.
    pub(super) fn take(&mut self, number: u64) -> Result<()> {
        if number == self.next {
            self.next = self.next.saturating_add(1);
            while self.beyond.remove(&self.next) {
                self.next = self.next.saturating_add(1);
            }
            return Ok(());
        }
        let malformed = |message: String| Err(Error::new(ErrorKind::Malformed, message));
        if self.beyond.len() == BEYOND_MAX {
            return malformed(format!("packet {number} arrived, and packet {} did not", self.next));
        }
        if number < self.next || !self.beyond.insert(number) {
            return malformed(format!(
                "packet {number} arrived twice: a channel of another migration, or a wrong count"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_any_order_and_once() {
        let mut numbers = Numbers::default();
        for (number, gapless) in [(0, true), (2, false), (4, false), (3, false), (1, true), (5, true)] {
            numbers.take(number).unwrap();
            assert_eq!(numbers.is_gapless(), gapless, "{number}");
        }
        numbers.take(8).unwrap();
        for number in [0, 5, 8] {
            assert_eq!(numbers.take(number).unwrap_err().kind(), ErrorKind::Malformed, "{number}");
        }
        numbers.take(u64::MAX).unwrap();
        for number in 0..BEYOND_MAX as u64 - 2 {
            numbers.take(10 + number).unwrap();
        }
        assert!(numbers.take(u64::MAX - 1).unwrap_err().message().contains("packet 6 did not"));
        numbers.take(6).unwrap();
    }
}
