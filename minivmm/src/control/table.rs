//! The one table of commands and events: it dispatches, checks arguments, answers `query-commands` and `query-qmp-schema`, and is the
//! table in `docs/control.md`. Its rows stand with the code that carries them out.

use std::sync::LazyLock;

use serde_json::Value;

use crate::control::commands::{Arguments, Failure};
use crate::control::descriptors::{self, Caller};
use crate::control::kind::{Kind, Member, Shape, needed};
use crate::control::{announce, dirty_rate, human, introspection, machine, migration};

/// One command.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// What it does, in the words of the manual.
    pub(super) about: &'static str,
    pub(super) arguments: Shape,
    /// Arguments that QEMU's command has and this one has not, each with the reason.
    pub(super) lacks: &'static [(&'static str, &'static str)],
    pub(super) reply: Kind,
    /// May overtake commands that wait.
    pub(super) out_of_band: bool,
    pub(super) carry_out: CarryOut,
}

/// Carries out a command whose arguments the table allows.
pub(super) type CarryOut = fn(&Caller, Arguments) -> Result<Value, Failure>;

/// One event.
pub(super) struct Event {
    pub(super) name: &'static str,
    /// When it is sent, in the words of the manual.
    pub(super) about: &'static str,
    pub(super) data: Shape,
}

/// Every command, in the order of `query-commands`.
pub(super) static COMMANDS: LazyLock<Vec<Command>> = LazyLock::new(|| {
    let all = [introspection::commands(), machine::commands(), migration::commands(), announce::commands()];
    let more = [descriptors::commands(), dirty_rate::commands(), human::commands()];
    all.into_iter().chain(more).flatten().collect()
});

/// Every event.
pub(super) static EVENTS: LazyLock<Vec<Event>> =
    LazyLock::new(|| machine::events().into_iter().chain(migration::events()).collect());

impl Command {
    /// Without arguments, and with nothing to say when it is done.
    pub(super) fn new(name: &'static str, about: &'static str, carry_out: CarryOut) -> Self {
        let (arguments, reply) = (Shape::default(), Kind::Object(Shape::default()));
        Self { name, about, arguments, lacks: &[], reply, out_of_band: false, carry_out }
    }

    /// With these arguments.
    pub(super) fn takes(mut self, arguments: impl IntoIterator<Item = Member>) -> Self {
        self.arguments = Shape::of(arguments);
        self
    }

    /// Without these ones of QEMU's, each with the reason.
    pub(super) fn lacks(mut self, absent: &'static [(&'static str, &'static str)]) -> Self {
        self.lacks = absent;
        self
    }

    /// Which answers with that.
    pub(super) fn gives(mut self, reply: Kind) -> Self {
        self.reply = reply;
        self
    }

    /// Which may be executed out of band, too.
    pub(super) fn out_of_band(mut self) -> Self {
        self.out_of_band = true;
        self
    }
}

impl Event {
    pub(super) fn new(name: &'static str, about: &'static str, data: impl IntoIterator<Item = Member>) -> Self {
        Self { name, about, data: Shape::of(data) }
    }

    /// About something that the guest, or somebody else, did for a reason.
    pub(super) fn with_reason(name: &'static str, about: &'static str, reasons: &[&'static str]) -> Self {
        let reason = needed("reason", Kind::word(reasons.iter().copied()));
        Self::new(name, about, [needed("guest", Kind::Switch), reason])
    }
}
