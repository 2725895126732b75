//! The fault matrix of post-copy, as data: the guest is handed over by an order to run, and its memory follows over connections that may
//! break. `minivmm/tests/faults` walks it; `docs/faults.md` is made from it.

use super::cell::{Answer, Cell, Fault, Guest, Says};
use super::marks::Mark;
use super::table::{ARRIVED, CANCELLED, HANDED_OVER, NEVER_RAN, asked, back, ends};

pub use super::postcopy_case::walk;

/// How far a migration in post-copy is when the fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "`meaning` says what each is")]
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
    /// In the order of a migration whose connection breaks once.
    pub const ALL: [Self; 8] =
        [Self::Package, Self::Run, Self::Runs, Self::Pages, Self::Paused, Self::Recovery, Self::LastPage, Self::Shut];

    /// What the first wire holds back.
    pub(super) fn mark(self) -> Mark {
        match self {
            Self::Package => Mark::Package,
            Self::Run => Mark::Run,
            Self::Runs => Mark::Runs,
            Self::Pages | Self::Paused | Self::Recovery => Mark::LatePages,
            Self::LastPage => Mark::Eof,
            Self::Shut => Mark::Shut,
        }
    }

    /// A word or two, for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Package => "before the order",
            Self::Run => "after the order",
            Self::Runs => "after its answer",
            Self::Pages => "pages",
            Self::Paused => "paused",
            Self::Recovery => "recovery",
            Self::LastPage => "after the last page",
            Self::Shut => "after `SHUT`",
        }
    }

    /// In a sentence without its full stop.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Package => "the guest is paused at the source, and the package of its devices is on its way",
            Self::Run => "the source has let go of the disk image and said `POSTCOPY_RUN`, which is on its way",
            Self::Runs => "the destination has taken over and said so, which is on its way",
            Self::Pages => "the guest runs at the destination, and the pages that it lacks are on their way",
            Self::Paused => "the connection broke in phase pages, and both sides are in `postcopy-paused`",
            Self::Recovery => "after that the source has connected again, and its first question is on its way",
            Self::LastPage => "all pages have come, and the end of the stream is on its way",
            Self::Shut => "the destination needs nothing any more and said `SHUT 0`, which is on its way",
        }
    }
}

/// One fault at every moment.
#[derive(Clone, Copy, Debug)]
pub struct PostcopyRow {
    /// The fault.
    pub fault: Fault,
    /// In the order of [`Moment::ALL`].
    pub cells: [Cell; 8],
}

/// The source waits for another connection.
const WAITS: Says = Says::Answers("finish-migrate", "postcopy-paused", "migrate with resume");

/// The destination lacks pages, and waits for another connection.
const LACKS: Says = Says::Answers("running", "postcopy-paused", "waits for memory that is only at the source");

/// The same, and who connected last was turned away.
const TURNED_AWAY: Says = Says::Answers("running", "postcopy-paused", "a connection was turned away");

const RESUMED: Cell = ends(Guest::LacksPages, WAITS, LACKS);
const LOST: Cell = ends(Guest::Lost, Says::Killed, LACKS);
const DIED: Cell = ends(Guest::DiedWithItsProcess, WAITS, Says::Killed);
const QUIT: Cell = asked(Answer::Done, Guest::DiedWithItsProcess, WAITS, Says::Ended(0, ""));
const REFUSED: Cell = asked(Answer::Refused("handed over"), Guest::AtDestination, HANDED_OVER, ARRIVED);
const UNHEARD: Cell = ends(Guest::AtDestination, WAITS, ARRIVED);
const NO_CONNECTION: Cell = Cell::No("there is no connection");
const EARLIER: Cell = Cell::No("found out before");

/// The rows.
pub const POSTCOPY_TABLE: &[PostcopyRow] = &[
    PostcopyRow {
        fault: Fault::SourceKilled,
        cells: [
            ends(Guest::DiedWithItsProcess, Says::Killed, NEVER_RAN),
            LOST,
            LOST,
            LOST,
            LOST,
            LOST,
            ends(Guest::AtDestination, Says::Killed, ARRIVED),
            ends(Guest::AtDestination, Says::Killed, ARRIVED),
        ],
    },
    PostcopyRow {
        fault: Fault::DestinationKilled,
        cells: [
            back("", Says::Killed),
            back("", Says::Killed),
            DIED,
            DIED,
            DIED,
            DIED,
            DIED,
            ends(Guest::DiedWithItsProcess, HANDED_OVER, Says::Killed),
        ],
    },
    PostcopyRow {
        fault: Fault::WireCut,
        cells: [back("", NEVER_RAN), back("", NEVER_RAN), RESUMED, RESUMED, NO_CONNECTION, RESUMED, RESUMED, UNHEARD],
    },
    PostcopyRow {
        fault: Fault::WireStalls,
        cells: [
            back("the guest is paused for", NEVER_RAN),
            back("is silent", NEVER_RAN),
            RESUMED,
            RESUMED,
            NO_CONNECTION,
            RESUMED,
            RESUMED,
            UNHEARD,
        ],
    },
    PostcopyRow {
        fault: Fault::Damaged,
        cells: [
            back("", NEVER_RAN),
            back("", NEVER_RAN),
            RESUMED,
            RESUMED,
            NO_CONNECTION,
            ends(Guest::LacksPages, WAITS, TURNED_AWAY),
            RESUMED,
            UNHEARD,
        ],
    },
    PostcopyRow {
        fault: Fault::LoadRefused,
        cells: [
            back("the destination refused the guest", Says::Ended(1, "version 99 is newer than 3")),
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
            EARLIER,
        ],
    },
    PostcopyRow {
        fault: Fault::Cancel,
        cells: [
            asked(Answer::Done, Guest::AtSource, CANCELLED, NEVER_RAN),
            REFUSED,
            REFUSED,
            REFUSED,
            asked(Answer::Done, Guest::Lost, Says::Answers("postmigrate", "failed", "it is lost there"), LACKS),
            REFUSED,
            REFUSED,
            REFUSED,
        ],
    },
    PostcopyRow {
        fault: Fault::QuitThere,
        cells: [
            asked(Answer::Done, Guest::AtSource, Says::Answers("running", "failed", ""), Says::Ended(0, "")),
            asked(Answer::Done, Guest::AtSource, Says::Answers("running", "failed", ""), Says::Ended(0, "")),
            QUIT,
            QUIT,
            QUIT,
            QUIT,
            QUIT,
            asked(Answer::Done, Guest::DiedWithItsProcess, HANDED_OVER, Says::Ended(0, "")),
        ],
    },
];
