//! Command `transaction`: changes the dirty bitmaps of several disks and starts their backups: all actions or none, at one
//! instant.
//!
//! Facts: `qmp_transaction` in QEMU's blockdev.c, and its qapi/transaction.json.

use serde_json::{Value, json};

use crate::control::bitmaps::{self, CHANGES, Change};
use crate::control::commands::{Arguments, Failure};
use crate::control::descriptors::Caller;
use crate::control::jobs::{self, BACKUP, PreparedBackup};
use crate::control::kind::{Kind, Shape, needed, optional};
use crate::control::table::Command;
use crate::devices::virtio::blk::Transaction;

/// Action that always fails.
const ABORT: &str = "abort";
const INDIVIDUAL: &str = "individual";
const GROUPED: &str = "grouped";

/// Rows of the command table.
pub(super) fn commands() -> Vec<Command> {
    let is_action = |command: &Command| command.name == BACKUP || CHANGES.iter().any(|(name, _)| *name == command.name);
    let commands = bitmaps::commands().into_iter().chain(jobs::commands()).filter(is_action);
    let shapes = commands.map(|command| (command.name, command.arguments)).chain([(ABORT, Shape::default())]);
    let data = |shape| Shape::of([needed("data", Kind::Object(shape))]);
    let action = Shape::by("type", shapes.map(|(name, shape)| (name, data(shape))));
    let properties = Kind::object([optional("completion-mode", Kind::word([INDIVIDUAL, GROUPED]))]);
    vec![
        Command::new(
            "transaction",
            "carries out `actions` in their order, at one instant with regard to the guest's writes to all disks; if one fails, none has an effect. The `type` of an \
             action is the name of a command that changes [dirty bitmaps](minivmm-devices.md#dirty-bitmaps), or `drive-backup`; `data` has its arguments; `abort` fails, for tests. QEMU's other \
             actions, which are for images, are absent. The `completion-mode` has to be `individual`, the default: each job ends by itself",
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
    // All targets are opened before the guest's writes have to wait.
    let steps = actions.iter().map(|action| {
        let (name, arguments) = (name(action), Arguments::within(action["data"].as_object()));
        let change = CHANGES.iter().find(|(known, _)| *known == name);
        match change {
            _ if name == BACKUP => PreparedBackup::new(caller, arguments).map(Step::Backup),
            Some((_, change)) => Ok(Step::Change(*change, arguments)),
            None => Ok(Step::Abort),
        }
    });
    carry_out(caller, steps.collect::<Result<Vec<_>, Failure>>()?)
}

/// Action of a transaction.
pub(super) enum Step {
    /// A change of a bitmap.
    Change(Change, Arguments),
    /// Start of a backup job.
    Backup(PreparedBackup),
    /// A failure.
    Abort,
}

/// Carries out all steps or none, at one instant.
pub(super) fn carry_out(caller: &Caller, steps: impl IntoIterator<Item = Step>) -> Result<Value, Failure> {
    let disks = caller.inventory().disks;
    let mut prepared = Vec::new();
    let mut transaction = Transaction::begin(disks.iter().map(|disk| &*disk.bitmaps));
    for step in steps {
        match step {
            Step::Change(change, arguments) => change(&disks, &mut transaction, &arguments)?,
            Step::Backup(backup) => {
                let bitmap = backup.prepare(&mut transaction)?;
                prepared.push((backup, bitmap));
            }
            Step::Abort => return Err(Failure::generic("Transaction aborted using Abort action")),
        }
    }
    prepared.into_iter().for_each(|(backup, bitmap)| backup.begin(bitmap));
    transaction.commit();
    Ok(json!({}))
}
