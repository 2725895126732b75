//! The fault matrix of a guest whose disk is copied to a new image at the destination, as data: `minivmm/tests/faults` runs it;
//! `docs/faults.md` is generated from it.

use super::cell::{Cell, Fault, Guest, Row, SideState};
use super::table::{
    ARRIVED, CANCEL, HANDED_OVER, NEVER_RAN, SOURCE_KILLED, WAITS, back, ends, in_first_phase, turned_away,
};

/// The source has sent EOF and got no answer: nothing shows where the guest runs.
const UNDECIDED: SideState = SideState::Answers("postmigrate", "undecided", "nothing can prove");

const BACK: Cell = back("", NEVER_RAN);
const UNDECIDED_AND_NEVER_RAN: Cell = ends(Guest::UndecidedAtSource, UNDECIDED, NEVER_RAN);
const UNDECIDED_AND_ARRIVED: Cell = ends(Guest::AtDestination, UNDECIDED, ARRIVED);
const READ: Cell = Cell::No("the source has read the whole disk");
const WRITTEN: Cell = Cell::No("the last changes of this guest are to places that have room already");

/// The rows.
pub const COPIED_TABLE: &[Row] = &[
    SOURCE_KILLED,
    Row {
        fault: Fault::DestinationKilled,
        cells: [
            back("", SideState::Killed),
            back("", SideState::Killed),
            back("", SideState::Killed),
            // The report that the destination is ready arrives, and the source sends EOF.
            ends(Guest::UndecidedAtSource, UNDECIDED, SideState::Killed),
            ends(Guest::UndecidedAtSource, UNDECIDED, SideState::Killed),
            ends(Guest::DiedWithItsProcess, HANDED_OVER, SideState::Killed),
        ],
    },
    Row {
        fault: Fault::WireCut,
        cells: [back("", WAITS), BACK, BACK, BACK, UNDECIDED_AND_NEVER_RAN, UNDECIDED_AND_ARRIVED],
    },
    Row {
        fault: Fault::WireStalls,
        cells: [
            back("is silent", WAITS),
            back("the peer accepts no data", NEVER_RAN),
            back("the guest is paused for", NEVER_RAN),
            back("the guest is paused for", NEVER_RAN),
            UNDECIDED_AND_NEVER_RAN,
            UNDECIDED_AND_ARRIVED,
        ],
    },
    Row {
        fault: Fault::CopyExists,
        cells: in_first_phase(back(
            "was here before: start this machine with --disk FILE,create=",
            turned_away("was here before"),
        )),
    },
    Row {
        fault: Fault::NoRoomForCopy,
        cells: [
            back("its file system has room for", turned_away("its file system has room for")),
            back("could not be written: No space left on device", SideState::Ended(1, "No space left on device")),
            WRITTEN,
            WRITTEN,
            WRITTEN,
            WRITTEN,
        ],
    },
    Row {
        fault: Fault::ImageTruncated,
        cells: [
            back("could not be read: it was truncated to 65536 bytes", turned_away("closed the connection")),
            back("could not be read", NEVER_RAN),
            READ,
            READ,
            READ,
            READ,
        ],
    },
    CANCEL,
];
