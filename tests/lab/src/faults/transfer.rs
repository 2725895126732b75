//! The fault matrix of a guest that is handed over in QEMU's mode `cpr-transfer`, as data: the faults of the processes and of
//! their descriptors, and what users do. `minivmm/tests/faults` runs it; `docs/faults.md` is generated from it.

use super::cell::{Answer, Cell, Fault, Guest, Row, SideState};
use super::in_place::{CANCEL, DESCRIPTORS_TORN, OTHER_MEMORY, QUIT, SOURCE_KILLED, no_machine};
use super::table::{DESTINATION_KILLED, HANDED_OVER, asked, back, failed, in_first_phase};

const ENDED: SideState = SideState::Ended(0, "");
const STAYS: Cell = asked(Answer::Done, Guest::AtSource, failed(""), ENDED);

/// The rows.
pub const TRANSFER_TABLE: &[Row] = &[
    Row { fault: Fault::DescriptorsLost, cells: in_first_phase(back("", no_machine("the descriptor of microvm.ram"))) },
    DESCRIPTORS_TORN,
    SOURCE_KILLED,
    DESTINATION_KILLED,
    CANCEL,
    QUIT,
    Row {
        fault: Fault::QuitThere,
        cells: [STAYS, STAYS, STAYS, STAYS, STAYS, asked(Answer::Done, Guest::DiedWithItsProcess, HANDED_OVER, ENDED)],
    },
    OTHER_MEMORY,
];
