//! The record of pages that the kernel wrote, in the form that it has for vhost (linux/vhost.h, VHOST_SET_LOG_BASE): bit n % 8 of byte
//! n / 8 is the page of 4096 bytes at the guest's address 4096 × n. On a little-endian host that is bit n % 64 of word n / 64.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::{PAGE_SIZE, Ram};

/// One bit for each page up to the end of guest memory, the hole below 4 GiB included.
#[derive(Debug)]
pub(super) struct Log(Box<[AtomicU64]>);

const _: () = assert!(cfg!(target_endian = "little"), "words are the kernel's bytes");

impl Log {
    /// With no bit set.
    pub(super) fn of(ram: &Ram) -> Self {
        let end = ram.stretches().map(|stretch| stretch.guest_address + stretch.len).max().unwrap_or(0);
        Self((0..end.div_ceil(64 * PAGE_SIZE)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Where this process sees it; the same as long as it lives.
    pub(super) fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// Calls `take` with each word that has bits, and its number, and clears it. The kernel sets a bit after it has written to the page
    /// (`vhost_log_write`, drivers/vhost/vhost.c), so whoever reads the page after this reads what was written, or the bit comes later.
    pub(super) fn take(&self, mut take: impl FnMut(usize, u64)) {
        for (index, word) in self.0.iter().enumerate() {
            // Most are zero, and are not written to.
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
