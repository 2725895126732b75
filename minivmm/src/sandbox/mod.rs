//! Sandbox of the process: each thread may make only the system calls of its kind, has no capability and gains none.
//!
//! The kernel stacks filters, and a thread inherits those of its parent. So a kind that starts others allows their calls, too,
//! and the main thread, which starts the first thread of each kind, is confined last (`tables.rs`).

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

use crate::error::print_message;
use filter::Filters;
pub use violation::OnViolation;

/// Task of a thread, which decides its system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Waits for the end of the machine, and then restores what the user sees: socket files, the terminal's settings.
    Main,
    /// Changes the machine's run state, resets it, and starts the threads of migrations.
    Driver,
    /// Runs a vCPU.
    Vcpu,
    /// Measures how much memory each vCPU dirties, and stops vCPUs for the throttle.
    Throttle,
    /// Does the I/O of a disk or a network card.
    Device,
    /// Reconnects a network card to the socket of its network.
    Connect,
    /// Moves the bytes of the serial console, or waits for signals or for the end of a command.
    Console,
    /// Copies a disk to a backup.
    Backup,
    /// Runs one side of a migration.
    Migration,
    /// Sends or receives the pages of one page channel.
    Pages,
    /// Resolves host names.
    LookUp,
    /// Serves clients of the control socket.
    Control,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Main,
        Self::Driver,
        Self::Vcpu,
        Self::Throttle,
        Self::Device,
        Self::Connect,
        Self::Console,
        Self::Backup,
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
            Self::Backup => "backup",
            Self::Migration => "migration",
            Self::Pages => "pages",
            Self::LookUp => "look-up",
            Self::Control => "control",
        }
    }
}

/// Why the sandbox cannot be set up.
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

/// The filters; set once the process is to be confined.
static FILTERS: OnceLock<Filters> = OnceLock::new();

thread_local! {
    /// Kind of this thread, for the report of a violation. Read by a signal handler, so it needs no initialisation.
    static KIND: Cell<Option<Kind>> = const { Cell::new(None) };
}

/// Arms the sandbox: every thread that [`spawn`] starts from now on is confined, and the caller once it calls [`confine`]. Must
/// be called once, while the process has one thread.
///
/// # Errors
/// The kernel refuses a filter, or a capability cannot be dropped.
pub fn arm(on_violation: OnViolation) -> Result<(), SandboxError> {
    heap::use_one_arena();
    drop_bounding_set();
    report_panics();
    let filters = Filters::new(on_violation.action()).map_err(SandboxError::new)?;
    on_violation.prepare().map_err(SandboxError::new)?;
    // Tried on a thread of its own: a thread that later could not be confined would have to end the process.
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

/// Whether the sandbox is [armed](arm), so that no thread may open an existing file for writing.
pub fn is_armed() -> bool {
    FILTERS.get().is_some()
}

/// Confines the calling thread for good, if the sandbox is [armed](arm).
///
/// # Errors
/// The kernel refuses the filter.
pub fn confine(kind: Kind) -> Result<(), SandboxError> {
    KIND.set(Some(kind));
    FILTERS.get().map_or(Ok(()), |filters| restrict(filters, kind)).map_err(SandboxError::new)
}

/// Starts a thread, confined if the sandbox is [armed](arm). All threads are started here.
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
            print_message(error);
            std::process::abort();
        }
        body()
    })
}

/// The filter also sets PR_SET_NO_NEW_PRIVS, so that the thread gains no permission by executing a file.
fn restrict(filters: &Filters, kind: Kind) -> Result<(), String> {
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, none).map_err(|error| format!("capabilities cannot be dropped: {error}"))?;
    filters
        .apply(kind)
        .map_err(|error| format!("this kernel takes no seccomp filter ({error}): it needs CONFIG_SECCOMP_FILTER=y"))
}

/// Drops the capabilities that an executed program could get. Nothing is executed; and without CAP_SETPCAP, which is needed to
/// drop them, there is none to gain.
fn drop_bounding_set() {
    for bit in 0..u64::BITS {
        // The first number that the kernel rejects ends the list.
        if remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)).is_err() {
            return;
        }
    }
}

/// Replaces the standard panic hook, whose back trace opens files, which a confined thread may not.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        print_message(format_args!("thread {} {panic}", thread.name().unwrap_or("without a name")));
    }));
}
