//! Command `transaction`: changes of the dirty bitmaps of several disks, all of them or none, at one instant.
//!
//! Facts: `qmp_transaction` in QEMU's blockdev.c, and its qapi/transaction.json.

use serde_json::Value;

use crate::control::bitmaps::{self, CHANGES};
use crate::control::commands::{Arguments, Failure};
use crate::control::descriptors::Caller;
use crate::control::kind::{Kind, Shape, needed, optional};
use crate::control::table::Command;

/// Action that always fails.
const ABORT: &str = "abort";
const INDIVIDUAL: &str = "individual";
const GROUPED: &str = "grouped";

/// Rows of the command table.
pub(super) fn commands() -> Vec<Command> {
    let changes =
        bitmaps::commands().into_iter().filter(|command| CHANGES.iter().any(|(name, _)| *name == command.name));
    let shapes = changes.map(|command| (command.name, command.arguments)).chain([(ABORT, Shape::default())]);
    let data = |shape| Shape::of([needed("data", Kind::Object(shape))]);
    let action = Shape::by("type", shapes.map(|(name, shape)| (name, data(shape))));
    let properties = Kind::object([optional("completion-mode", Kind::word([INDIVIDUAL, GROUPED]))]);
    vec![
        Command::new(
            "transaction",
            "carries out `actions` in their order, at one instant with regard to the guest's writes to all disks; if one fails, none has an effect. The `type` of an \\
             action is the name of a command that changes [dirty bitmaps](minivmm-devices.md#dirty-bitmaps), `data` has its arguments; `abort` fails, for tests. QEMU's other \\
             actions, which are for images, are absent. The `completion-mode` has to be `individual`, the default, because no action begins a job",
            transaction,
        )
        .takes([needed("actions", Kind::list(Kind::Object(action))), optional("properties", properties)]),
    ]
}

fn transaction(caller: &Caller, arguments: Arguments) -> Result<Value, Failure> {
    let actions = arguments.list("actions");
    let name = |action: &Value| action["type"].as_str().unwrap_or_default().to_owned();
    let is_grouped = arguments.object("properties").is_some_and(|properties| properties["completion-mode"] == GROUPED);
    if let (true, Some(first)) = (is_grouped, actions.first()) {
        let first = name(first);
        let why = format!("Action '{first}' does not support transaction property completion-mode = {GROUPED}");
        return Err(Failure::generic(why));
    }
    let changes = actions.iter().map(|action| {
        let known = CHANGES.iter().find(|(known, _)| *known == name(action));
        let (_, change) = known.ok_or_else(|| Failure::generic("Transaction aborted using Abort action"))?;
        Ok((*change, Arguments::within(action["data"].as_object())))
    });
    bitmaps::carry_out(caller, changes)
}
