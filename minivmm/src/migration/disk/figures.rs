//! Figures of a disk whose content is sent: the sender counts, and a query reads the counts at any time without a lock.

use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::devices::virtio::blk::GRANULE;

/// Figures of the content of disks, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFigures {
    /// Size of the disks.
    pub total: u64,
    /// Data sent, without zeros and holes; data that was sent twice counts twice.
    pub transferred: u64,
    /// Granules still to be sent, without those changed since the round began.
    pub remaining: u64,
}

impl Add for DiskFigures {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            total: self.total.saturating_add(other.total),
            transferred: self.transferred.saturating_add(other.transferred),
            remaining: self.remaining.saturating_add(other.remaining),
        }
    }
}

/// Counts of the sender of one disk, which alone changes them.
#[derive(Debug)]
pub struct DiskCount {
    /// Size of the disk in bytes.
    total: u64,
    /// Bytes of data sent.
    transferred: AtomicU64,
    /// Granules still to be sent.
    pending: AtomicU64,
}

impl DiskCount {
    pub(super) fn new(total: u64) -> Self {
        Self { total, transferred: AtomicU64::new(0), pending: AtomicU64::new(0) }
    }

    /// Figures at present.
    pub fn figures(&self) -> DiskFigures {
        DiskFigures {
            total: self.total,
            transferred: self.transferred.load(Ordering::Relaxed),
            remaining: self.pending().saturating_mul(GRANULE).min(self.total),
        }
    }

    /// Granules still to be sent.
    pub(super) fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Counts granules that are to be sent.
    pub(super) fn want(&self, granules: u64) {
        self.pending.fetch_add(granules, Ordering::Relaxed);
    }

    /// Counts a granule that was to be sent, and is.
    pub(super) fn done(&self) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts data that is sent.
    pub(super) fn send(&self, bytes: u64) {
        self.transferred.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Sets the counts to those of a disk of which nothing is sent, and nothing is known to be pending.
    pub(super) fn reset(&self) {
        self.transferred.store(0, Ordering::Relaxed);
        self.pending.store(0, Ordering::Relaxed);
    }
}
