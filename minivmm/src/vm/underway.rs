//! What the driver keeps of an outgoing migration.

use std::sync::mpsc::Sender;

use vmstate::migrate::Control;

use crate::vm::handle::{Refusal, RunState};

/// Where an answer goes.
pub(super) type Answer = Sender<Result<(), Refusal>>;

/// The migration that is under way.
#[derive(Debug)]
pub(super) struct Underway {
    pub(super) control: Control,
    /// Those who asked to cancel, and wait for the end.
    pub(super) waiting: Vec<Answer>,
    /// What the guest did before the switch-over.
    pub(super) before: RunState,
    /// The guest wants a reset, which has to wait: it makes a new KVM machine, and the dirty log is the old one's.
    pub(super) reset: bool,
}
