//! The fault matrix of a guest that is handed over to a new process on its host without a copy of its memory, as data:
//! `minivmm/tests/faults` runs it; `docs/faults.md` is generated from it.

use super::cell::{Answer, Cell, Fault, Guest, Row, SideState};
use super::table::{
    ARRIVED, CANCELLED, DESTINATION_KILLED, DISK_FULL, EOF_LATE, EOF_LATE_AFTER_QUIT, HANDED_OVER, LOAD_REFUSED,
    LOCK_TAKEN, NEVER_RAN, UNACKNOWLEDGED, UNKNOWN_SECTION, asked, back, ends, in_first_phase,
};

/// The new process has no machine before it has received the guest's memory.
pub(super) const fn no_machine(why: &'static str) -> SideState {
    SideState::Ended(2, why)
}

const BACK: Cell = back("", NEVER_RAN);
const DIED: Cell = ends(Guest::DiedWithItsProcess, SideState::Killed, NEVER_RAN);
const TAKEN_OVER: Cell = ends(Guest::AtDestination, SideState::Killed, ARRIVED);

pub(super) const DESCRIPTORS_TORN: Row = Row {
    fault: Fault::DescriptorsTorn,
    cells: in_first_phase(back("", no_machine("the message ends after 9 bytes"))),
};

pub(super) const SOURCE_KILLED: Row =
    Row { fault: Fault::SourceKilled, cells: [DIED, DIED, DIED, DIED, TAKEN_OVER, TAKEN_OVER] };

pub(super) const CANCEL: Row = Row {
    fault: Fault::Cancel,
    cells: [
        asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
        asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
        asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
        asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
        asked(Answer::Refused("handed over"), Guest::AtDestination, HANDED_OVER, ARRIVED),
        asked(Answer::Refused("handed over"), Guest::AtDestination, HANDED_OVER, ARRIVED),
    ],
};

pub(super) const QUIT: Row = Row {
    fault: Fault::Quit,
    cells: [
        asked(Answer::Done, Guest::DiedWithItsProcess, SideState::Ended(0, ""), NEVER_RAN),
        asked(Answer::Done, Guest::DiedWithItsProcess, SideState::Ended(0, ""), NEVER_RAN),
        asked(Answer::Done, Guest::DiedWithItsProcess, SideState::Ended(0, ""), NEVER_RAN),
        asked(Answer::Done, Guest::DiedWithItsProcess, SideState::Ended(0, ""), NEVER_RAN),
        asked(Answer::Done, Guest::AtDestination, SideState::Ended(0, ""), ARRIVED),
        asked(Answer::Done, Guest::AtDestination, SideState::Ended(0, ""), ARRIVED),
    ],
};

pub(super) const OTHER_MEMORY: Row = Row {
    fault: Fault::OtherMemory,
    cells: in_first_phase(back("", no_machine("give the same as the machine that it comes from"))),
};

/// The rows.
pub const IN_PLACE_TABLE: &[Row] = &[
    Row { fault: Fault::DescriptorsLost, cells: in_first_phase(back("", no_machine("the descriptor of ram"))) },
    DESCRIPTORS_TORN,
    SOURCE_KILLED,
    DESTINATION_KILLED,
    Row {
        fault: Fault::WireCut,
        cells: [BACK, BACK, BACK, BACK, BACK, ends(Guest::AtDestination, UNACKNOWLEDGED, ARRIVED)],
    },
    Row {
        fault: Fault::WireStalls,
        cells: [
            back("is silent", NEVER_RAN),
            back("is silent", NEVER_RAN),
            back("the guest is paused for", NEVER_RAN),
            back("the guest is paused for", NEVER_RAN),
            back("is silent", NEVER_RAN),
            ends(Guest::AtDestination, UNACKNOWLEDGED, ARRIVED),
        ],
    },
    LOCK_TAKEN,
    EOF_LATE,
    EOF_LATE_AFTER_QUIT,
    CANCEL,
    QUIT,
    DISK_FULL,
    LOAD_REFUSED,
    OTHER_MEMORY,
    Row {
        fault: Fault::OtherCpu,
        cells: in_first_phase(back("the destination refused the guest", SideState::Ended(1, "avx512pf"))),
    },
    UNKNOWN_SECTION,
];
