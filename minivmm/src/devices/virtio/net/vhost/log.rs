//! Dirty log of pages that the kernel wrote, in the format of vhost (linux/vhost.h, VHOST_SET_LOG_BASE): bit n % 8 of byte n /
//! 8 is the page of 4096 bytes at guest address 4096 × n. On a little-endian host that is bit n % 64 of word n / 64.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::{PAGE_SIZE, Ram};

/// One bit for each page up to the end of guest memory, the hole below 4 GiB included.
#[derive(Debug)]
pub(super) struct Log(Box<[AtomicU64]>);

const _: () = assert!(cfg!(target_endian = "little"), "the kernel writes bytes of little-endian words");

impl Log {
    /// Makes a log without set bits.
    pub(super) fn of(ram: &Ram) -> Self {
        let end = ram.stretches().map(|stretch| stretch.guest_address + stretch.len).max().unwrap_or(0);
        Self((0..end.div_ceil(64 * PAGE_SIZE)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Address of the log in this process, which does not change.
    pub(super) fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// Clears each word that has set bits, and calls `take` with its number and its bits. The kernel sets a bit after it has
    /// written to the page (`vhost_log_write`, drivers/vhost/vhost.c): so a later read of the page sees the write, or the bit
    /// is set again later.
    pub(super) fn take(&self, mut take: impl FnMut(usize, u64)) {
        for (index, word) in self.0.iter().enumerate() {
            // Most words are zero, and are only read.
            if word.load(Ordering::Relaxed) != 0 {
                take(index, word.swap(0, Ordering::SeqCst));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn set(&self, guest_address: u64) {
        let page = guest_address / PAGE_SIZE;
        self.0[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::SeqCst);
    }
}
