//! Commands about how fast the guest dirties its memory.

use crate::control::table::Command;

/// The rows of the table.
pub(super) fn commands() -> Vec<Command> {
    Vec::new()
}
