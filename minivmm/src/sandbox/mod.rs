//! The process as a sandbox: each thread may make the system calls of its kind and no others, has no capability and gains
//! none.
//!
//! Filters are stacked by the kernel, and a thread begins with those of the thread that starts it. So a kind that starts
//! others allows what they need, and the main thread, which starts the first of each kind, is confined last (`tables.rs`).

mod filter;
mod heap;
mod requests;
mod tables;
mod violation;

use std::cell::Cell;
use std::fmt::Display;
use std::io;
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};

use rustix::thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities};

use crate::error::say;
use filter::Filters;
pub use violation::OnViolation;

/// What a thread does, and so which system calls it may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Waits for the end, and then puts away what the user sees: socket files, the terminal's settings.
    Main,
    /// Changes the machine's run state, makes it anew at a reset, starts the threads of migrations.
    Driver,
    /// Runs a vCPU.
    Vcpu,
    /// Says when vCPUs have to stand, or how much of the memory they dirty.
    Throttle,
    /// Does the I/O of a disk or a network card.
    Device,
    /// Connects a network card to the socket of its network again.
    Connect,
    /// Carries the serial console's bytes, or waits for signals or for the end of a command.
    Console,
    /// One side of a migration.
    Migration,
    /// Sends or takes the pages of one page channel.
    Pages,
    /// Finds the addresses of a name.
    LookUp,
    /// Serves clients of the control socket.
    Control,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Main,
        Self::Driver,
        Self::Vcpu,
        Self::Throttle,
        Self::Device,
        Self::Connect,
        Self::Console,
        Self::Migration,
        Self::Pages,
        Self::LookUp,
        Self::Control,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Driver => "driver",
            Self::Vcpu => "vcpu",
            Self::Throttle => "throttle",
            Self::Device => "device",
            Self::Connect => "connect",
            Self::Console => "console",
            Self::Migration => "migration",
            Self::Pages => "pages",
            Self::LookUp => "look-up",
            Self::Control => "control",
        }
    }
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
#[error("--sandbox on: {what}; give --sandbox off to run without")]
pub struct SandboxError {
    what: String,
}

impl SandboxError {
    fn new(what: impl Display) -> Self {
        Self { what: what.to_string() }
    }
}

/// The filters, once the process is to be confined.
static FILTERS: OnceLock<Filters> = OnceLock::new();

thread_local! {
    /// What this thread is, for the report of a violation. A signal handler reads it, so it has no initialisation.
    static KIND: Cell<Option<Kind>> = const { Cell::new(None) };
}

/// Every thread that [`spawn`] starts from now on is confined, and so is the caller as soon as it says so
/// ([`confine`]). To be called once, while the process has one thread.
///
/// # Errors
/// The kernel takes no filter, or lets a capability not go.
pub fn arm(on_violation: OnViolation) -> Result<(), SandboxError> {
    heap::use_one_arena();
    drop_bounding_set();
    report_panics();
    let filters = Filters::new(on_violation.action()).map_err(SandboxError::new)?;
    on_violation.prepare().map_err(SandboxError::new)?;
    // A thread that finds later that it cannot be confined could only end the process.
    let tried_on = thread::scope(|scope| {
        let thread = thread::Builder::new().name("sandbox".into());
        let thread =
            thread.spawn_scoped(scope, || restrict(&filters, Kind::Vcpu)).map_err(|error| error.to_string())?;
        thread.join().unwrap_or_else(|_| Err("the thread that tries a filter on panicked".into()))
    });
    tried_on.map_err(SandboxError::new)?;
    FILTERS.get_or_init(|| filters);
    Ok(())
}

/// Confines the calling thread for good, if the sandbox is [armed](arm).
///
/// # Errors
/// The kernel refuses the filter.
pub fn confine(kind: Kind) -> Result<(), SandboxError> {
    KIND.set(Some(kind));
    FILTERS.get().map_or(Ok(()), |filters| restrict(filters, kind)).map_err(SandboxError::new)
}

/// Starts a thread, confined if the sandbox is [armed](arm). The only way to start one.
///
/// # Errors
/// The thread cannot be spawned.
pub fn spawn<T: Send + 'static>(
    kind: Kind,
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name.into()).spawn(move || {
        if let Err(error) = confine(kind) {
            say(error);
            std::process::abort();
        }
        body()
    })
}

/// The filter also makes sure that the thread gains no right by executing a file (PR_SET_NO_NEW_PRIVS).
fn restrict(filters: &Filters, kind: Kind) -> Result<(), String> {
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, none).map_err(|error| format!("capabilities cannot be dropped: {error}"))?;
    filters
        .apply(kind)
        .map_err(|error| format!("this kernel takes no seccomp filter ({error}): it needs CONFIG_SECCOMP_FILTER=y"))
}

/// What a program that is executed could get. Nothing is executed; without the right to drop it (CAP_SETPCAP), there is
/// nothing in it to gain either.
fn drop_bounding_set() {
    for bit in 0..u64::BITS {
        // The first number that the kernel does not know ends the list.
        if remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)).is_err() {
            return;
        }
    }
}

/// The standard hook's back trace opens files, which a confined thread may not.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        say(format_args!("thread {} {panic}", thread.name().unwrap_or("without a name")));
    }));
}
