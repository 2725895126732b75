//! Fills the second-level page tables of an arriving guest while it still runs at its source.
//!
//! Without this, KVM takes a fault at the guest's first access to each page, or to each 2 MiB of a huge page.
//! `KVM_PRE_FAULT_MEMORY` (api.rst, 4.143; Linux 6.11) takes the fault in advance, without running the guest. The entries stay
//! as long as the memory slots: the tables belong to the machine, not to a vCPU and its registers (`kvm_tdp_mmu_alloc_root`,
//! arch/x86/kvm/mmu/tdp_mmu.c).

use std::io;
use std::ops::Range;
use std::time::Instant;

use kvm_bindings::{KVM_CAP_PRE_FAULT_MEMORY, kvm_pre_fault_memory};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use crate::kvm::vm::KvmVm;
use crate::memory::{LOW_RAM_MAX, PAGE_SIZE, Ram};

/// Number of the request. The macro makes a public function without documentation.
mod request {
    #![allow(missing_docs, unreachable_pub)]
    use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
    vmm_sys_util::ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);
}

/// Most pages in one call, a huge page: the time is checked between calls.
const LONGEST: u64 = (2 << 20) / PAGE_SIZE;
/// First page of the block above the hole: its guest address does not follow that of the page before.
const ABOVE_THE_HOLE: u64 = LOW_RAM_MAX / PAGE_SIZE;

/// Record of the pages that are in a machine's second-level tables.
#[derive(Debug)]
pub struct Populated {
    ram: Ram,
    /// Bitmap of populated pages; bit 0 of word 0 is the block's first page; empty if KVM cannot populate.
    done: Vec<u64>,
}

/// Result of populating pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// KVM has to do something else first.
    NotNow,
    /// KVM cannot: shadow paging, or no memory. The guest takes its faults when it runs.
    Never,
}

impl Populated {
    /// Begins with no page of `vm`, whose guest has not run.
    pub fn new(vm: &KvmVm) -> Self {
        let can = vm.fd().check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY.into()) > 0;
        let words = if can { (vm.ram().len() / PAGE_SIZE).div_ceil(64) as usize } else { 0 };
        Self { ram: vm.ram().clone(), done: vec![0; words] }
    }

    /// Populates pages that were written since the last call, until the time `until`. Other pages are left out: a page that was
    /// only read would be mapped as a zero page, and fault again when it is written.
    pub fn catch_up(&mut self, vcpu: &VcpuFd, until: Instant) {
        let ram = self.ram.clone();
        self.each_run(|pages| {
            if Instant::now() >= until {
                return Outcome::NotNow;
            }
            ram.guest_address(pages.start * PAGE_SIZE)
                .map_or(Outcome::Never, |address| populate(vcpu, address, (pages.end - pages.start) * PAGE_SIZE))
        });
    }

    /// Calls `populate` with each run of pages that were written and are not populated, until a call does not succeed.
    fn each_run(&mut self, mut populate: impl FnMut(Range<u64>) -> Outcome) {
        let Self { ram, done } = self;
        let mut run = 0..0;
        let mut take = |run: Range<u64>, done: &mut [u64]| {
            let outcome = if run.is_empty() { Outcome::Done } else { populate(run.clone()) };
            if outcome == Outcome::Done {
                run.for_each(|page| done[(page / 64) as usize] |= 1 << (page % 64));
            }
            outcome
        };
        let mut outcome = Outcome::Done;
        ram.see_device_writes(|first, written| {
            let Some(&populated) = done.get((first / 64) as usize) else { return false };
            let mut left = written & !populated;
            while left != 0 && outcome == Outcome::Done {
                let begin = u64::from(left.trailing_zeros());
                let end = begin + u64::from((left >> begin).trailing_ones());
                left &= u64::MAX.checked_shl(end as u32).unwrap_or(0);
                let found = first + begin..first + end;
                if run.end == found.start && found.start - run.start < LONGEST && found.start != ABOVE_THE_HOLE {
                    run.end = found.end;
                } else {
                    outcome = take(std::mem::replace(&mut run, found), done);
                }
            }
            outcome == Outcome::Done
        });
        if outcome == Outcome::Done {
            outcome = take(run, done);
        }
        if outcome == Outcome::Never {
            done.clear();
        }
    }
}

/// Populates `size` bytes from a guest address on.
fn populate(vcpu: &VcpuFd, address: u64, size: u64) -> Outcome {
    let mut range = kvm_pre_fault_memory { gpa: address, size, ..Default::default() };
    // SAFETY: the descriptor is a vCPU's; the kernel reads and writes this structure, and no memory of the guest.
    match unsafe { ioctl_with_mut_ref(vcpu, request::KVM_PRE_FAULT_MEMORY(), &mut range) } {
        0 => Outcome::Done,
        _ => match io::Error::last_os_error().raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN) => Outcome::NotNow,
            _ => Outcome::Never,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ABOVE: u64 = 3;
    const PAGES: u64 = ABOVE_THE_HOLE + ABOVE;

    fn writing(ram: &Ram, pages: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
        pages.into_iter().inspect(|page| ram.write(page * PAGE_SIZE + 7, &[1]).unwrap()).collect()
    }

    /// Returns the pages that are populated in `calls` calls, each of which gets one stretch of guest memory.
    fn populated(tables: &mut Populated, calls: usize) -> BTreeSet<u64> {
        let (mut all, mut left) = (BTreeSet::new(), calls);
        tables.each_run(|run| {
            if left == 0 {
                return Outcome::NotNow;
            }
            left -= 1;
            assert!(!run.is_empty() && run.end - run.start < LONGEST + 64, "{run:?}");
            assert!(run.end <= ABOVE_THE_HOLE || run.start >= ABOVE_THE_HOLE, "{run:?}");
            run.for_each(|page| assert!(all.insert(page), "{page} twice"));
            Outcome::Done
        });
        all
    }

    #[test]
    fn what_was_written_is_populated_once_and_nothing_else_is() {
        let ram = Ram::new(PAGES * PAGE_SIZE).unwrap();
        let mut tables = Populated { ram: ram.clone(), done: vec![0; PAGES.div_ceil(64) as usize] };
        assert_eq!(populated(&mut tables, 9), BTreeSet::new());
        let first = [3, 63, 64, 200].into_iter().chain(1000..1000 + 3 * LONGEST).chain(PAGES - ABOVE - 2..PAGES - 1);
        let first = writing(&ram, first);
        assert_eq!(populated(&mut tables, usize::MAX), first);
        let second: BTreeSet<_> = &writing(&ram, (900..1100).chain([PAGES - 1])) - &first;
        // After an interruption it continues where it stopped.
        let mut later = populated(&mut tables, 1);
        assert!(!later.is_empty() && later != second);
        later.append(&mut populated(&mut tables, usize::MAX));
        assert_eq!(later, second);
    }

    #[test]
    fn a_host_that_refuses_is_not_asked_again() {
        let ram = Ram::new(1 << 20).unwrap();
        let mut tables = Populated { ram: ram.clone(), done: vec![0; 4] };
        writing(&ram, [1, 9]);
        let mut asked = 0;
        for _ in 0..2 {
            tables.each_run(|_| {
                asked += 1;
                Outcome::Never
            });
        }
        assert_eq!(asked, 1);
    }

    /// The counters of KVM's machine show the pages, if it has these tables.
    #[test]
    fn kvm_takes_the_pages_without_a_guest_that_runs() {
        let kvm = match crate::kvm::open() {
            Ok(kvm) => kvm,
            Err(error) => return vmstate_lab::skip::skip(error),
        };
        let ram = Ram::new(4 << 20).unwrap();
        let vm = KvmVm::new(kvm, &ram).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut tables = Populated::new(&vm);
        let can = !tables.done.is_empty();
        writing(&ram, 0..100);
        tables.catch_up(vcpu.fd(), Instant::now() + std::time::Duration::from_secs(60));
        let populated = tables.done.iter().map(|word| word.count_ones()).sum::<u32>();
        assert_eq!(populated, if can { 100 } else { 0 });
    }
}
