//! The fault matrix of a snapshot of a running guest, as data: the guest runs on in its process, the source, and `FILE` takes the
//! place of a destination. `minivmm/tests/faults` runs it; `docs/faults.md` is generated from it.

use super::cell::{Answer, Cell, Fault, Guest, Row, Saved, SideState};
use super::table::{CANCELLED, asked, ends, failed};

pub use super::snapshot_case::run;

/// The phase of the snapshot in which the fault occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "`meaning` describes each")]
pub enum Step {
    Rounds,
    Pause,
    Sync,
    Name,
}

impl Step {
    /// All phases, in the order of a snapshot.
    pub const ALL: [Self; 4] = [Self::Rounds, Self::Pause, Self::Sync, Self::Name];

    /// A short name, for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rounds => "rounds",
            Self::Pause => "pause",
            Self::Sync => "sync",
            Self::Name => "name",
        }
    }

    /// A description in words, without a full stop.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Rounds => "the guest runs, and its first page is about to be written",
            Self::Pause => "the guest is paused, and what it has changed last is about to be written",
            Self::Sync => "the guest runs again, and all that was written is about to be synced to the host's disk",
            Self::Name => "the images have their names, and FILE is about to get its name",
        }
    }
}

const WHOLE: SideState = SideState::File(Saved::Whole);
const ABSENT: SideState = SideState::File(Saved::Absent);
const RUNS: SideState = SideState::Answers("running", "completed", "");
const STOPPED: SideState = SideState::Answers("paused", "completed", "");

const DIED: Cell = ends(Guest::DiedWithItsProcess, SideState::Killed, SideState::File(Saved::Remains));
const SAVED: Cell = ends(Guest::AtSource, RUNS, WHOLE);
const NOT_SAVED: Cell = asked(Answer::Done, Guest::AtSource, CANCELLED, ABSENT);
const READ: Cell = Cell::No("the disk has been read, but for places where the guest writes");

const ENDED: Cell =
    asked(Answer::Done, Guest::DiedWithItsProcess, SideState::Ended(0, ""), SideState::File(Saved::Remains));

const fn goes_on(why: &'static str) -> Cell {
    ends(Guest::AtSource, failed(why), ABSENT)
}

const fn refused(why: &'static str) -> Cell {
    asked(Answer::Refused(why), Guest::AtSource, RUNS, WHOLE)
}

/// The rows, with a cell for each of [`Step::ALL`].
pub const SNAPSHOT_TABLE: &[Row<4>] = &[
    Row { fault: Fault::SourceKilled, cells: [DIED, DIED, DIED, DIED] },
    Row {
        fault: Fault::NoRoomForFile,
        cells: [goes_on("No space left on device"), goes_on("No space left on device"), SAVED, SAVED],
    },
    Row {
        fault: Fault::Cancel,
        cells: [NOT_SAVED, NOT_SAVED, NOT_SAVED, refused("the file is complete; it cannot be cancelled any more")],
    },
    Row {
        fault: Fault::Stop,
        cells: [
            asked(Answer::Done, Guest::PausedAtSource, STOPPED, SideState::File(Saved::WholePaused)),
            refused("cannot stop"),
            asked(Answer::Done, Guest::PausedAtSource, STOPPED, WHOLE),
            asked(Answer::Done, Guest::PausedAtSource, STOPPED, WHOLE),
        ],
    },
    Row {
        fault: Fault::Reset,
        cells: [
            asked(Answer::Done, Guest::AnewAtSource, RUNS, WHOLE),
            refused("cannot reset"),
            asked(Answer::Done, Guest::AnewAtSource, RUNS, WHOLE),
            asked(Answer::Done, Guest::AnewAtSource, RUNS, WHOLE),
        ],
    },
    Row { fault: Fault::Quit, cells: [ENDED, ENDED, ENDED, ENDED] },
    Row {
        fault: Fault::ImageTruncated,
        cells: [goes_on("could not be read: it was truncated to 65536 bytes"), READ, READ, READ],
    },
];
