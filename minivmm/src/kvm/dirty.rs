//! KVM's dirty log of pages written by vCPUs, in pages of the RAM block.
//!
//! With manual protection a reported page stays writable and dirty until it is cleared. Only reported pages may be cleared: a
//! bit that was set after the report belongs to the next one. So the report is kept here.

use kvm_bindings::{kvm_clear_dirty_log, kvm_dirty_log};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmstate::ram::CLEAR_PAGES;

use crate::error::{Error, Result};
use crate::kvm::vm::KvmVm;
use crate::memory::PAGE_SIZE;

/// Numbers of the requests. The macro makes public functions without documentation.
mod request {
    #![allow(missing_docs, unreachable_pub)]
    use kvm_bindings::{KVMIO, kvm_clear_dirty_log, kvm_dirty_log};
    vmm_sys_util::ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
    vmm_sys_util::ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
}

// Alignment that KVM_CLEAR_DIRTY_LOG requires.
const _: () = assert!(CLEAR_PAGES.is_multiple_of(64));

/// Dirty log that is being recorded, from [`start`](Self::start) to [`stop`](Self::stop).
#[derive(Debug)]
pub struct DirtyLog {
    /// The last report; with manual protection, the part of it that is not cleared yet.
    reported: Vec<u64>,
    manual_protect: bool,
    /// Whether the log was read since the start: its first report may have pages that were not written.
    read: bool,
}

impl DirtyLog {
    /// Starts recording. All pages may be reported once as written.
    ///
    /// # Errors
    /// [`Error::Kvm`]; nothing is recorded then.
    pub fn start(vm: &KvmVm) -> Result<Self> {
        vm.start_dirty_log()?;
        let words = (vm.ram().len() / PAGE_SIZE).div_ceil(64);
        Ok(Self { reported: vec![0; words as usize], manual_protect: vm.manual_protect(), read: false })
    }

    /// ORs the pages that were written since they were last cleared (without manual protection: reported) into `words`; bit 0
    /// of word 0 is the block's first page.
    ///
    /// # Errors
    /// [`Error::Kvm`].
    ///
    /// # Panics
    /// If `words` is shorter than one bit a page.
    pub fn sync(&mut self, vm: &KvmVm, words: &mut [u64]) -> Result<()> {
        let mut pages = 0;
        for (slot, stretch) in vm.slots() {
            // Both stretches begin at a whole word: 3 GiB is 12288 words of 64 pages.
            let first = (stretch.offset / PAGE_SIZE / 64) as usize;
            let here = stretch.len / PAGE_SIZE;
            let reported = &mut self.reported[first..][..here.div_ceil(64) as usize];
            get_pages(vm, slot, here, reported)?;
            for (word, &reported) in words[first..].iter_mut().zip(&*reported) {
                *word |= reported;
                pages += u64::from(reported.count_ones());
            }
        }
        if std::mem::replace(&mut self.read, true) {
            vm.add_reported_pages(pages);
        }
        Ok(())
    }

    /// Clears at least the pages `first..first + count` of the last report, so that later writes are reported again. Must be
    /// called before the pages are read.
    ///
    /// # Errors
    /// [`Error::Kvm`].
    pub fn clear(&mut self, vm: &KvmVm, first: u64, count: u64) -> Result<()> {
        if !self.manual_protect || count == 0 {
            return Ok(());
        }
        for (slot, stretch) in vm.slots() {
            let (start, end) = (stretch.offset / PAGE_SIZE, (stretch.offset + stretch.len) / PAGE_SIZE);
            let mut page = first.max(start) / CLEAR_PAGES * CLEAR_PAGES;
            while page < end.min(first.saturating_add(count)) {
                let next = end.min(page + CLEAR_PAGES);
                let bits = &mut self.reported[(page / 64) as usize..next.div_ceil(64) as usize];
                if bits.iter().any(|&word| word != 0) {
                    clear_pages(vm, slot, page - start, next - page, bits)?;
                    bits.fill(0);
                }
                page = next;
            }
        }
        Ok(())
    }

    /// Ends recording.
    pub fn stop(self, vm: &KvmVm) {
        vm.stop_dirty_log();
    }
}

/// Reads the log of a slot of `pages` pages, without the bitmap that `kvm-ioctls` would allocate at each call.
fn get_pages(vm: &KvmVm, slot: u32, pages: u64, bits: &mut [u64]) -> Result<()> {
    assert!(bits.len() as u64 * 64 >= pages, "one bit a page");
    let request = kvm_dirty_log {
        slot,
        padding1: 0,
        __bindgen_anon_1: kvm_bindings::kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: bits.as_mut_ptr().cast() },
    };
    // SAFETY: the descriptor is a VM's; the kernel writes a bit for each page of the slot, up to the end of the last word, and `bits`
    // has them.
    match unsafe { ioctl_with_ref(vm.fd(), request::KVM_GET_DIRTY_LOG(), &request) } {
        0 => Ok(()),
        _ => Err(Error::Kvm { call: "KVM_GET_DIRTY_LOG", source: std::io::Error::last_os_error() }),
    }
}

/// Clears pages of a slot; `first` and `count` are relative to the slot.
fn clear_pages(vm: &KvmVm, slot: u32, first: u64, count: u64, bits: &mut [u64]) -> Result<()> {
    assert!(bits.len() as u64 * 64 >= count, "one bit a page");
    let request = kvm_clear_dirty_log {
        slot,
        num_pages: count as u32,
        first_page: first,
        __bindgen_anon_1: kvm_bindings::kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: bits.as_mut_ptr().cast() },
    };
    // SAFETY: the descriptor is a VM's; the kernel reads `count` bits from `bits`, which has them.
    match unsafe { ioctl_with_ref(vm.fd(), request::KVM_CLEAR_DIRTY_LOG(), &request) } {
        0 => Ok(()),
        _ => Err(Error::Kvm { call: "KVM_CLEAR_DIRTY_LOG", source: std::io::Error::last_os_error() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{LOW_RAM_MAX, Ram};

    /// RAM below and above 4 GiB is two slots. The second one refuses the flag, because another slot has its place; the first
    /// one must not record then, and KVM reports that with ENOENT (api.rst, 4.8).
    #[test]
    fn a_dirty_log_that_cannot_start_records_in_no_slot() {
        const SECOND: u32 = 1;
        const OTHER: u32 = 7;
        let kvm = match crate::kvm::open() {
            Ok(kvm) => kvm,
            Err(error) => return vmstate_lab::skip::skip(error),
        };
        let ram = Ram::new(LOW_RAM_MAX + PAGE_SIZE).unwrap();
        let vm = KvmVm::new(kvm, &ram).unwrap();
        let recorded = || vm.fd().get_dirty_log(0, LOW_RAM_MAX as usize).map(drop).map_err(|error| error.errno());
        let place = |slot, memory_size| {
            let above = ram.stretches().nth(1).unwrap();
            let region = kvm_bindings::kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: above.guest_address,
                memory_size,
                userspace_addr: above.host_address,
            };
            // SAFETY: the range is the RAM's own mapping, which outlives `vm`, and there is no vCPU.
            unsafe { vm.fd().set_user_memory_region(region) }.unwrap();
        };
        DirtyLog::start(&vm).unwrap().stop(&vm);
        assert_eq!(recorded(), Err(libc::ENOENT));

        place(SECOND, 0);
        place(OTHER, PAGE_SIZE);
        DirtyLog::start(&vm).unwrap_err();
        assert_eq!(recorded(), Err(libc::ENOENT), "the first slot must not record");

        place(OTHER, 0);
        DirtyLog::start(&vm).unwrap();
        assert_eq!(recorded(), Ok(()));
    }
}
