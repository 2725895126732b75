//! Actions of the guest on its whole machine, as flags, however often the guest repeats them. Each machine has its own, so that
//! none reaches the machine after a reset.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::kvm::thread::Halt;
use crate::sync::lock;
use crate::vm::queue::Waiting;
use crate::vm::request::GuestEvent;

/// The flags of one machine.
pub(super) struct GuestEvents {
    flags: Mutex<Flags>,
    halt: Halt,
    driver: Arc<Waiting>,
}

#[derive(Debug, Default)]
struct Flags {
    powered_off: bool,
    reset: bool,
    failed: Option<String>,
}

impl GuestEvents {
    /// Makes flags of which none is set. Each wakes `driver`.
    pub(super) fn new(driver: &Arc<Waiting>) -> Self {
        Self { flags: Mutex::default(), halt: Halt::default(), driver: Arc::clone(driver) }
    }

    /// Returns the flag that stops the machine's vCPUs once it is powered off or to be reset: further instructions would not
    /// belong to this machine.
    pub(super) fn halt(&self) -> &Halt {
        &self.halt
    }

    /// Sets the flag of `event`. Called by threads that the driver waits for.
    pub(super) fn report(&self, event: GuestEvent) {
        let mut flags = self.lock();
        match event {
            GuestEvent::PoweredOff => flags.powered_off = true,
            GuestEvent::Reset => flags.reset = true,
            GuestEvent::Failed(why) => {
                flags.failed.get_or_insert(why);
            }
        }
        if flags.powered_off || flags.reset {
            self.halt.set();
        }
        drop(flags);
        self.driver.wake();
    }

    /// Returns the event that takes effect, as QEMU's main loop decides: a machine that is off cannot be reset, and a reset
    /// recovers a failed vCPU.
    pub(super) fn first(&self) -> Option<GuestEvent> {
        let flags = self.lock();
        match (flags.powered_off, flags.reset) {
            (true, _) => Some(GuestEvent::PoweredOff),
            (false, true) => Some(GuestEvent::Reset),
            (false, false) => flags.failed.clone().map(GuestEvent::Failed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Flags> {
        lock(&self.flags)
    }
}

impl fmt::Debug for GuestEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestEvents").field("flags", &self.flags).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_off_counts_before_reset_and_reset_before_a_failed_vcpu() {
        let events = GuestEvents::new(&Arc::default());
        assert_eq!(events.first(), None);
        events.report(GuestEvent::Failed("a".into()));
        events.report(GuestEvent::Failed("b".into()));
        assert_eq!(events.first(), Some(GuestEvent::Failed("a".into())));
        assert!(!events.halt().is_set(), "the others run on until the driver stops them");
        for _ in 0..1000 {
            events.report(GuestEvent::Reset);
        }
        assert_eq!(events.first(), Some(GuestEvent::Reset));
        assert!(events.halt().is_set());
        events.report(GuestEvent::PoweredOff);
        events.report(GuestEvent::Reset);
        assert_eq!(events.first(), Some(GuestEvent::PoweredOff));
    }
}
