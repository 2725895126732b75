//! How each page was sent the last time. A page costs 9 bytes or 4104, so what the pending pages will cost can only be
//! told by what they were.

use super::bitmap::Bitmap;

/// Pages written to the stream so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCount {
    /// Sent whole.
    pub normal: u64,
    /// Sent as zero.
    pub zero: u64,
}

/// How a page was sent the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastSent {
    /// It was not sent yet.
    Never,
    /// As zero.
    Zero,
    /// Whole.
    Normal,
}

/// One value for each way in which pages were sent the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ByHistory<T> {
    /// For [`LastSent::Never`].
    pub never: T,
    /// For [`LastSent::Zero`].
    pub zero: T,
    /// For [`LastSent::Normal`].
    pub normal: T,
}

impl PageCount {
    /// Pages of both kinds.
    pub fn total(self) -> u64 {
        self.normal + self.zero
    }

    /// The pages that came after `earlier`, a count of the same stream.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { normal: self.normal.saturating_sub(earlier.normal), zero: self.zero.saturating_sub(earlier.zero) }
    }
}

impl<T> ByHistory<T> {
    /// The value for pages that were last sent so.
    pub fn of(&mut self, last: LastSent) -> &mut T {
        match last {
            LastSent::Never => &mut self.never,
            LastSent::Zero => &mut self.zero,
            LastSent::Normal => &mut self.normal,
        }
    }
}

impl ByHistory<u64> {
    /// Pages of all histories.
    pub fn total(self) -> u64 {
        self.never + self.zero + self.normal
    }
}

impl ByHistory<PageCount> {
    /// Pages of all histories.
    pub fn total(self) -> PageCount {
        let Self { never, zero, normal } = self;
        PageCount { normal: never.normal + zero.normal + normal.normal, zero: never.zero + zero.zero + normal.zero }
    }
}

/// The history of one block's pages.
#[derive(Debug)]
pub(super) struct History {
    sent: Bitmap,
    zero: Bitmap,
}

impl History {
    /// No page of the block was sent.
    pub(super) fn new(pages: u64) -> Self {
        Self { sent: Bitmap::empty(pages), zero: Bitmap::empty(pages) }
    }

    /// Notes that `page` is sent as `zero` or whole now. Returns how it was sent before.
    pub(super) fn note(&mut self, page: u64, zero: bool) -> LastSent {
        let was_zero = self.zero.set(page, zero);
        match (self.sent.set(page, true), was_zero) {
            (false, _) => LastSent::Never,
            (true, true) => LastSent::Zero,
            (true, false) => LastSent::Normal,
        }
    }

    /// Adds the pages of `pending`, a set of the same block, to `counts`.
    pub(super) fn count(&self, pending: &Bitmap, counts: &mut ByHistory<u64>) {
        let (all, sent, zero) = (pending.count(), pending.count_common(&self.sent), pending.count_common(&self.zero));
        counts.never += all - sent;
        counts.zero += zero;
        counts.normal += sent - zero;
    }
}
