//! Second-level page tables of a guest that arrives are filled while it still runs at its source.
//!
//! KVM takes a fault at a guest's first access to each page, or to each 2 MiB of a huge page. `KVM_PRE_FAULT_MEMORY` (api.rst,
//! 4.143; Linux 6.11) takes it ahead, without running the guest. What is filled stays as long as the memory slots do: the tables
//! belong to the machine, not to a vCPU and its registers (`kvm_tdp_mmu_alloc_root`, arch/x86/kvm/mmu/tdp_mmu.c).

use std::io;
use std::ops::Range;
use std::time::Instant;

use kvm_bindings::{KVM_CAP_PRE_FAULT_MEMORY, kvm_pre_fault_memory};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use crate::kvm::vm::KvmVm;
use crate::memory::{LOW_RAM_MAX, PAGE_SIZE, Ram};

/// The request's number, which the macro makes as a public function without documentation.
mod request {
    #![allow(missing_docs, unreachable_pub)]
    use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
    vmm_sys_util::ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);
}

/// About as many pages of one call at most: a huge page, so that time is looked at in between.
const LONGEST: u64 = (2 << 20) / PAGE_SIZE;
/// The first page of the block that the guest does not see right behind the page before.
const ABOVE_THE_HOLE: u64 = LOW_RAM_MAX / PAGE_SIZE;

/// Which pages of a machine are in its second-level tables.
#[derive(Debug)]
pub struct Populated {
    ram: Ram,
    /// Bit 0 of word 0 is the block's first page; empty where KVM does not populate.
    done: Vec<u64>,
}

/// What came of pages that were to be populated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Something else is to be done first.
    NotNow,
    /// Shadow paging, or no memory: the guest takes its faults when it runs.
    Never,
}

impl Populated {
    /// None of the pages of `vm`, whose guest has not run.
    pub fn new(vm: &KvmVm) -> Self {
        let can = vm.fd().check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY.into()) > 0;
        let words = if can { (vm.ram().len() / PAGE_SIZE).div_ceil(64) as usize } else { 0 };
        Self { ram: vm.ram().clone(), done: vec![0; words] }
    }

    /// Populates pages that have been written since the last time, until the moment `until`. Others stay as they are: a page that was
    /// only read would be mapped as a page of zeros, and fault again when it is written.
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

    /// Calls `populate` with each run of pages that were written and are not populated, until it is done with one not.
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

/// Populates bytes from a guest's address on.
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

    /// What is populated, in calls each of which is one stretch for the guest.
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
        // Interrupted, it goes on where it was.
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

    /// By the counters of KVM's machine, where it has these tables: the pages that they hold.
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
