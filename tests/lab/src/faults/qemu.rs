//! The fault matrix with a QEMU at one end, as data. The commit is weaker there: a QEMU writes no ownership record and
//! runs the guest before it reports that, and only the image's lock decides. `tests/e2e/qemu/faults.rs` runs it;
//! `docs/faults.md` is generated from it.

use super::cell::{Answer, Cell, Fault, Guest, Phase, Says};

/// The direction of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From a QEMU with the capability `return-path` to a minivmm.
    FromQemu,
    /// From a QEMU without `return-path` to a minivmm.
    FromDeafQemu,
    /// From a minivmm to a QEMU.
    ToQemu,
}

impl Way {
    /// The direction in words, without a full stop.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::FromQemu => "from a QEMU with `return-path` to minivmm",
            Self::FromDeafQemu => "from a QEMU without `return-path` to minivmm",
            Self::ToQemu => "from minivmm to a QEMU",
        }
    }
}

/// The outcomes of one fault in one direction.
#[derive(Clone, Copy, Debug)]
pub struct QemuRow {
    /// The direction.
    pub way: Way,
    /// The fault.
    pub fault: Fault,
    /// The phases in which the fault can occur, each with its outcome.
    pub cells: &'static [(Phase, Cell)],
}

const fn ends(guest: Guest, source: Says, destination: Says) -> Cell {
    Cell::Ends { guest, source, destination, answer: Answer::None }
}

const FAILED: Says = Says::Answers("running", "failed", "");
const HANDED_OVER: Says = Says::Answers("postmigrate", "completed", "");
const UNDECIDED: Says = Says::Answers("postmigrate", "undecided", "nothing can prove");
const ARRIVED: Says = Says::Answers("running", "completed", "");
const WAITS: Says = Says::Answers("inmigrate", "setup", "");
const STRANDED: Says = Says::Answers("paused", "failed", "the source most likely, holds");
const NEVER_RAN: Says = Says::Ended(1, "the guest did not run here");
const QEMU_NEVER_RAN: Says = Says::Ended(1, "load of migration failed");

const DIED: Guest = Guest::DiedWithItsProcess;
const UNHEARD: Cell = ends(Guest::PausedAtSource, HANDED_OVER, Says::Killed);

/// The rows.
pub const QEMU_TABLE: &[QemuRow] = &[
    QemuRow {
        way: Way::FromQemu,
        fault: Fault::SourceKilled,
        cells: &[
            (Phase::Setup, ends(DIED, Says::Killed, WAITS)),
            (Phase::Rounds, ends(DIED, Says::Killed, NEVER_RAN)),
            (Phase::SwitchOver, ends(DIED, Says::Killed, NEVER_RAN)),
            (Phase::Eof, ends(Guest::AtDestination, Says::Killed, ARRIVED)),
            (Phase::Shut, ends(Guest::AtDestination, Says::Killed, ARRIVED)),
        ],
    },
    QemuRow {
        way: Way::FromQemu,
        fault: Fault::DestinationKilled,
        cells: &[
            (Phase::Setup, ends(Guest::AtSource, FAILED, Says::Killed)),
            (Phase::Rounds, ends(Guest::AtSource, FAILED, Says::Killed)),
            (Phase::SwitchOver, ends(Guest::AtSource, FAILED, Says::Killed)),
            (Phase::Eof, ends(Guest::AtSource, FAILED, Says::Killed)),
            (Phase::Shut, ends(Guest::StaleAtSource, HANDED_OVER, Says::Killed)),
        ],
    },
    QemuRow {
        way: Way::FromQemu,
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
        way: Way::FromDeafQemu,
        fault: Fault::DestinationKilled,
        cells: &[(Phase::Rounds, ends(Guest::AtSource, FAILED, Says::Killed)), (Phase::Eof, UNHEARD)],
    },
    QemuRow {
        way: Way::FromDeafQemu,
        fault: Fault::WireCut,
        cells: &[
            (Phase::Rounds, ends(Guest::AtSource, FAILED, NEVER_RAN)),
            (Phase::SwitchOver, ends(Guest::AtSource, FAILED, NEVER_RAN)),
            (Phase::Eof, ends(Guest::PausedAtSource, HANDED_OVER, NEVER_RAN)),
        ],
    },
    QemuRow {
        way: Way::ToQemu,
        fault: Fault::SourceKilled,
        cells: &[
            (Phase::Setup, ends(DIED, Says::Killed, QEMU_NEVER_RAN)),
            (Phase::Rounds, ends(DIED, Says::Killed, QEMU_NEVER_RAN)),
            (Phase::SwitchOver, ends(DIED, Says::Killed, QEMU_NEVER_RAN)),
            (Phase::Ready, ends(DIED, Says::Killed, QEMU_NEVER_RAN)),
            (Phase::Eof, ends(Guest::AtDestination, Says::Killed, ARRIVED)),
            (Phase::Shut, ends(Guest::AtDestination, Says::Killed, ARRIVED)),
        ],
    },
    QemuRow {
        way: Way::ToQemu,
        fault: Fault::DestinationKilled,
        cells: &[
            (Phase::Setup, ends(Guest::AtSource, FAILED, Says::Killed)),
            (Phase::Rounds, ends(Guest::AtSource, FAILED, Says::Killed)),
            (Phase::SwitchOver, ends(Guest::AtSource, FAILED, Says::Killed)),
            (Phase::Eof, ends(Guest::UndecidedAtSource, UNDECIDED, Says::Killed)),
            (Phase::Shut, ends(DIED, HANDED_OVER, Says::Killed)),
        ],
    },
    QemuRow {
        way: Way::ToQemu,
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
