//! The fault matrix as data: the outcome of a migration for each phase and fault. The tests run it with every guest;
//! `docs/faults.md` is generated from it.

use super::cell::{Answer, Cell, Fault, Guest, Row, SideState};

pub(super) const fn ends(guest: Guest, source: SideState, destination: SideState) -> Cell {
    Cell::Ends { guest, source, destination, answer: Answer::None }
}

pub(super) const fn asked(answer: Answer, guest: Guest, source: SideState, destination: SideState) -> Cell {
    Cell::Ends { guest, source, destination, answer }
}

/// The cells of a fault that is detected in the first phase, so that it cannot occur in a later one.
pub(super) const fn in_first_phase(cell: Cell) -> [Cell; 6] {
    [cell, EARLIER, EARLIER, EARLIER, EARLIER, EARLIER]
}

pub(super) const fn back(source: &'static str, destination: SideState) -> Cell {
    ends(Guest::AtSource, failed(source), destination)
}

pub(super) const fn failed(why: &'static str) -> SideState {
    SideState::Answers("running", "failed", why)
}

pub(super) const HANDED_OVER: SideState = SideState::Answers("postmigrate", "completed", "");
pub(super) const ARRIVED: SideState = SideState::Answers("running", "completed", "");
pub(super) const WAITS: SideState = SideState::Answers("inmigrate", "setup", "");
/// The source has sent only its header and its first PING, so nothing of the destination's machine has changed.
pub(super) const fn turned_away(why: &'static str) -> SideState {
    SideState::Answers("inmigrate", "setup", why)
}

pub(super) const NEVER_RAN: SideState = SideState::Ended(1, "the guest did not run here");
pub(super) const UNACKNOWLEDGED: SideState = SideState::Answers("postmigrate", "unacknowledged", "did not confirm");
/// The destination's copy is complete, but it could not take the lock: `cont` tries again.
pub(super) const STRANDED: SideState =
    SideState::Answers("paused", "failed", "it stays stopped here; cont tries again");
pub(super) const CANCELLED: SideState = SideState::Answers("running", "cancelled", "");

pub(super) const DELIVERED: Cell = ends(Guest::AtDestination, HANDED_OVER, ARRIVED);
const DONE_AND_DELIVERED: Cell = asked(Answer::Done, Guest::AtDestination, HANDED_OVER, ARRIVED);
const UNDER_WAY: Cell = asked(Answer::Refused("under way"), Guest::AtDestination, HANDED_OVER, ARRIVED);
pub(super) const EARLIER: Cell = Cell::No("detected in an earlier phase");
pub(super) const LATER: Cell = Cell::No("occurs in a later phase");
pub(super) const HELD: Cell = Cell::No("the side that owns the guest holds the lock, so no other process gets it");
const PAUSED: Cell = Cell::No("the guest does not run in this phase");

/// A row that is the same with page channels and without.
pub(super) const SOURCE_KILLED: Row = Row {
    fault: Fault::SourceKilled,
    cells: [
        ends(Guest::DiedWithItsProcess, SideState::Killed, turned_away("closed the connection")),
        ends(Guest::DiedWithItsProcess, SideState::Killed, NEVER_RAN),
        ends(Guest::DiedWithItsProcess, SideState::Killed, NEVER_RAN),
        ends(Guest::DiedWithItsProcess, SideState::Killed, NEVER_RAN),
        ends(Guest::AtDestination, SideState::Killed, ARRIVED),
        ends(Guest::AtDestination, SideState::Killed, ARRIVED),
    ],
};
pub(super) const DESTINATION_KILLED: Row = Row {
    fault: Fault::DestinationKilled,
    cells: [
        back("", SideState::Killed),
        back("", SideState::Killed),
        back("", SideState::Killed),
        back("", SideState::Killed),
        back("", SideState::Killed),
        ends(Guest::DiedWithItsProcess, HANDED_OVER, SideState::Killed),
    ],
};

pub(super) const LOCK_TAKEN: Row = Row {
    fault: Fault::LockTaken,
    cells: [HELD, HELD, HELD, HELD, ends(Guest::PausedAtSource, UNACKNOWLEDGED, STRANDED), HELD],
};

/// Cancelled by a user.
pub(super) const CANCEL: Row = Row {
    fault: Fault::Cancel,
    cells: [
        asked(Answer::Done, Guest::AtSource, CANCELLED, turned_away("closed the connection")),
        asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
        asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
        asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
        asked(Answer::Refused("handed over"), Guest::AtDestination, HANDED_OVER, ARRIVED),
        asked(Answer::Refused("handed over"), Guest::AtDestination, HANDED_OVER, ARRIVED),
    ],
};

pub(super) const EOF_LATE: Row =
    Row { fault: Fault::EofLate, cells: [LATER, LATER, LATER, LATER, back("is silent", STRANDED), EARLIER] };

pub(super) const EOF_LATE_AFTER_QUIT: Row = Row {
    fault: Fault::EofLateAfterQuit,
    cells: [
        LATER,
        LATER,
        LATER,
        LATER,
        ends(Guest::DiedWithItsProcess, SideState::Ended(0, ""), SideState::Ended(1, "someone has run a guest")),
        EARLIER,
    ],
};

pub(super) const DISK_FULL: Row = Row { fault: Fault::DiskFull, cells: [LATER, LATER, LATER, LATER, LATER, DELIVERED] };

pub(super) const LOAD_REFUSED: Row = Row {
    fault: Fault::LoadRefused,
    cells: [
        LATER,
        LATER,
        back("the destination refused the guest", SideState::Ended(1, "version 99 is newer than 3")),
        EARLIER,
        EARLIER,
        EARLIER,
    ],
};

pub(super) const UNKNOWN_SECTION: Row = Row {
    fault: Fault::UnknownSection,
    cells: [
        LATER,
        LATER,
        back("the destination refused the guest", SideState::Ended(1, "this machine has no such section")),
        EARLIER,
        EARLIER,
        EARLIER,
    ],
};

/// The matrix.
pub const TABLE: &[Row] = &[
    SOURCE_KILLED,
    DESTINATION_KILLED,
    Row {
        fault: Fault::WireCut,
        cells: [
            back("", WAITS),
            back("", NEVER_RAN),
            back("", NEVER_RAN),
            back("", NEVER_RAN),
            back("", NEVER_RAN),
            ends(Guest::AtDestination, UNACKNOWLEDGED, ARRIVED),
        ],
    },
    Row {
        fault: Fault::WireStalls,
        cells: [
            back("is silent", WAITS),
            back("is silent", NEVER_RAN),
            back("the guest is paused for", NEVER_RAN),
            back("the guest is paused for", NEVER_RAN),
            back("is silent", NEVER_RAN),
            ends(Guest::AtDestination, UNACKNOWLEDGED, ARRIVED),
        ],
    },
    Row {
        fault: Fault::WireTrickles,
        cells: [
            asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
            asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
            back("the guest is paused for", NEVER_RAN),
            DELIVERED,
            DELIVERED,
            DELIVERED,
        ],
    },
    LOCK_TAKEN,
    Row { fault: Fault::LockTakenBriefly, cells: [HELD, HELD, HELD, HELD, DELIVERED, HELD] },
    Row {
        fault: Fault::ImageCopied,
        cells: in_first_phase(back(
            "the destination refused the guest",
            turned_away("is not the source's file but a copy"),
        )),
    },
    EOF_LATE,
    EOF_LATE_AFTER_QUIT,
    CANCEL,
    Row {
        fault: Fault::Quit,
        cells: [
            asked(
                Answer::Done,
                Guest::DiedWithItsProcess,
                SideState::Ended(0, ""),
                turned_away("closed the connection"),
            ),
            asked(Answer::Done, Guest::DiedWithItsProcess, SideState::Ended(0, ""), NEVER_RAN),
            asked(Answer::Done, Guest::DiedWithItsProcess, SideState::Ended(0, ""), NEVER_RAN),
            asked(Answer::Done, Guest::DiedWithItsProcess, SideState::Ended(0, ""), NEVER_RAN),
            asked(Answer::Done, Guest::AtDestination, SideState::Ended(0, ""), ARRIVED),
            asked(Answer::Done, Guest::AtDestination, SideState::Ended(0, ""), ARRIVED),
        ],
    },
    Row {
        fault: Fault::Stop,
        cells: [
            asked(Answer::Done, Guest::PausedAtDestination, HANDED_OVER, SideState::Answers("paused", "completed", "")),
            asked(Answer::Done, Guest::PausedAtDestination, HANDED_OVER, SideState::Answers("paused", "completed", "")),
            asked(Answer::Refused("cannot stop"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot stop"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot stop"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot stop"), Guest::AtDestination, HANDED_OVER, ARRIVED),
        ],
    },
    Row {
        fault: Fault::Reset,
        cells: [
            asked(Answer::Done, Guest::AnewAtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Done, Guest::AnewAtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot reset"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot reset"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot reset"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot reset"), Guest::AtDestination, HANDED_OVER, ARRIVED),
        ],
    },
    Row {
        fault: Fault::PowerButton,
        cells: [
            DONE_AND_DELIVERED,
            DONE_AND_DELIVERED,
            asked(Answer::Refused("cannot take the power button"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot take the power button"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot take the power button"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot take the power button"), Guest::AtDestination, HANDED_OVER, ARRIVED),
        ],
    },
    Row {
        fault: Fault::GuestPowersOff,
        cells: [
            ends(Guest::PoweredOff, SideState::Ended(0, ""), turned_away("closed the connection")),
            ends(Guest::PoweredOff, SideState::Ended(0, ""), NEVER_RAN),
            PAUSED,
            PAUSED,
            PAUSED,
            ends(Guest::PoweredOff, HANDED_OVER, SideState::Ended(0, "")),
        ],
    },
    Row {
        fault: Fault::GuestReboots,
        cells: [
            ends(Guest::AnewAtDestination, HANDED_OVER, ARRIVED),
            ends(Guest::AnewAtDestination, HANDED_OVER, ARRIVED),
            PAUSED,
            PAUSED,
            PAUSED,
            ends(Guest::AnewAtDestination, HANDED_OVER, ARRIVED),
        ],
    },
    Row { fault: Fault::SecondMigrate, cells: [UNDER_WAY, UNDER_WAY, UNDER_WAY, UNDER_WAY, UNDER_WAY, UNDER_WAY] },
    DISK_FULL,
    LOAD_REFUSED,
    Row {
        fault: Fault::PostLoadFails,
        cells: [
            LATER,
            LATER,
            back("the destination refused the guest", SideState::Ended(1, "ier 0xf0 has bits")),
            EARLIER,
            EARLIER,
            EARLIER,
        ],
    },
    Row {
        fault: Fault::OtherMemory,
        cells: in_first_phase(back("the destination refused the guest", turned_away("start it with --memory 16M"))),
    },
    Row {
        fault: Fault::OtherCpu,
        cells: in_first_phase(back("the destination refused the guest", turned_away("avx512pf"))),
    },
    UNKNOWN_SECTION,
    Row { fault: Fault::WrongMachine, cells: in_first_phase(back("", turned_away("a machine of type macrovm"))) },
    Row { fault: Fault::WrongMagic, cells: in_first_phase(back("", WAITS)) },
];
