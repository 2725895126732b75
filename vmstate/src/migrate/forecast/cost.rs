//! What the pending pages will cost on the wire. A page sent whole takes 456 times the bytes of a zero page, so an
//! average over both kinds says nothing: it is the history of the very pages that are pending that counts.

use crate::ram::{ByHistory, NORMAL_RECORD, PageCount, ZERO_RECORD};

/// How many of the pages with one history were zero when they were sent again. Each round halves the weight of those
/// before it: a guest that has begun to fill its memory shows within a few rounds.
#[derive(Clone, Copy, Debug, Default)]
struct Outcomes {
    zero: f64,
    all: f64,
}

/// Cost of pages by how they were sent the last time.
#[derive(Debug, Default)]
pub(crate) struct PageCosts {
    recent: ByHistory<Outcomes>,
    /// Pages sent until the last round ended.
    counted: ByHistory<PageCount>,
}

impl PageCosts {
    /// A round is over; `sent` are all pages sent since the migration began.
    pub(crate) fn round_over(&mut self, sent: ByHistory<PageCount>) {
        let Self { recent, counted } = self;
        *recent = ByHistory {
            never: recent.never.halved().and(sent.never.since(counted.never)),
            zero: recent.zero.halved().and(sent.zero.since(counted.zero)),
            normal: recent.normal.halved().and(sent.normal.since(counted.normal)),
        };
        *counted = sent;
    }

    /// Expected bytes of `pending` pages, when `sent` are all pages sent since the migration began.
    pub(crate) fn bytes(&self, pending: ByHistory<u64>, sent: ByHistory<PageCount>) -> f64 {
        let Self { recent, counted } = self;
        recent.never.and(sent.never.since(counted.never)).bytes(pending.never)
            + recent.zero.and(sent.zero.since(counted.zero)).bytes(pending.zero)
            + recent.normal.and(sent.normal.since(counted.normal)).bytes(pending.normal)
    }
}

impl Outcomes {
    fn halved(self) -> Self {
        Self { zero: self.zero / 2.0, all: self.all / 2.0 }
    }

    fn and(self, pages: PageCount) -> Self {
        Self { zero: self.zero + pages.zero as f64, all: self.all + pages.total() as f64 }
    }

    /// As long as no page with this history was sent again, each counts as whole: the guest has written to it, and most
    /// writes leave more than zeros.
    fn bytes(self, pages: u64) -> f64 {
        let zero = if self.all > 0.0 { self.zero / self.all } else { 0.0 };
        pages as f64 * (zero * ZERO_RECORD as f64 + (1.0 - zero) * NORMAL_RECORD as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(normal: u64, zero: u64) -> PageCount {
        PageCount { normal, zero }
    }

    #[test]
    fn zero_pages_of_the_first_round_do_not_cheapen_what_the_guest_writes() {
        let mut costs = PageCosts::default();
        let sent = ByHistory { never: count(6_656, 124_416), ..ByHistory::default() };
        costs.round_over(sent);
        let pending = ByHistory { never: 0, zero: 100, normal: 3000 };
        assert_eq!(costs.bytes(pending, sent), 3100.0 * 4104.0);
    }

    #[test]
    fn pages_not_sent_yet_cost_what_those_before_them_did() {
        let costs = PageCosts::default();
        let pending = ByHistory { never: 1000, ..ByHistory::default() };
        assert_eq!(costs.bytes(pending, ByHistory::default()), 1000.0 * 4104.0);
        let sent = ByHistory { never: count(10, 30), ..ByHistory::default() };
        assert_eq!(costs.bytes(pending, sent), 250.0 * 4104.0 + 750.0 * 9.0);
    }

    #[test]
    fn recent_rounds_tell_what_written_pages_turn_into() {
        let mut costs = PageCosts::default();
        let mut sent = ByHistory { never: count(500, 500), ..ByHistory::default() };
        costs.round_over(sent);
        // Of the zero pages that the guest wrote to, three quarters are zero again; the others are not.
        (sent.zero, sent.normal) = (count(100, 300), count(400, 0));
        costs.round_over(sent);
        let pending = ByHistory { never: 0, zero: 80, normal: 10 };
        assert_eq!(costs.bytes(pending, sent), 60.0 * 9.0 + 30.0 * 4104.0);
        // It changes its ways: what was before counts half, then a quarter of what comes.
        for _ in 0..2 {
            sent.zero.normal += 400;
            costs.round_over(sent);
        }
        let zero = 0.25 * 300.0 / (0.25 * 400.0 + 0.5 * 400.0 + 400.0);
        let expected = 80.0 * (zero * 9.0 + (1.0 - zero) * 4104.0) + 10.0 * 4104.0;
        assert!((costs.bytes(pending, sent) - expected).abs() < 1e-6);
    }
}
