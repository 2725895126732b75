//! The driver's state of a migration that is under way, and the migration's end with the machine.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmstate::migrate::Control;

use super::incoming::IncomingListener;
use super::replaceable::Reconnection;
use crate::error::Error;
use crate::kvm::throttle::Throttle;
use crate::migration::dirty_log::MachineDirtyLog;
use crate::vm::machine::Machine;
use crate::vm::state::RunState;

/// State of an outgoing migration.
#[derive(Debug)]
pub(in crate::vm) struct Outgoing {
    pub(super) control: Control,
    pub(super) thread: JoinHandle<()>,
    /// Run state of the guest before the switch-over.
    pub(super) before: RunState,
    /// Whether the descriptors of console and networks are handed over, and bytes in transit with them.
    pub(super) hands_over: bool,
    /// Dirty log, shared with the migration thread.
    pub(super) log: MachineDirtyLog,
    /// Whether post-copy was announced to the destination.
    pub(super) announced_postcopy: bool,
    /// Addresses for post-copy's reconnection; `None` once that was given up.
    pub(super) reconnections: Option<Sender<Reconnection>>,
    /// Throttle, shared with the migration thread; it ends when both have dropped it.
    pub(super) throttle: Arc<Throttle>,
}

impl Outgoing {
    /// Continues the migration with the machine `made` after a reset; the vCPUs of `previous` have ended. The guest keeps the
    /// processor that the destination knows.
    ///
    /// # Errors
    /// KVM refuses; nothing may run in `made`.
    pub(in crate::vm) fn follow(&self, previous: &Machine, made: &mut Machine) -> Result<(), Error> {
        if made.processor() != previous.processor() {
            made.adopt(previous.processor().clone())?;
        }
        self.throttle.follow(&made.kvm, &made.vcpus);
        self.log.follow(&made.kvm)
    }
}

/// State of an incoming migration.
#[derive(Debug)]
pub(in crate::vm) struct Incoming {
    pub(super) control: Control,
    pub(super) thread: JoinHandle<()>,
    /// Listener, shared with the migration thread, which may outlive the machine until the process ends.
    pub(super) listener: Option<Arc<IncomingListener>>,
    /// Whether the guest is in a file.
    pub(super) from_file: bool,
    /// Whether a failed migration ends the machine.
    pub(super) exit_on_error: bool,
}

/// How long a migration that ends with its machine may take to close its sockets.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);

/// Gives up a migration: the machine has ended, and answers no migration thread any more.
pub(in crate::vm) fn give_up(outgoing: Option<Outgoing>, incoming: Option<Incoming>) {
    if let Some(listener) = incoming.as_ref().and_then(|incoming| incoming.listener.as_ref()) {
        listener.remove_file();
    }
    let outgoing = outgoing.map(|outgoing| (outgoing.control, outgoing.thread));
    let incoming = incoming.map(|incoming| (incoming.control, incoming.thread));
    for (control, thread) in outgoing.into_iter().chain(incoming) {
        // A refusal means that the guest is being handed over, which does not need this machine.
        let _ = control.cancel();
        let until = Instant::now() + CLOSE_TIMEOUT;
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
