//! The machine of a source, throttled or not: whoever holds it last leaves its guest running at full speed.

use std::ops::{Deref, DerefMut};

use crate::migrate::Machine;

/// A machine, and what it was told to throttle. Its throttle is taken off when this is dropped, also by a panic.
pub(super) struct Throttled<'a> {
    machine: &'a mut dyn Machine,
    /// `None`: it cannot be throttled.
    percent: Option<u8>,
    highest: u8,
}

impl<'a> Throttled<'a> {
    /// Not throttled; that it cannot be is found out when it is first asked.
    pub(super) fn new(machine: &'a mut dyn Machine) -> Self {
        Self { machine, percent: Some(0), highest: 0 }
    }

    /// Throttles by so many percent.
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
            tracing::warn!("the machine cannot throttle its vCPUs: a guest that dirties too much may never go");
        }
    }

    /// Lets it run.
    fn lift(&mut self) {
        // A machine that cannot be throttled says no to this as well.
        self.machine.throttle(0);
        self.percent = self.percent.map(|_| 0);
    }

    /// Tells it once more, so that it can look again which vCPUs dirty memory.
    pub(super) fn repeat(&mut self) {
        if let Some(percent @ 1..) = self.percent {
            self.set(percent);
        }
    }

    /// In percent; `None` if it cannot be throttled.
    pub(super) fn percent(&self) -> Option<u8> {
        self.percent
    }

    /// The highest that it was told.
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
