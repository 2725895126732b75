//! How often each vCPU left the guest for this process, by reason. What KVM answers by itself, such as interrupts, halts and page faults,
//! is not among it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why `KVM_RUN` came back (api.rst, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The guest reads a port. A string instruction counts once for as many accesses as KVM hands over together.
    PortRead,
    /// The guest writes a port; the same.
    PortWrite,
    /// The guest reads memory that is a device's.
    MmioRead,
    /// The guest writes such memory.
    MmioWrite,
    /// A signal, for a pause, a throttle or a request; or an application processor was started.
    Interrupted,
    /// The guest's CPU shut down (triple fault).
    Shutdown,
    /// All others, at which a vCPU stops.
    Failed,
}

impl Reason {
    /// All, in the order of their values.
    pub const ALL: [Self; 7] = [
        Self::PortRead,
        Self::PortWrite,
        Self::MmioRead,
        Self::MmioWrite,
        Self::Interrupted,
        Self::Shutdown,
        Self::Failed,
    ];

    /// As in metrics.
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

/// The counters of one vCPU; clones are the same counters.
#[derive(Clone, Debug, Default)]
pub struct ExitCounters(Arc<[AtomicU64; Reason::ALL.len()]>);

impl ExitCounters {
    /// Counts one. Only the vCPU's thread does, so that no locked instruction is needed.
    pub(super) fn count(&self, reason: Reason) {
        let counter = &self.0[reason as usize];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Exits so far for this reason; from any thread.
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
