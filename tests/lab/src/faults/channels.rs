//! The fault matrix with page channels, as data: the faults that concern connections, and those that only exist with
//! page channels. `minivmm/tests/faults` runs it with [`CHANNELS`]; `docs/faults.md` is generated from it.

use super::cell::{Cell, Fault, Guest, Row};
use super::table::{
    ARRIVED, DELIVERED, DESTINATION_KILLED, NEVER_RAN, SOURCE_KILLED, UNACKNOWLEDGED, WAITS, back, ends,
    in_first_phase, turned_away,
};

/// Number of page channels.
pub const CHANNELS: u8 = 4;

const HERE: Cell = Cell::No("all channels are here before the first page");
const TAKEN: Cell = Cell::No("nobody listens any more");
const BACK: Cell = back("", NEVER_RAN);

/// The rows.
pub const CHANNEL_TABLE: &[Row] = &[
    SOURCE_KILLED,
    DESTINATION_KILLED,
    Row {
        fault: Fault::WireCut,
        cells: [back("", WAITS), BACK, BACK, BACK, BACK, ends(Guest::AtDestination, UNACKNOWLEDGED, ARRIVED)],
    },
    Row {
        fault: Fault::MainCut,
        cells: [back("", WAITS), BACK, BACK, BACK, BACK, ends(Guest::AtDestination, UNACKNOWLEDGED, ARRIVED)],
    },
    Row {
        fault: Fault::PagesCut,
        cells: [back("", turned_away("closed the connection")), BACK, DELIVERED, DELIVERED, DELIVERED, DELIVERED],
    },
    Row { fault: Fault::PagesStall, cells: [BACK, BACK, DELIVERED, DELIVERED, DELIVERED, DELIVERED] },
    Row { fault: Fault::PagesLate, cells: [DELIVERED, DELIVERED, HERE, HERE, HERE, HERE] },
    Row { fault: Fault::PagesStray, cells: in_first_phase(BACK) },
    Row { fault: Fault::Strays, cells: [DELIVERED, DELIVERED, DELIVERED, DELIVERED, DELIVERED, TAKEN] },
];
