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
//! A vCPU also pauses by itself: after what it reports, and at its next exit once the machine is [halted](Halt).

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::error::{Error, Result};
use crate::kvm::vcpu::{Buses, Exit, Vcpu};
use crate::sandbox::{self, Kind};

/// What a vCPU reports; it is paused right after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    /// Triple fault: the machine resets.
    TripleFault,
    /// It cannot go on: why.
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
    immediate_exit: ImmediateExit,
    thread: Option<JoinHandle<()>>,
}

struct VcpuControl {
    vcpu: Mutex<Vcpu>,
    halt: Halt,
    state: Mutex<ThreadState>,
    changed: Condvar,
}

struct ThreadState {
    wanted: Wanted,
    /// The thread holds the vCPU.
    running: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    End,
}

/// `kvm_run.immediate_exit` of a vCPU that [`VcpuControl`] keeps alive.
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

impl VcpuThread {
    /// Starts the thread, paused. `report` is called on it.
    ///
    /// # Errors
    /// [`Error::Flag`] if the host gives no thread.
    pub fn spawn(
        mut vcpu: Vcpu,
        buses: Arc<Buses>,
        halt: Halt,
        report: impl Fn(VcpuEvent) + Send + 'static,
    ) -> Result<Self> {
        install_kick_handler();
        let index = vcpu.index();
        let immediate_exit = ImmediateExit(vcpu.immediate_exit());
        let shared = Arc::new(VcpuControl {
            vcpu: Mutex::new(vcpu),
            halt,
            state: Mutex::new(ThreadState { wanted: Wanted::Pause, running: false }),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let serve = move || theirs.serve(&buses, &report);
        let thread = sandbox::spawn(Kind::Vcpu, &format!("vcpu{index}"), serve)
            .map_err(|error| Error::Flag { flag: "--cpus", what: format!("the host gives no thread: {error}") })?;
        Ok(Self { index, shared, immediate_exit, thread: Some(thread) })
    }

    /// APIC id.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// The vCPU, at rest. Blocks while it runs: pause it first.
    pub fn vcpu(&self) -> MutexGuard<'_, Vcpu> {
        lock(&self.shared.vcpu)
    }

    /// Lets it run.
    pub fn resume(&self) {
        self.want(Wanted::Run);
    }

    /// Asks it to pause, without waiting: all of a machine's are asked before the first is waited for.
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
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(|poison| poison.into_inner()).0;
        }
        Ok(())
    }

    fn want(&self, wanted: Wanted) {
        let mut state = lock(&self.shared.state);
        state.wanted = wanted;
        // Counted as running from here on, so that a pause right behind waits for the thread to have seen both.
        state.running |= wanted == Wanted::Run;
        self.shared.changed.notify_all();
    }

    /// Gets the thread out of KVM_RUN: the byte for an entry that is about to happen, the signal for one that is.
    fn kick(&self) {
        // SAFETY: `shared` keeps the vCPU and so its mapping alive; the byte is only ever accessed atomically.
        unsafe { AtomicU8::from_ptr(self.immediate_exit.0) }.store(1, Ordering::SeqCst);
        if let Some(thread) = &self.thread {
            // Fails only if the thread has ended, and then there is nothing to kick.
            let _ = thread.kill(SIGRTMIN());
        }
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
                    state = self.changed.wait(state).unwrap_or_else(|poison| poison.into_inner());
                }
            }
        }
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
                    if lock(&self.state).wanted != Wanted::Run {
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

/// A panic elsewhere leaves these values whole: they are set in one go.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// The signal's only purpose is to interrupt KVM_RUN; without a handler it would end the process.
fn install_kick_handler() {
    extern "C" fn nothing(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| register_signal_handler(SIGRTMIN(), nothing).expect("SIGRTMIN can have a handler"));
}
