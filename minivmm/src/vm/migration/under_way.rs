//! What the driver keeps of a migration that is under way, and its end with the machine.

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

/// What the driver keeps of an outgoing migration that is under way.
#[derive(Debug)]
pub(in crate::vm) struct Outgoing {
    pub(super) control: Control,
    pub(super) thread: JoinHandle<()>,
    /// What the guest did before the switch-over.
    pub(super) before: RunState,
    /// Shared with the migration thread.
    pub(super) log: MachineDirtyLog,
    /// The destination was told that the guest may go over before all of its memory has.
    pub(super) announced_postcopy: bool,
    /// Where it is to connect again in post-copy; none once that was given up.
    pub(super) reconnections: Option<Sender<Reconnection>>,
    /// Shared with the migration thread; taken off when both have let go of it.
    pub(super) throttle: Arc<Throttle>,
}

impl Outgoing {
    /// A reset puts `made` in the place of `previous`, whose vCPUs have ended: the migration goes on with it. It is what the
    /// destination was told: the guest is shown the same processor.
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

/// What the driver keeps of an incoming migration.
#[derive(Debug)]
pub(in crate::vm) struct Incoming {
    pub(super) control: Control,
    pub(super) thread: JoinHandle<()>,
    /// Shared with the migration thread, which may outlive the machine for a moment that the process does not have.
    pub(super) listener: Option<Arc<IncomingListener>>,
    /// The guest is in a file.
    pub(super) from_file: bool,
    /// One that fails ends the machine.
    pub(super) exit_on_error: bool,
}

/// How long a migration that ends with its machine is given to close its sockets.
const FAREWELL: Duration = Duration::from_millis(200);

/// The machine has ended, and nobody answers a migration thread any more.
pub(in crate::vm) fn give_up(outgoing: Option<Outgoing>, incoming: Option<Incoming>) {
    if let Some(listener) = incoming.as_ref().and_then(|incoming| incoming.listener.as_ref()) {
        listener.remove_file();
    }
    let outgoing = outgoing.map(|outgoing| (outgoing.control, outgoing.thread));
    let incoming = incoming.map(|incoming| (incoming.control, incoming.thread));
    for (control, thread) in outgoing.into_iter().chain(incoming) {
        // A refusal means that the guest is being handed over, which needs no machine here.
        let _ = control.cancel();
        let until = Instant::now() + FAREWELL;
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
