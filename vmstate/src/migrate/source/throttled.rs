//! The machine of a source with its throttle, which is ended in any case: the guest is left running at full speed.

use std::ops::{Deref, DerefMut};

use crate::migrate::Machine;

/// A machine and its throttle. The throttle is ended when this is dropped, also by a panic.
pub(super) struct Throttled<'a> {
    machine: &'a mut dyn Machine,
    /// The throttle; `None` if the machine cannot throttle.
    percent: Option<u8>,
    highest: u8,
}

impl<'a> Throttled<'a> {
    /// Not throttled; whether the machine can throttle is unknown until the first call.
    pub(super) fn new(machine: &'a mut dyn Machine) -> Self {
        Self { machine, percent: Some(0), highest: 0 }
    }

    /// Throttles by this percentage.
    pub(super) fn set(&mut self, percent: u8) {
        if percent == 0 {
            return self.lift();
        }
        if self.percent.is_none() {
            return;
        }
        if self.machine.throttle(percent) {
            self.percent = Some(percent);
            self.highest = self.highest.max(percent);
        } else {
            self.percent = None;
            tracing::warn!("the machine cannot throttle its vCPUs: a guest that dirties too much may never converge");
        }
    }

    /// Ends the throttle.
    fn lift(&mut self) {
        // A machine that cannot throttle returns false here as well.
        self.machine.throttle(0);
        self.percent = self.percent.map(|_| 0);
    }

    /// Repeats the call, so that the machine can determine again which vCPUs dirty memory.
    pub(super) fn repeat(&mut self) {
        if let Some(percent @ 1..) = self.percent {
            self.set(percent);
        }
    }

    /// The throttle in percent; `None` if the machine cannot throttle.
    pub(super) fn percent(&self) -> Option<u8> {
        self.percent
    }

    /// The highest throttle that was set.
    pub(super) fn highest(&self) -> u8 {
        self.highest
    }
}

impl Drop for Throttled<'_> {
    fn drop(&mut self) {
        self.lift();
    }
}

impl<'a> Deref for Throttled<'a> {
    type Target = dyn Machine + 'a;

    fn deref(&self) -> &Self::Target {
        self.machine
    }
}

impl DerefMut for Throttled<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.machine
    }
}
