//! The fault matrix of post-copy, as data: the guest is handed over by the command to run, and its memory follows over
//! connections that may break. `minivmm/tests/faults` runs it; `docs/faults.md` is generated from it.

use super::cell::{Answer, Cell, Fault, Guest, Row, SideState};
use super::marks::Mark;
use super::table::{ARRIVED, CANCELLED, HANDED_OVER, NEVER_RAN, asked, back, ends};

pub use super::postcopy_case::run;

/// The phase of a migration in post-copy in which the fault occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "`meaning` describes each")]
pub enum Moment {
    Package,
    Run,
    Runs,
    Pages,
    Paused,
    Recovery,
    LastPage,
    Shut,
}

impl Moment {
    /// All phases, in the order of a migration whose connection breaks once.
    pub const ALL: [Self; 8] =
        [Self::Package, Self::Run, Self::Runs, Self::Pages, Self::Paused, Self::Recovery, Self::LastPage, Self::Shut];

    /// The mark that the first relay holds back.
    pub(super) fn mark(self) -> Mark {
        match self {
            Self::Package => Mark::Package,
            Self::Run => Mark::Run,
            Self::Runs => Mark::Runs,
            Self::Pages | Self::Paused | Self::Recovery => Mark::PostcopyPages,
            Self::LastPage => Mark::Eof,
            Self::Shut => Mark::Shut,
        }
    }

    /// A short name, for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Package => "before the command to run",
            Self::Run => "after the command to run",
            Self::Runs => "after the answer",
            Self::Pages => "pages",
            Self::Paused => "paused",
            Self::Recovery => "recovery",
            Self::LastPage => "after the last page",
            Self::Shut => "after `SHUT`",
        }
    }

    /// A description in words, without a full stop.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Package => "the guest is paused at the source, and the package of its devices is in transit",
            Self::Run => "the source has released the disk image and sent `POSTCOPY_RUN`, which is in transit",
            Self::Runs => "the destination has taken over, and its report is in transit",
            Self::Pages => "the guest runs at the destination, and the missing pages are in transit",
            Self::Paused => "the connection broke in phase pages, and both sides are in `postcopy-paused`",
            Self::Recovery => "after that the source has connected again, and its first message is in transit",
            Self::LastPage => "all pages have arrived, and the end of the stream is in transit",
            Self::Shut => "the destination is complete and has sent `SHUT 0`, which is in transit",
        }
    }
}

/// The source waits for another connection.
const WAITS: SideState = SideState::Answers("finish-migrate", "postcopy-paused", "migrate with resume");

/// The destination lacks pages, and waits for another connection.
const LACKS: SideState =
    SideState::Answers("running", "postcopy-paused", "waits for memory that is only at the source");

const RESUMED: Cell = ends(Guest::LacksPages, WAITS, LACKS);
const LOST: Cell = ends(Guest::Lost, SideState::Killed, LACKS);
const DIED: Cell = ends(Guest::DiedWithItsProcess, WAITS, SideState::Killed);
const QUIT: Cell = asked(Answer::Done, Guest::DiedWithItsProcess, WAITS, SideState::Ended(0, ""));
const REFUSED: Cell = asked(Answer::Refused("handed over"), Guest::AtDestination, HANDED_OVER, ARRIVED);
/// The destination is complete, and its final answer is lost.
const ANSWER_LOST: Cell = ends(Guest::AtDestination, WAITS, ARRIVED);
const NO_CONNECTION: Cell = Cell::No("there is no connection");
const EARLIER: Cell = Cell::No("detected earlier");

/// The cells of a fault that costs the connection: from the command to run on, both sides continue over another one.
const fn connection_lost(package: Cell, run: Cell) -> [Cell; 8] {
    [package, run, RESUMED, RESUMED, NO_CONNECTION, RESUMED, RESUMED, ANSWER_LOST]
}

/// The rows, with a cell for each of [`Moment::ALL`].
pub const POSTCOPY_TABLE: &[Row<8>] = &[
    Row {
        fault: Fault::SourceKilled,
        cells: [
            ends(Guest::DiedWithItsProcess, SideState::Killed, NEVER_RAN),
            LOST,
            LOST,
            LOST,
            LOST,
            LOST,
            ends(Guest::AtDestination, SideState::Killed, ARRIVED),
            ends(Guest::AtDestination, SideState::Killed, ARRIVED),
        ],
    },
    Row {
        fault: Fault::DestinationKilled,
        cells: [
            back("", SideState::Killed),
            back("", SideState::Killed),
            DIED,
            DIED,
            DIED,
            DIED,
            DIED,
            ends(Guest::DiedWithItsProcess, HANDED_OVER, SideState::Killed),
        ],
    },
    Row { fault: Fault::WireCut, cells: connection_lost(back("", NEVER_RAN), back("", NEVER_RAN)) },
    Row {
        fault: Fault::WireStalls,
        cells: connection_lost(back("the guest is paused for", NEVER_RAN), back("is silent", NEVER_RAN)),
    },
    Row { fault: Fault::Damaged, cells: connection_lost(back("", NEVER_RAN), back("", NEVER_RAN)) },
    Row {
        fault: Fault::LoadRefused,
        cells: [
            back("the destination refused the guest", SideState::Ended(1, "version 99 is newer than 3")),
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
        ],
    },
    Row {
        fault: Fault::Cancel,
        cells: [
            asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
            REFUSED,
            REFUSED,
            REFUSED,
            asked(Answer::Done, Guest::Lost, SideState::Answers("postmigrate", "failed", "it is lost there"), LACKS),
            REFUSED,
            REFUSED,
            REFUSED,
        ],
    },
    Row {
        fault: Fault::QuitThere,
        cells: [
            asked(Answer::Done, Guest::AtSource, SideState::Answers("running", "failed", ""), SideState::Ended(0, "")),
            asked(Answer::Done, Guest::AtSource, SideState::Answers("running", "failed", ""), SideState::Ended(0, "")),
            QUIT,
            QUIT,
            QUIT,
            QUIT,
            QUIT,
            asked(Answer::Done, Guest::DiedWithItsProcess, HANDED_OVER, SideState::Ended(0, "")),
        ],
    },
];
