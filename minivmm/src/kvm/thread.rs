//! Thread of a vCPU: it runs, pauses between instructions, and ends.
//!
//! The thread holds the vCPU's lock while it runs and releases it when it is paused, so a holder of the lock sees a vCPU at
//! rest: outside KVM_RUN, with every access completed.
//!
//! ```text
//!          resume            kick + EINTR
//!  Paused ───────► Running ──────────────► Paused ──end──► (thread gone)
//! ```
//!
//! A vCPU also pauses by itself: after an event that it reports, and at its next exit once the machine is [halted](Halt). The
//! throttle can keep a running one outside the guest for a while ([`VcpuThrottle`]); any other request ends that at once.

use std::fmt;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libc::{c_int, c_void, clockid_t, pthread_t, siginfo_t};
use nix::time::{ClockId, clock_gettime};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::error::{Error, Result};
use crate::kvm::exits::ExitCounters;
use crate::kvm::faults::{FaultCounters, Faults};
use crate::kvm::vcpu::{Buses, Exit, Vcpu};
use crate::sandbox::{self, Kind};
use crate::sync::{lock, wait, wait_within};

/// Event that a vCPU reports, after which it is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    /// Triple fault: the machine resets.
    TripleFault,
    /// The vCPU cannot continue, for this reason.
    Failed(String),
}

/// Flag that is set once the guest has powered its machine off or reset it: no vCPU of the machine runs past its next exit, and
/// the vCPU that did it not past that instruction.
#[derive(Clone, Debug, Default)]
pub struct Halt(Arc<AtomicBool>);

impl Halt {
    /// Halts the machine's vCPUs for good.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the machine is halted.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Thread of one vCPU. It is paused at first; dropping it ends the thread.
pub struct VcpuThread {
    index: u8,
    shared: Arc<VcpuControl>,
    thread: Option<JoinHandle<()>>,
}

/// Stops one vCPU for the throttle, from any thread, also after the vCPU's thread has ended.
#[derive(Clone)]
pub struct VcpuThrottle(Arc<VcpuControl>);

struct VcpuControl {
    vcpu: Mutex<Vcpu>,
    immediate_exit: ImmediateExit,
    faults: Option<FaultCounters>,
    exits: ExitCounters,
    /// Set once the thread is started.
    thread: OnceLock<Thread>,
    /// Set by the thread as its first action.
    thread_id: OnceLock<u32>,
    halt: Halt,
    state: Mutex<ThreadState>,
    changed: Condvar,
}

struct ThreadState {
    wanted: Wanted,
    /// Whether the thread holds the vCPU.
    running: bool,
    /// Time until which the throttle keeps the vCPU out of the guest.
    stopped_until: Option<Instant>,
    /// Time for which the throttle has stopped the vCPU.
    stopped_time: Duration,
}

/// A thread, which is not joined while its [`ThreadState`] is locked and [`Wanted::End`] is not requested.
#[derive(Clone, Copy)]
struct Thread {
    id: pthread_t,
    /// Clock of the thread's processor time.
    clock: Option<clockid_t>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    End,
}

/// Pointer to `kvm_run.immediate_exit` of the vCPU in the same [`VcpuControl`], which keeps the mapping alive.
struct ImmediateExit(*mut u8);

// SAFETY: the byte is only accessed as an atomic, by any thread.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl fmt::Debug for VcpuThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuThread").field("index", &self.index).finish_non_exhaustive()
    }
}

impl fmt::Debug for VcpuThrottle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuThrottle").field("stopped_time", &self.stopped_time()).finish_non_exhaustive()
    }
}

impl VcpuThread {
    /// Starts the thread, paused. The thread calls `report`.
    ///
    /// # Errors
    /// [`Error::Flag`] if a thread cannot be spawned.
    pub fn spawn(
        mut vcpu: Vcpu,
        buses: Arc<Buses>,
        halt: Halt,
        report: impl Fn(VcpuEvent) + Send + 'static,
    ) -> Result<Self> {
        install_kick_handler();
        let index = vcpu.index();
        let shared = Arc::new(VcpuControl {
            immediate_exit: ImmediateExit(vcpu.immediate_exit()),
            faults: FaultCounters::open(vcpu.fd()),
            exits: vcpu.exits().clone(),
            vcpu: Mutex::new(vcpu),
            thread: OnceLock::new(),
            thread_id: OnceLock::new(),
            halt,
            state: Mutex::new(ThreadState {
                wanted: Wanted::Pause,
                running: false,
                stopped_until: None,
                stopped_time: Duration::ZERO,
            }),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let serve = move || {
            theirs.thread_id.get_or_init(|| rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
            theirs.serve(&buses, &report);
        };
        let thread = sandbox::spawn(Kind::Vcpu, &format!("vcpu{index}"), serve)
            .map_err(|error| Error::Flag { flag: "--cpus", what: format!("cannot spawn a thread: {error}") })?;
        shared.thread.get_or_init(|| Thread::of(&thread));
        Ok(Self { index, shared, thread: Some(thread) })
    }

    /// APIC id.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Kernel's id of the thread; waits for a thread that is just starting.
    pub fn thread_id(&self) -> u32 {
        *self.shared.thread_id.wait()
    }

    /// Counters of its exits, also readable while it runs.
    pub fn exits(&self) -> &ExitCounters {
        &self.shared.exits
    }

    /// Returns the handle with which the throttle stops the vCPU.
    pub fn throttle(&self) -> VcpuThrottle {
        VcpuThrottle(Arc::clone(&self.shared))
    }

    /// Locks the paused vCPU. Blocks while the vCPU runs: pause it first.
    pub fn vcpu(&self) -> MutexGuard<'_, Vcpu> {
        lock(&self.shared.vcpu)
    }

    /// Lets the vCPU run.
    pub fn resume(&self) {
        self.want(Wanted::Run);
    }

    /// Requests a pause without waiting: all vCPUs of a machine get the request before the first is waited for.
    pub fn ask_pause(&self) {
        self.want(Wanted::Pause);
        self.kick();
    }

    /// Waits until the vCPU is paused.
    ///
    /// # Errors
    /// [`Error::VcpuStuck`] after `deadline`.
    pub fn wait_paused(&self, deadline: Duration) -> Result<()> {
        let until = Instant::now() + deadline;
        let mut state = lock(&self.shared.state);
        while state.running {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::VcpuStuck { index: self.index, waited: deadline });
            }
            state = wait_within(&self.shared.changed, state, left);
        }
        Ok(())
    }

    fn want(&self, wanted: Wanted) {
        let mut state = lock(&self.shared.state);
        state.wanted = wanted;
        // Counted as running from here on, so that a pause right after waits until the thread has seen both requests.
        state.running |= wanted == Wanted::Run;
        state.stopped_until = None;
        drop(state);
        self.shared.changed.notify_all();
    }

    fn kick(&self) {
        if self.thread.is_some() {
            self.shared.kick();
        }
    }
}

impl VcpuThrottle {
    /// Keeps the vCPU out of the guest until then, if it is to run.
    pub fn stop_until(&self, until: Instant) {
        let mut state = lock(&self.0.state);
        if state.wanted == Wanted::Run {
            state.stopped_until = Some(until);
            // Under the lock, which is taken before the thread is joined.
            self.0.kick();
        }
    }

    /// Ends the throttle's pause of the vCPU.
    pub fn release(&self) {
        lock(&self.0.state).stopped_until = None;
        self.0.changed.notify_all();
    }

    /// Time for which the throttle has stopped the vCPU so far.
    pub fn stopped_time(&self) -> Duration {
        lock(&self.0.state).stopped_time
    }

    /// Processor time of the vCPU's thread so far; zero once the thread has ended.
    pub fn busy(&self) -> Duration {
        let clock = self.0.thread.get().and_then(|thread| thread.clock);
        let time = clock.and_then(|clock| clock_gettime(ClockId::from_raw(clock)).ok());
        time.map_or(Duration::ZERO, Duration::from)
    }

    /// Page faults of the vCPU so far, if the host counts them.
    pub fn faults(&self) -> Option<Faults> {
        self.0.faults.as_ref()?.read().ok()
    }
}

impl Thread {
    fn of(handle: &JoinHandle<()>) -> Self {
        let id = handle.as_pthread_t();
        let mut clock = 0;
        // SAFETY: the thread was started and not joined, and `clock` is a place for the answer.
        let known = unsafe { libc::pthread_getcpuclockid(id, &raw mut clock) } == 0;
        Self { id, clock: known.then_some(clock) }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.want(Wanted::End);
        self.kick();
        if let Some(thread) = self.thread.take() {
            // The thread panics only if a device panicked, and that was printed already.
            let _ = thread.join();
        }
    }
}

impl VcpuControl {
    /// Gets the thread, which is not joined, out of KVM_RUN: the byte covers an entry that is about to happen, the signal a
    /// running guest.
    fn kick(&self) {
        // SAFETY: the vCPU is kept alive here, and so its mapping; the byte is only ever accessed atomically.
        unsafe { AtomicU8::from_ptr(self.immediate_exit.0) }.store(1, Ordering::SeqCst);
        if let Some(thread) = self.thread.get() {
            // SAFETY: the thread is not joined. It may have ended, and then there is nothing to kick.
            let _ = unsafe { libc::pthread_kill(thread.id, SIGRTMIN()) };
        }
    }

    fn serve(&self, buses: &Buses, report: &dyn Fn(VcpuEvent)) {
        while self.wait_for_run() {
            let pause = self.run(buses);
            if pause != Pause::Wanted {
                let mut state = lock(&self.state);
                if state.wanted == Wanted::Run {
                    state.wanted = Wanted::Pause;
                }
            }
            if let Pause::Reports(event) = pause {
                // Reported while the thread still counts as running: a waiter for the pause finds the report made.
                report(event);
            }
            let mut state = lock(&self.state);
            state.running = state.wanted == Wanted::Run;
            self.changed.notify_all();
        }
    }

    /// Waits for a request; returns true to run, false to end.
    fn wait_for_run(&self) -> bool {
        let mut state = lock(&self.state);
        loop {
            match state.wanted {
                Wanted::Run => return true,
                Wanted::End => return false,
                Wanted::Pause => {
                    state.running = false;
                    self.changed.notify_all();
                    state = wait(&self.changed, state);
                }
            }
        }
    }

    /// Waits while the throttle stops the vCPU; returns true when that ends, false as soon as anything but running is
    /// requested.
    fn may_go_on(&self) -> bool {
        let mut state = lock(&self.state);
        let begun = Instant::now();
        let mut now = begun;
        while state.wanted == Wanted::Run
            && let Some(left) = state.stopped_until.map(|until| until.saturating_duration_since(now))
        {
            if left.is_zero() {
                state.stopped_until = None;
            } else {
                state = wait_within(&self.changed, state, left);
                now = Instant::now();
            }
        }
        state.stopped_time += now - begun;
        state.wanted == Wanted::Run
    }

    /// Runs until something else is requested, the machine is halted, or the vCPU cannot continue.
    fn run(&self, buses: &Buses) -> Pause {
        let mut vcpu = lock(&self.vcpu);
        loop {
            if self.halt.is_set() {
                // Completes a half-done access, and returns before the next instruction.
                vcpu.set_immediate_exit();
            }
            match vcpu.enter(buses) {
                Exit::Handled => {}
                Exit::Interrupted => {
                    // Cleared before the check: a later kick is either seen by it or interrupts the next entry.
                    vcpu.clear_immediate_exit();
                    if !self.may_go_on() {
                        return Pause::Wanted;
                    }
                    if self.halt.is_set() {
                        return Pause::Halted;
                    }
                }
                Exit::TripleFault => return Pause::Reports(VcpuEvent::TripleFault),
                Exit::Failed(why) => return Pause::Reports(VcpuEvent::Failed(why)),
            }
        }
    }
}

/// Why a vCPU stopped running.
#[derive(PartialEq, Eq)]
enum Pause {
    /// A pause or the end was requested.
    Wanted,
    /// The machine is halted.
    Halted,
    /// The vCPU has an event to report.
    Reports(VcpuEvent),
}

/// Installs the signal's handler. The signal only interrupts KVM_RUN; without a handler it would end the process.
fn install_kick_handler() {
    extern "C" fn nothing(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| register_signal_handler(SIGRTMIN(), nothing).expect("SIGRTMIN can have a handler"));
}
