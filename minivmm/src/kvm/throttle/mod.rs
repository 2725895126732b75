//! Throttle of a machine: keeps vCPUs that dirty memory outside the guest for a part of each period.
//!
//! A thread of its own stops each vCPU and releases it again (`thread.rs`, [`VcpuThrottle`]); the share of time follows from the
//! vCPU's measured activity (`shares.rs`). Dropping the throttle ends it.

pub mod shares;

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::shares::{Seen, rates};
use crate::kvm::faults::Faults;
use crate::kvm::thread::{VcpuThread, VcpuThrottle};
use crate::kvm::vm::KvmVm;
use crate::sandbox::{self, Kind};
use crate::sync::{lock, wait, wait_within};

/// Period of the throttle, as in QEMU (`CPU_THROTTLE_TIMESLICE_NS`).
const PERIOD: Duration = Duration::from_millis(10);
/// Least time for which a vCPU runs between two stops: with less it would do little but enter the guest. The period of a vCPU
/// that is nearly always stopped is longer for that.
const LEAST_RUN: Duration = Duration::from_millis(1);
/// Least time over which activity is measured: in a shorter one too little happens.
const LEAST_TIME: Duration = Duration::from_millis(200);

/// Throttle of one machine.
pub struct Throttle {
    shared: Arc<Shared>,
    /// Thread, started when a vCPU is to be stopped for the first time.
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    vm: Option<Arc<KvmVm>>,
    vcpus: Vec<Throttled>,
    /// Dirty rates that were measured last; empty before the first measurement.
    rates: Vec<f64>,
    looked: Option<Look>,
    /// Time for which vCPUs of the machines before a reset were stopped, on average.
    stopped_before: Duration,
    ended: bool,
}

struct Throttled {
    throttle: VcpuThrottle,
    /// Percent of the time for which the vCPU is stopped.
    share: u8,
    /// Time of the vCPU's next stop.
    next: Instant,
}

/// Counters at the last measurement.
struct Look {
    at: Instant,
    reported: u64,
    vcpus: Vec<Counted>,
}

/// Counters of a vCPU.
#[derive(Clone, Copy)]
struct Counted {
    stopped_time: Duration,
    busy: Duration,
    faults: Option<Faults>,
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle").field("shares", &self.shares()).finish_non_exhaustive()
    }
}

impl Throttle {
    /// Makes a throttle for the vCPUs of `vm`, all of which run.
    pub fn new(vm: &Arc<KvmVm>, vcpus: &[VcpuThread]) -> Self {
        let throttle = Self { shared: Arc::default(), thread: Mutex::default() };
        throttle.follow(vm, vcpus);
        throttle
    }

    /// Switches to the vCPUs of the machine after a reset, all of which run.
    pub fn follow(&self, vm: &Arc<KvmVm>, vcpus: &[VcpuThread]) {
        let state = &mut *self.shared.lock();
        state.stopped_before = state.stopped_time();
        state.release();
        let now = Instant::now();
        state.vm = Some(Arc::clone(vm));
        state.vcpus = vcpus.iter().map(|vcpu| Throttled { throttle: vcpu.throttle(), share: 0, next: now }).collect();
        state.rates.clear();
        state.looked = Some(state.count(now));
    }

    /// Stops vCPUs so that all together dirty `percent` less; 0 lets all run. Each call measures again which vCPUs dirty
    /// memory. Returns false if a thread cannot be spawned; then no vCPU is stopped.
    pub fn slow(&self, percent: u8) -> bool {
        if percent > 0 && !self.start() {
            return false;
        }
        let state = &mut *self.shared.lock();
        state.look();
        let (shares, now) = (shares::shares(&state.rates, percent), Instant::now());
        for (vcpu, share) in state.vcpus.iter_mut().zip(shares.into_iter().chain(std::iter::repeat(0))) {
            match (std::mem::replace(&mut vcpu.share, share), share) {
                (0, 0) => {}
                (0, _) => vcpu.next = now,
                (_, 0) => vcpu.throttle.release(),
                _ => {}
            }
        }
        self.shared.changed.notify_all();
        true
    }

    /// Percent of the time for which each vCPU is stopped.
    pub fn shares(&self) -> Vec<u8> {
        self.shared.lock().vcpus.iter().map(|vcpu| vcpu.share).collect()
    }

    /// Time for which vCPUs were stopped, on average over all.
    pub fn stopped_time(&self) -> Duration {
        self.shared.lock().stopped_time()
    }

    fn start(&self) -> bool {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            *thread = sandbox::spawn(Kind::Throttle, "throttle", move || shared.serve()).ok();
        }
        thread.is_some()
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.release();
        drop(state);
        self.shared.changed.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Ignores poisoning: each value is set at once, so a panic elsewhere leaves them valid.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Stops the vCPUs at their times, until the throttle is dropped.
    fn serve(&self) {
        let mut state = self.lock();
        while !state.ended {
            let now = Instant::now();
            let next = state.stop_due(now);
            state = match next {
                None => wait(&self.changed, state),
                Some(next) => {
                    let wait = next.saturating_duration_since(now);
                    wait_within(&self.changed, state, wait)
                }
            };
        }
    }
}

impl State {
    /// Stops the vCPUs that are due, and returns when the next one is.
    fn stop_due(&mut self, now: Instant) -> Option<Instant> {
        let throttled = self.vcpus.iter_mut().filter(|vcpu| vcpu.share > 0);
        let next = throttled.map(|vcpu| {
            if vcpu.next <= now {
                let (stop, run) = slices(vcpu.share);
                vcpu.throttle.stop_until(now + stop);
                vcpu.next = now + stop + run;
            }
            vcpu.next
        });
        next.min()
    }

    fn release(&mut self) {
        for vcpu in self.vcpus.iter_mut().filter(|vcpu| vcpu.share > 0) {
            vcpu.share = 0;
            vcpu.throttle.release();
        }
    }

    fn stopped_time(&self) -> Duration {
        let all: Duration = self.vcpus.iter().map(|vcpu| vcpu.throttle.stopped_time()).sum();
        self.stopped_before + all / u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX).max(1)
    }

    fn count(&self, at: Instant) -> Look {
        let vcpus = self.vcpus.iter().map(|Throttled { throttle, .. }| Counted {
            stopped_time: throttle.stopped_time(),
            busy: throttle.busy(),
            faults: throttle.faults(),
        });
        Look { at, reported: self.vm.as_ref().map_or(0, |vm| vm.reported_pages()), vcpus: vcpus.collect() }
    }

    /// Measures what each vCPU dirties, if enough time has passed since the last measurement.
    fn look(&mut self) {
        let now = Instant::now();
        let Some(last) = self.looked.take_if(|last| now.saturating_duration_since(last.at) >= LEAST_TIME) else {
            return;
        };
        let this = self.count(now);
        let passed = now.saturating_duration_since(last.at);
        let seen = last.vcpus.iter().zip(&this.vcpus).map(|(last, this)| Seen {
            free: passed.saturating_sub(this.stopped_time.saturating_sub(last.stopped_time)),
            busy: this.busy.saturating_sub(last.busy),
            faults: last.faults.zip(this.faults).map(|(last, this)| this.since(last)),
        });
        if let Some(rates) = rates(&seen.collect::<Vec<_>>(), this.reported.saturating_sub(last.reported)) {
            self.rates = rates;
        }
        self.looked = Some(this);
    }
}

/// Time for which a vCPU is stopped in each period, and time for which it runs.
fn slices(share: u8) -> (Duration, Duration) {
    let share = u32::from(share.min(shares::MOST));
    let runs = (PERIOD * (100 - share) / 100).max(LEAST_RUN);
    (runs * share / (100 - share), runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_have_the_share_and_the_period_where_the_run_is_not_too_short() {
        let ms = Duration::from_millis;
        assert_eq!(slices(20), (ms(2), ms(8)));
        assert_eq!(slices(50), (ms(5), ms(5)));
        assert_eq!(slices(90), (ms(9), ms(1)));
        assert_eq!(slices(99), (ms(99), ms(1)));
        assert_eq!(slices(255), slices(99));
    }
}
