//! The fault matrix as data: for each phase and fault, how a migration ends. The tests walk it; `docs/faults.md` is made from it.

use crate::wire::Mark;

/// How far the migration is when the fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Setup,
    Rounds,
    SwitchOver,
    Ready,
    Eof,
    Shut,
}

impl Phase {
    pub(crate) const ALL: [Self; 6] = [Self::Setup, Self::Rounds, Self::SwitchOver, Self::Ready, Self::Eof, Self::Shut];

    /// The wire holds this back until the fault has come.
    pub(crate) fn mark(self) -> Mark {
        match self {
            Self::Setup => Mark::Header,
            Self::Rounds => Mark::Round,
            Self::SwitchOver => Mark::SwitchOver,
            Self::Ready => Mark::Ready,
            Self::Eof => Mark::Eof,
            Self::Shut => Mark::Shut,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Rounds => "rounds",
            Self::SwitchOver => "switch-over",
            Self::Ready => "ready",
            Self::Eof => "after EOF",
            Self::Shut => "after `SHUT`",
        }
    }

    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Setup => "the source has connected, and its first bytes are on their way",
            Self::Rounds => "the first round is sent, the guest runs at the source",
            Self::SwitchOver => "the guest is paused at the source",
            Self::Ready => "the destination has loaded everything, and the source does not know it yet",
            Self::Eof => "the source has let go of the disk image and said EOF, which is on its way",
            Self::Shut => "the destination has taken over and said `SHUT 0`, which is on its way",
        }
    }
}

/// What goes wrong, or what someone does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    SourceKilled,
    DestinationKilled,
    WireCut,
    WireStalls,
    WireTrickles,
    LockTaken,
    LockTakenBriefly,
    ImageCopied,
    EofLate,
    EofLateAfterQuit,
    Cancel,
    Quit,
    Stop,
    Reset,
    PowerButton,
    GuestPowersOff,
    GuestReboots,
    SecondMigrate,
    DiskFull,
    LoadRefused,
    PostLoadFails,
    OtherMemory,
    OtherCpu,
    UnknownSection,
    WrongMachine,
    WrongMagic,
}

impl Fault {
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::SourceKilled => "source killed",
            Self::DestinationKilled => "destination killed",
            Self::WireCut => "wire cut; what was on its way is lost",
            Self::WireStalls => "wire stalls until the source has given up",
            Self::WireTrickles => "wire lets 512 bytes pass every 100 ms",
            Self::LockTaken => "a third party takes the lock, and keeps it until both sides have given up",
            Self::LockTakenBriefly => "a third party takes the lock, and lets go within the destination's patience",
            Self::ImageCopied => "the destination has its own copy of the image",
            Self::EofLate => "EOF comes after the source has taken the guest back",
            Self::EofLateAfterQuit => "EOF comes after the source has taken the guest back, run it on, and quit",
            Self::Cancel => "`migrate_cancel`",
            Self::Quit => "`quit` at the source",
            Self::Stop => "`stop` at the source",
            Self::Reset => "`system_reset` at the source",
            Self::PowerButton => "`system_powerdown` at the source",
            Self::GuestPowersOff => "the guest powers off",
            Self::GuestReboots => "the guest reboots",
            Self::SecondMigrate => "a second `migrate`",
            Self::DiskFull => "the disk with the destination's console is full",
            Self::LoadRefused => "a section has a version that the destination does not load",
            Self::PostLoadFails => "a section's values fail its own check",
            Self::OtherMemory => "the destination has another memory size",
            Self::OtherCpu => "the destination lacks a CPU feature",
            Self::UnknownSection => "a section that the destination does not have",
            Self::WrongMachine => "another machine type",
            Self::WrongMagic => "not a migration stream",
        }
    }
}

/// Where the guest is in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// It runs at the source, and nowhere else.
    AtSource,
    /// It runs at the destination, and nowhere else.
    AtDestination,
    /// It has been started anew at the source, and runs nowhere else.
    AnewAtSource,
    /// It has been started anew at the destination, and runs nowhere else.
    AnewAtDestination,
    /// It is paused at the source; the destination never ran it; `cont` at the source runs it, and nobody else does.
    PausedAtSource,
    /// It is paused at the destination; `cont` there runs it, and nobody else does.
    PausedAtDestination,
    /// It powered off.
    PoweredOff,
    /// The process that it ran in was ended.
    DiedWithItsProcess,
}

impl Guest {
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::AtSource => "runs at the source",
            Self::AtDestination => "runs at the destination",
            Self::AnewAtSource => "rebooted, runs at the source",
            Self::AnewAtDestination => "rebooted, runs at the destination",
            Self::PausedAtSource => "paused at the source, `cont` runs it there",
            Self::PausedAtDestination => "paused at the destination, `cont` runs it there",
            Self::PoweredOff => "powered off",
            Self::DiedWithItsProcess => "ended with the process that ran it",
        }
    }
}

/// What one side says in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// The test killed it.
    Killed,
    /// The process ended with this exit code, and this is in what it wrote to its standard error.
    Ended(i32, &'static str),
    /// Run state, status of the migration, and what is in the migration's error. A failure always has one, but its words may
    /// be the system's about a broken connection.
    Answers(&'static str, &'static str, &'static str),
}

/// What whoever gave a command is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// There was no command.
    None,
    /// It was carried out.
    Done,
    /// It was refused, with this in the reason.
    Refused(&'static str),
}

/// How one fault in one phase ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cell {
    Ends {
        guest: Guest,
        source: Says,
        destination: Says,
        answer: Answer,
    },
    /// There is no such thing, and why.
    No(&'static str),
}

/// One fault in every phase.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) fault: Fault,
    pub(crate) cells: [Cell; 6],
}

const fn ends(guest: Guest, source: Says, destination: Says) -> Cell {
    Cell::Ends { guest, source, destination, answer: Answer::None }
}

const fn asked(answer: Answer, guest: Guest, source: Says, destination: Says) -> Cell {
    Cell::Ends { guest, source, destination, answer }
}

const fn back(source: &'static str, destination: Says) -> Cell {
    ends(Guest::AtSource, failed(source), destination)
}

const fn failed(why: &'static str) -> Says {
    Says::Answers("running", "failed", why)
}

const HANDED_OVER: Says = Says::Answers("postmigrate", "completed", "");
const ARRIVED: Says = Says::Answers("running", "completed", "");
const WAITS: Says = Says::Answers("inmigrate", "setup", "");
/// Nothing of the machine was changed yet.
const fn turned_away(why: &'static str) -> Says {
    Says::Answers("inmigrate", "setup", why)
}

const NEVER_RAN: Says = Says::Ended(1, "the guest did not run here");
const UNACKNOWLEDGED: Says = Says::Answers("postmigrate", "unacknowledged", "did not confirm");
/// Its copy is whole, and it could not take the lock: `cont` tries again.
const STRANDED: Says = Says::Answers("paused", "failed", "it stays stopped here; cont tries again");
const fn cancelled_for(why: &'static str) -> Says {
    Says::Answers("running", "cancelled", why)
}

const CANCELLED: Says = Says::Answers("running", "cancelled", "");

const DELIVERED: Cell = ends(Guest::AtDestination, HANDED_OVER, ARRIVED);
const DONE_AND_DELIVERED: Cell = asked(Answer::Done, Guest::AtDestination, HANDED_OVER, ARRIVED);
const UNDER_WAY: Cell = asked(Answer::Refused("under way"), Guest::AtDestination, HANDED_OVER, ARRIVED);
const EARLIER: Cell = Cell::No("found out in an earlier phase");
const LATER: Cell = Cell::No("comes in a later phase");
const HELD: Cell = Cell::No("the side that owns the guest holds the lock, so nobody else gets it");
const PAUSED: Cell = Cell::No("the guest does not run in this phase");

/// The matrix.
pub(crate) const TABLE: &[Row] = &[
    Row {
        fault: Fault::SourceKilled,
        cells: [
            ends(Guest::DiedWithItsProcess, Says::Killed, turned_away("the lock of disk 0")),
            ends(Guest::DiedWithItsProcess, Says::Killed, NEVER_RAN),
            ends(Guest::DiedWithItsProcess, Says::Killed, NEVER_RAN),
            ends(Guest::DiedWithItsProcess, Says::Killed, NEVER_RAN),
            ends(Guest::AtDestination, Says::Killed, ARRIVED),
            ends(Guest::AtDestination, Says::Killed, ARRIVED),
        ],
    },
    Row {
        fault: Fault::DestinationKilled,
        cells: [
            back("", Says::Killed),
            back("", Says::Killed),
            back("", Says::Killed),
            back("", Says::Killed),
            back("", Says::Killed),
            ends(Guest::DiedWithItsProcess, HANDED_OVER, Says::Killed),
        ],
    },
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
    Row {
        fault: Fault::LockTaken,
        cells: [HELD, HELD, HELD, HELD, ends(Guest::PausedAtSource, UNACKNOWLEDGED, STRANDED), HELD],
    },
    Row { fault: Fault::LockTakenBriefly, cells: [HELD, HELD, HELD, HELD, DELIVERED, HELD] },
    Row {
        fault: Fault::ImageCopied,
        cells: [
            back("the destination refused the guest", turned_away("is not the source's file but a copy")),
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
        ],
    },
    Row { fault: Fault::EofLate, cells: [LATER, LATER, LATER, LATER, back("is silent", STRANDED), EARLIER] },
    Row {
        fault: Fault::EofLateAfterQuit,
        cells: [
            LATER,
            LATER,
            LATER,
            LATER,
            ends(Guest::DiedWithItsProcess, Says::Ended(0, ""), Says::Ended(1, "someone has run a guest")),
            EARLIER,
        ],
    },
    Row {
        fault: Fault::Cancel,
        cells: [
            asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
            asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
            asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
            asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
            asked(Answer::Refused("handed over"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("handed over"), Guest::AtDestination, HANDED_OVER, ARRIVED),
        ],
    },
    Row {
        fault: Fault::Quit,
        cells: [
            asked(Answer::Done, Guest::DiedWithItsProcess, Says::Ended(0, ""), turned_away("the lock of disk 0")),
            asked(Answer::Done, Guest::DiedWithItsProcess, Says::Ended(0, ""), NEVER_RAN),
            asked(Answer::Done, Guest::DiedWithItsProcess, Says::Ended(0, ""), NEVER_RAN),
            asked(Answer::Done, Guest::DiedWithItsProcess, Says::Ended(0, ""), NEVER_RAN),
            asked(Answer::Done, Guest::AtDestination, Says::Ended(0, ""), ARRIVED),
            asked(Answer::Done, Guest::AtDestination, Says::Ended(0, ""), ARRIVED),
        ],
    },
    Row {
        fault: Fault::Stop,
        cells: [
            asked(Answer::Done, Guest::PausedAtDestination, HANDED_OVER, Says::Answers("paused", "completed", "")),
            asked(Answer::Done, Guest::PausedAtDestination, HANDED_OVER, Says::Answers("paused", "completed", "")),
            asked(Answer::Refused("cannot stop"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot stop"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot stop"), Guest::AtDestination, HANDED_OVER, ARRIVED),
            asked(Answer::Refused("cannot stop"), Guest::AtDestination, HANDED_OVER, ARRIVED),
        ],
    },
    Row {
        fault: Fault::Reset,
        cells: [
            asked(Answer::Done, Guest::AnewAtSource, cancelled_for("a reset was asked for"), NEVER_RAN),
            asked(Answer::Done, Guest::AnewAtSource, cancelled_for("a reset was asked for"), NEVER_RAN),
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
            ends(Guest::PoweredOff, Says::Ended(0, ""), turned_away("the lock of disk 0")),
            ends(Guest::PoweredOff, Says::Ended(0, ""), NEVER_RAN),
            PAUSED,
            PAUSED,
            PAUSED,
            ends(Guest::PoweredOff, HANDED_OVER, Says::Ended(0, "")),
        ],
    },
    Row {
        fault: Fault::GuestReboots,
        cells: [
            ends(Guest::AnewAtSource, cancelled_for("the guest reset itself"), NEVER_RAN),
            ends(Guest::AnewAtSource, cancelled_for("the guest reset itself"), NEVER_RAN),
            PAUSED,
            PAUSED,
            PAUSED,
            ends(Guest::AnewAtDestination, HANDED_OVER, ARRIVED),
        ],
    },
    Row { fault: Fault::SecondMigrate, cells: [UNDER_WAY, UNDER_WAY, UNDER_WAY, UNDER_WAY, UNDER_WAY, UNDER_WAY] },
    Row { fault: Fault::DiskFull, cells: [LATER, LATER, LATER, LATER, LATER, DELIVERED] },
    Row {
        fault: Fault::LoadRefused,
        cells: [
            LATER,
            LATER,
            back("the destination refused the guest", Says::Ended(1, "version 99 is newer than 3")),
            EARLIER,
            EARLIER,
            EARLIER,
        ],
    },
    Row {
        fault: Fault::PostLoadFails,
        cells: [
            LATER,
            LATER,
            back("the destination refused the guest", Says::Ended(1, "ier 0xf0 has bits")),
            EARLIER,
            EARLIER,
            EARLIER,
        ],
    },
    Row {
        fault: Fault::OtherMemory,
        cells: [
            back("the destination refused the guest", turned_away("give both sides the same memory")),
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
        ],
    },
    Row {
        fault: Fault::OtherCpu,
        cells: [
            back("the destination refused the guest", turned_away("avx512pf")),
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
        ],
    },
    Row {
        fault: Fault::UnknownSection,
        cells: [
            LATER,
            LATER,
            back("the destination refused the guest", Says::Ended(1, "this machine has no such section")),
            EARLIER,
            EARLIER,
            EARLIER,
        ],
    },
    Row {
        fault: Fault::WrongMachine,
        cells: [back("", turned_away("a machine of type macrovm")), EARLIER, EARLIER, EARLIER, EARLIER, EARLIER],
    },
    Row { fault: Fault::WrongMagic, cells: [back("", WAITS), EARLIER, EARLIER, EARLIER, EARLIER, EARLIER] },
];
