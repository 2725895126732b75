//! The table of commands and events: it dispatches, checks arguments, answers `query-commands` and `query-qmp-schema`, and is
//! printed in `docs/control.md`. Each row is in the file of the function that carries it out.

use std::sync::LazyLock;

use serde_json::Value;

use crate::control::commands::{Arguments, Failure};
use crate::control::descriptors::{self, Caller};
use crate::control::kind::{Kind, Member, Shape, needed};
use crate::control::{announce, bitmaps, dirty_rate, human, introspection, jobs, machine, migration, transaction};

/// One command.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// Description for the manual.
    pub(super) about: &'static str,
    pub(super) arguments: Shape,
    /// Arguments of QEMU's command that this one lacks, each with the reason.
    pub(super) lacks: &'static [(&'static str, &'static str)],
    pub(super) reply: Kind,
    /// The command may be executed out of band.
    pub(super) out_of_band: bool,
    pub(super) carry_out: CarryOut,
}

/// Carries out a command whose arguments were checked.
pub(super) type CarryOut = fn(&Caller, Arguments) -> Result<Value, Failure>;

/// One event.
pub(super) struct Event {
    pub(super) name: &'static str,
    /// When the event is sent, for the manual.
    pub(super) about: &'static str,
    pub(super) data: Shape,
}

/// Every command, in the order of `query-commands`.
pub(super) static COMMANDS: LazyLock<Vec<Command>> = LazyLock::new(|| {
    let all = [introspection::commands(), machine::commands(), migration::commands(), announce::commands()];
    let more = [
        bitmaps::commands(),
        jobs::commands(),
        transaction::commands(),
        descriptors::commands(),
        dirty_rate::commands(),
        human::commands(),
    ];
    all.into_iter().chain(more).flatten().collect()
});

/// Every event.
pub(super) static EVENTS: LazyLock<Vec<Event>> =
    LazyLock::new(|| machine::events().into_iter().chain(migration::events()).chain(jobs::events()).collect());

impl Command {
    /// Command without arguments and with an empty answer.
    pub(super) fn new(name: &'static str, about: &'static str, carry_out: CarryOut) -> Self {
        let (arguments, reply) = (Shape::default(), Kind::Object(Shape::default()));
        Self { name, about, arguments, lacks: &[], reply, out_of_band: false, carry_out }
    }

    /// Adds arguments.
    pub(super) fn takes(mut self, arguments: impl IntoIterator<Item = Member>) -> Self {
        self.arguments = Shape::of(arguments);
        self
    }

    /// Adds QEMU's arguments that the command lacks, each with the reason.
    pub(super) fn lacks(mut self, absent: &'static [(&'static str, &'static str)]) -> Self {
        self.lacks = absent;
        self
    }

    /// Sets the type of the answer.
    pub(super) fn gives(mut self, reply: Kind) -> Self {
        self.reply = reply;
        self
    }

    /// Allows execution out of band.
    pub(super) fn out_of_band(mut self) -> Self {
        self.out_of_band = true;
        self
    }
}

impl Event {
    pub(super) fn new(name: &'static str, about: &'static str, data: impl IntoIterator<Item = Member>) -> Self {
        Self { name, about, data: Shape::of(data) }
    }

    /// Event with a `reason`, for an action of the guest or of a person.
    pub(super) fn with_reason(name: &'static str, about: &'static str, reasons: &[&'static str]) -> Self {
        let reason = needed("reason", Kind::word(reasons.iter().copied()));
        Self::new(name, about, [needed("guest", Kind::Switch), reason])
    }
}
