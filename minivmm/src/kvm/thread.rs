//! A vCPU's thread: running, paused exactly, ended.
//!
//! The thread holds the vCPU's lock while it runs and gives it back when it is paused, so whoever gets the lock sees
//! a vCPU at rest: outside KVM_RUN, with every access completed.
//!
//! ```text
//!          resume            kick + EINTR
//!  Paused ───────► Running ──────────────► Paused ──end──► (thread gone)
//! ```
//!
//! A vCPU also pauses by itself: after what it reports, and at its next exit once the machine is [halted](Halt). A running one
//! can be made to stand outside the guest for a while ([`Brake`]); whatever else is wanted of it meanwhile, it does at once.

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

/// What a vCPU reports; it is paused right after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    /// Triple fault: the machine resets.
    TripleFault,
    /// The vCPU cannot go on, for this reason.
    Failed(String),
}

/// Set once, when the guest has powered its machine off or reset it: no vCPU of that machine gets beyond its next exit, and
/// the one that did it not beyond that instruction.
#[derive(Clone, Debug, Default)]
pub struct Halt(Arc<AtomicBool>);

impl Halt {
    /// Halts the machine's vCPUs for good.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// True from then on.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The thread of one vCPU. It is paused at first; dropping it ends it.
pub struct VcpuThread {
    index: u8,
    shared: Arc<VcpuControl>,
    thread: Option<JoinHandle<()>>,
}

/// Makes one vCPU stand, from any thread and whatever has become of the vCPU's.
#[derive(Clone)]
pub struct Brake(Arc<VcpuControl>);

struct VcpuControl {
    vcpu: Mutex<Vcpu>,
    immediate_exit: ImmediateExit,
    faults: Option<FaultCounters>,
    exits: ExitCounters,
    /// Set once the thread is started.
    thread: OnceLock<Thread>,
    /// Set by the thread, first of all.
    thread_id: OnceLock<u32>,
    halt: Halt,
    state: Mutex<ThreadState>,
    changed: Condvar,
}

struct ThreadState {
    wanted: Wanted,
    /// The thread holds the vCPU.
    running: bool,
    /// Until when the throttle keeps the vCPU out of the guest, though it is to run.
    stands_until: Option<Instant>,
    /// How long it has stood so.
    stood: Duration,
}

/// A thread that is not joined while its [`ThreadState`] is locked and another end than [`Wanted::End`] is wanted.
#[derive(Clone, Copy)]
struct Thread {
    id: pthread_t,
    /// Processor time of the vCPU's thread.
    clock: Option<clockid_t>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    End,
}

/// `kvm_run.immediate_exit` of the vCPU beside it in [`VcpuControl`], which keeps it alive.
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

impl fmt::Debug for Brake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Brake").field("stood", &self.stood()).finish_non_exhaustive()
    }
}

impl VcpuThread {
    /// Starts the thread, paused. `report` is called on it.
    ///
    /// # Errors
    /// [`Error::Flag`] if cannot spawn a thread.
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
                stands_until: None,
                stood: Duration::ZERO,
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

    /// The kernel's number of its thread, which is waited for if it is just being started.
    pub fn thread_id(&self) -> u32 {
        *self.shared.thread_id.wait()
    }

    /// How often it left the guest, also while it runs.
    pub fn exits(&self) -> &ExitCounters {
        &self.shared.exits
    }

    /// What makes it stand for a while.
    pub fn brake(&self) -> Brake {
        Brake(Arc::clone(&self.shared))
    }

    /// The vCPU, at rest. Blocks while it runs: pause it first.
    pub fn vcpu(&self) -> MutexGuard<'_, Vcpu> {
        lock(&self.shared.vcpu)
    }

    /// Lets it run.
    pub fn resume(&self) {
        self.want(Wanted::Run);
    }

    /// Requests a pause without waiting for it: all vCPUs of a machine are asked before the first is waited for.
    pub fn ask_pause(&self) {
        self.want(Wanted::Pause);
        self.kick();
    }

    /// Waits until it is paused.
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
        // Counted as running from here on, so that a pause right behind waits for the thread to have seen both.
        state.running |= wanted == Wanted::Run;
        state.stands_until = None;
        drop(state);
        self.shared.changed.notify_all();
    }

    fn kick(&self) {
        if self.thread.is_some() {
            self.shared.kick();
        }
    }
}

impl Brake {
    /// The vCPU stands until then, if it is to run.
    pub fn stand(&self, until: Instant) {
        let mut state = lock(&self.0.state);
        if state.wanted == Wanted::Run {
            state.stands_until = Some(until);
            // Under the lock: whoever ends the thread takes it before joining.
            self.0.kick();
        }
    }

    /// Ends the throttle's pause of the vCPU.
    pub fn release(&self) {
        lock(&self.0.state).stands_until = None;
        self.0.changed.notify_all();
    }

    /// How long it has stood so far.
    pub fn stood(&self) -> Duration {
        lock(&self.0.state).stood
    }

    /// Processor time of the vCPU's thread so far; nothing once that has ended.
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
            // It ends by a panic only if a device panicked; that was printed already.
            let _ = thread.join();
        }
    }
}

impl VcpuControl {
    /// Gets the thread, which is not joined, out of KVM_RUN: the byte for an entry that is about to happen, the signal for one
    /// that is.
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
                // While the thread still counts as running: whoever waits for its pause finds the report made.
                report(event);
            }
            let mut state = lock(&self.state);
            state.running = state.wanted == Wanted::Run;
            self.changed.notify_all();
        }
    }

    /// True to run, false to end.
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

    /// True once it need not stand any more, false as soon as something else than running is wanted.
    fn may_go_on(&self) -> bool {
        let mut state = lock(&self.state);
        let begun = Instant::now();
        let mut now = begun;
        while state.wanted == Wanted::Run
            && let Some(left) = state.stands_until.map(|until| until.saturating_duration_since(now))
        {
            if left.is_zero() {
                state.stands_until = None;
            } else {
                state = wait_within(&self.changed, state, left);
                now = Instant::now();
            }
        }
        state.stood += now - begun;
        state.wanted == Wanted::Run
    }

    /// Runs until something else is wanted, the machine is halted, or the vCPU cannot go on.
    fn run(&self, buses: &Buses) -> Pause {
        let mut vcpu = lock(&self.vcpu);
        loop {
            if self.halt.is_set() {
                // Completes the access that is half done, and comes back before the next instruction.
                vcpu.set_immediate_exit();
            }
            match vcpu.enter(buses) {
                Exit::Handled => {}
                Exit::Interrupted => {
                    // Cleared before looking: a kick from here on is either seen now or interrupts the next entry.
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
    /// Somebody wanted it to.
    Wanted,
    /// Its machine is halted.
    Halted,
    /// It has something to report.
    Reports(VcpuEvent),
}

/// The signal's only purpose is to interrupt KVM_RUN; without a handler it would end the process.
fn install_kick_handler() {
    extern "C" fn nothing(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| register_signal_handler(SIGRTMIN(), nothing).expect("SIGRTMIN can have a handler"));
}
