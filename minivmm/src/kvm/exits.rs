//! Counters of each vCPU's exits to this process, by reason. Exits that KVM handles itself, such as interrupts, halts and page
//! faults, are not counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why `KVM_RUN` returned (api.rst, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The guest read a port. A string instruction counts once for all accesses that KVM passes together.
    PortRead,
    /// The guest wrote a port; counted like reads.
    PortWrite,
    /// The guest read a device's memory.
    MmioRead,
    /// The guest wrote a device's memory.
    MmioWrite,
    /// A signal came, for a pause, the throttle or a request; or an application processor was started.
    Interrupted,
    /// The guest's CPU shut down (triple fault).
    Shutdown,
    /// Any other reason, at which a vCPU stops.
    Failed,
}

impl Reason {
    /// All reasons, in the order of their values.
    pub const ALL: [Self; 7] = [
        Self::PortRead,
        Self::PortWrite,
        Self::MmioRead,
        Self::MmioWrite,
        Self::Interrupted,
        Self::Shutdown,
        Self::Failed,
    ];

    /// Name of the reason in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PortRead => "port_read",
            Self::PortWrite => "port_write",
            Self::MmioRead => "mmio_read",
            Self::MmioWrite => "mmio_write",
            Self::Interrupted => "interrupted",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
        }
    }
}

/// Counters of one vCPU; clones share them.
#[derive(Clone, Debug, Default)]
pub struct ExitCounters(Arc<[AtomicU64; Reason::ALL.len()]>);

impl ExitCounters {
    /// Counts one exit. Only the vCPU's thread counts, so no locked instruction is needed.
    pub(super) fn count(&self, reason: Reason) {
        let counter = &self.0[reason as usize];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Number of exits so far for this reason; callable from any thread.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_and_a_name_of_its_own() {
        let counters = ExitCounters::default();
        for (times, reason) in (1..).zip(Reason::ALL) {
            (0..times).for_each(|_| counters.count(reason));
        }
        assert_eq!(Reason::ALL.map(|reason| counters.clone().get(reason)), [1, 2, 3, 4, 5, 6, 7]);
        let mut names = Reason::ALL.map(Reason::as_str);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }
}
