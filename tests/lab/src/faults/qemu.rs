//! The fault matrix with a QEMU at one end, as data. The commit is weaker there: a QEMU writes no ownership record and
//! runs the guest before it reports that, and only the image's lock decides. `tests/e2e/qemu/faults.rs` runs it;
//! `docs/faults.md` is generated from it.

use super::cell::{Answer, Cell, Fault, Guest, Phase, SideState};

/// The direction of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a QEMU with the capability `return-path` to a minivmm.
    FromQemu,
    /// From a QEMU without `return-path` to a minivmm.
    FromQemuWithoutReturnPath,
    /// From a minivmm to a QEMU.
    ToQemu,
}

impl Direction {
    /// The direction in words, without a full stop.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::FromQemu => "from a QEMU with `return-path` to minivmm",
            Self::FromQemuWithoutReturnPath => "from a QEMU without `return-path` to minivmm",
            Self::ToQemu => "from minivmm to a QEMU",
        }
    }
}

/// The outcomes of one fault in one direction.
#[derive(Clone, Copy, Debug)]
pub struct QemuRow {
    /// The direction.
    pub direction: Direction,
    /// The fault.
    pub fault: Fault,
    /// The phases in which the fault can occur, each with its outcome.
    pub cells: &'static [(Phase, Cell)],
}

const fn ends(guest: Guest, source: SideState, destination: SideState) -> Cell {
    Cell::Ends { guest, source, destination, answer: Answer::None }
}

const FAILED: SideState = SideState::Answers("running", "failed", "");
const HANDED_OVER: SideState = SideState::Answers("postmigrate", "completed", "");
const UNDECIDED: SideState = SideState::Answers("postmigrate", "undecided", "nothing can prove");
const ARRIVED: SideState = SideState::Answers("running", "completed", "");
const WAITS: SideState = SideState::Answers("inmigrate", "setup", "");
const STRANDED: SideState = SideState::Answers("paused", "failed", "the source most likely, holds");
const NEVER_RAN: SideState = SideState::Ended(1, "the guest did not run here");
const QEMU_NEVER_RAN: SideState = SideState::Ended(1, "load of migration failed");

const DIED: Guest = Guest::DiedWithItsProcess;
const UNHEARD: Cell = ends(Guest::PausedAtSource, HANDED_OVER, SideState::Killed);

/// The rows.
pub const QEMU_TABLE: &[QemuRow] = &[
    QemuRow {
        direction: Direction::FromQemu,
        fault: Fault::SourceKilled,
        cells: &[
            (Phase::Setup, ends(DIED, SideState::Killed, WAITS)),
            (Phase::Rounds, ends(DIED, SideState::Killed, NEVER_RAN)),
            (Phase::SwitchOver, ends(DIED, SideState::Killed, NEVER_RAN)),
            (Phase::Eof, ends(Guest::AtDestination, SideState::Killed, ARRIVED)),
            (Phase::Shut, ends(Guest::AtDestination, SideState::Killed, ARRIVED)),
        ],
    },
    QemuRow {
        direction: Direction::FromQemu,
        fault: Fault::DestinationKilled,
        cells: &[
            (Phase::Setup, ends(Guest::AtSource, FAILED, SideState::Killed)),
            (Phase::Rounds, ends(Guest::AtSource, FAILED, SideState::Killed)),
            (Phase::SwitchOver, ends(Guest::AtSource, FAILED, SideState::Killed)),
            (Phase::Eof, ends(Guest::AtSource, FAILED, SideState::Killed)),
            (Phase::Shut, ends(Guest::StaleAtSource, HANDED_OVER, SideState::Killed)),
        ],
    },
    QemuRow {
        direction: Direction::FromQemu,
        fault: Fault::WireCut,
        cells: &[
            (Phase::Setup, ends(Guest::AtSource, FAILED, WAITS)),
            (Phase::Rounds, ends(Guest::AtSource, FAILED, NEVER_RAN)),
            (Phase::SwitchOver, ends(Guest::AtSource, FAILED, NEVER_RAN)),
            (Phase::Eof, ends(Guest::AtSource, FAILED, NEVER_RAN)),
            (Phase::Shut, ends(Guest::AtSource, FAILED, STRANDED)),
        ],
    },
    QemuRow {
        direction: Direction::FromQemuWithoutReturnPath,
        fault: Fault::DestinationKilled,
        cells: &[(Phase::Rounds, ends(Guest::AtSource, FAILED, SideState::Killed)), (Phase::Eof, UNHEARD)],
    },
    QemuRow {
        direction: Direction::FromQemuWithoutReturnPath,
        fault: Fault::WireCut,
        cells: &[
            (Phase::Rounds, ends(Guest::AtSource, FAILED, NEVER_RAN)),
            (Phase::SwitchOver, ends(Guest::AtSource, FAILED, NEVER_RAN)),
            (Phase::Eof, ends(Guest::PausedAtSource, HANDED_OVER, NEVER_RAN)),
        ],
    },
    QemuRow {
        direction: Direction::ToQemu,
        fault: Fault::SourceKilled,
        cells: &[
            (Phase::Setup, ends(DIED, SideState::Killed, QEMU_NEVER_RAN)),
            (Phase::Rounds, ends(DIED, SideState::Killed, QEMU_NEVER_RAN)),
            (Phase::SwitchOver, ends(DIED, SideState::Killed, QEMU_NEVER_RAN)),
            (Phase::Ready, ends(DIED, SideState::Killed, QEMU_NEVER_RAN)),
            (Phase::Eof, ends(Guest::AtDestination, SideState::Killed, ARRIVED)),
            (Phase::Shut, ends(Guest::AtDestination, SideState::Killed, ARRIVED)),
        ],
    },
    QemuRow {
        direction: Direction::ToQemu,
        fault: Fault::DestinationKilled,
        cells: &[
            (Phase::Setup, ends(Guest::AtSource, FAILED, SideState::Killed)),
            (Phase::Rounds, ends(Guest::AtSource, FAILED, SideState::Killed)),
            (Phase::SwitchOver, ends(Guest::AtSource, FAILED, SideState::Killed)),
            (Phase::Eof, ends(Guest::UndecidedAtSource, UNDECIDED, SideState::Killed)),
            (Phase::Shut, ends(DIED, HANDED_OVER, SideState::Killed)),
        ],
    },
    QemuRow {
        direction: Direction::ToQemu,
        fault: Fault::WireCut,
        cells: &[
            (Phase::Setup, ends(Guest::AtSource, FAILED, QEMU_NEVER_RAN)),
            (Phase::Rounds, ends(Guest::AtSource, FAILED, QEMU_NEVER_RAN)),
            (Phase::SwitchOver, ends(Guest::AtSource, FAILED, QEMU_NEVER_RAN)),
            (Phase::Ready, ends(Guest::AtSource, FAILED, QEMU_NEVER_RAN)),
            (Phase::Eof, ends(Guest::UndecidedAtSource, UNDECIDED, QEMU_NEVER_RAN)),
            (Phase::Shut, ends(Guest::AtDestination, UNDECIDED, ARRIVED)),
        ],
    },
];
