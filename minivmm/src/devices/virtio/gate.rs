//! Gate at which a device's thread stops on request, between two pieces of its work.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::sync::{lock, wait, wait_within};

/// State of the gate, and its signals.
#[derive(Debug)]
pub(super) struct Gate {
    /// Whether the phase is not `Open`; the thread reads this between two pieces of its work.
    pausing: AtomicBool,
    phase: Mutex<Phase>,
    changed: Condvar,
    /// Wakes the thread to check the phase.
    pub(super) wake: EventFd,
    /// Whether the device has a thread to wait for.
    attended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The thread was asked to stop.
    Closing,
    /// The thread has stopped and waits.
    Paused,
    /// The thread is asked to end.
    Ended,
}

impl Gate {
    /// Makes an open gate; `attended` says whether the device has a thread.
    pub(super) fn new(attended: bool) -> io::Result<Self> {
        Ok(Self {
            pausing: AtomicBool::new(false),
            phase: Mutex::new(Phase::Open),
            changed: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK)?,
            attended,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        lock(&self.phase)
    }

    fn turn(&self, phase: &mut Phase, to: Phase) {
        *phase = to;
        self.pausing.store(to != Phase::Open, Ordering::Release);
        self.changed.notify_all();
    }

    /// Called by the thread: waits while the device is paused; returns false if the thread is to end.
    pub(super) fn pass(&self) -> bool {
        let mut phase = self.lock();
        loop {
            match *phase {
                Phase::Open => return true,
                Phase::Ended => return false,
                Phase::Closing => self.turn(&mut phase, Phase::Paused),
                Phase::Paused => phase = wait(&self.changed, phase),
            }
        }
    }

    /// Whether the thread is to stop.
    pub(super) fn is_closing(&self) -> bool {
        self.pausing.load(Ordering::Acquire)
    }

    /// Whether the thread has stopped.
    pub(super) fn is_paused(&self) -> bool {
        *self.lock() == Phase::Paused
    }

    /// Waits until the thread has stopped between two pieces of its work. If it has not within `timeout`, opens the gate again
    /// and returns false.
    pub(super) fn pause(&self, timeout: Option<Duration>) -> bool {
        let end = timeout.map(|timeout| Instant::now() + timeout);
        let mut phase = self.lock();
        if *phase == Phase::Open {
            self.turn(&mut phase, if self.attended { Phase::Closing } else { Phase::Paused });
            // Cannot fail: the counter is far from full.
            let _ = self.wake.write(1);
        }
        while *phase == Phase::Closing {
            phase = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                None => wait(&self.changed, phase),
                Some(Duration::ZERO) => {
                    self.turn(&mut phase, Phase::Open);
                    return false;
                }
                Some(left) => wait_within(&self.changed, phase, left),
            };
        }
        true
    }

    /// Lets the thread continue; it first checks all queues.
    pub(super) fn resume(&self) {
        let mut phase = self.lock();
        if *phase != Phase::Ended {
            self.turn(&mut phase, Phase::Open);
            let _ = self.wake.write(1);
        }
    }

    /// Tells the thread to end.
    pub(super) fn close(&self) {
        let mut phase = self.lock();
        self.turn(&mut phase, Phase::Ended);
        let _ = self.wake.write(1);
    }
}
