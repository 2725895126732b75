//! The words of the fault matrix: phases, faults, and what can become of the guest and of both sides.

use super::marks::Mark;

/// How far the migration is when the fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "`meaning` says what each is")]
pub enum Phase {
    Setup,
    Rounds,
    SwitchOver,
    Ready,
    Eof,
    Shut,
}

impl Phase {
    /// In the order of a migration.
    pub const ALL: [Self; 6] = [Self::Setup, Self::Rounds, Self::SwitchOver, Self::Ready, Self::Eof, Self::Shut];

    /// The wire holds this back until the fault has come.
    pub fn mark(self) -> Mark {
        match self {
            Self::Setup => Mark::Header,
            Self::Rounds => Mark::Round,
            Self::SwitchOver => Mark::SwitchOver,
            Self::Ready => Mark::Ready,
            Self::Eof => Mark::Eof,
            Self::Shut => Mark::Shut,
        }
    }

    /// A word or two, for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Rounds => "rounds",
            Self::SwitchOver => "switch-over",
            Self::Ready => "ready",
            Self::Eof => "after EOF",
            Self::Shut => "after `SHUT`",
        }
    }

    /// In a sentence without its full stop.
    pub fn meaning(self) -> &'static str {
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
#[expect(missing_docs, reason = "`meaning` says what each is")]
pub enum Fault {
    SourceKilled,
    DestinationKilled,
    WireCut,
    WireStalls,
    WireTrickles,
    Damaged,
    MainCut,
    PagesCut,
    PagesStall,
    PagesLate,
    PagesStray,
    Strays,
    DescriptorsLost,
    DescriptorsTorn,
    LockTaken,
    LockTakenBriefly,
    ImageCopied,
    EofLate,
    EofLateAfterQuit,
    Cancel,
    Quit,
    QuitThere,
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
    /// In a sentence without its full stop.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::SourceKilled => "source killed",
            Self::DestinationKilled => "destination killed",
            Self::WireCut => "wire cut; what was on its way is lost",
            Self::WireStalls => "wire stalls until the source has given up",
            Self::WireTrickles => "wire lets 512 bytes pass every 100 ms",
            Self::Damaged => "a message arrives damaged",
            Self::MainCut => "main channel cut; what was on its way there is lost",
            Self::PagesCut => "one page channel cut, behind what was sent on it",
            Self::PagesStall => "one page channel stalls without end",
            Self::PagesLate => "one page channel comes late",
            Self::PagesStray => "a channel of another migration comes in place of a page channel",
            Self::Strays => "strangers connect to the destination",
            Self::DescriptorsLost => "the first message arrives without its descriptors",
            Self::DescriptorsTorn => "the first message is torn",
            Self::LockTaken => "a third party takes the lock, and keeps it until both sides have given up",
            Self::LockTakenBriefly => "a third party takes the lock, and lets go within the destination's patience",
            Self::ImageCopied => "the destination has its own copy of the image",
            Self::EofLate => "EOF comes after the source has taken the guest back",
            Self::EofLateAfterQuit => "EOF comes after the source has taken the guest back, run it on, and quit",
            Self::Cancel => "`migrate_cancel`",
            Self::Quit => "`quit` at the source",
            Self::QuitThere => "`quit` at the destination",
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
pub enum Guest {
    /// It runs at the source, and nowhere else.
    AtSource,
    /// It runs at the destination, and nowhere else.
    AtDestination,
    /// It has been started anew, and runs at the destination and nowhere else.
    AnewAtDestination,
    /// It is paused at the source; the destination never ran it; `cont` at the source runs it, and nobody else does.
    PausedAtSource,
    /// It is paused at the source, which cannot know whether the destination runs it; `cont` with `force` runs it, and nobody else
    /// does.
    UndecidedAtSource,
    /// The process that it ran in was ended, and its source, a QEMU, keeps nobody from letting it run as it was before.
    StaleAtSource,
    /// It is paused at the destination; `cont` there runs it, and nobody else does.
    PausedAtDestination,
    /// In post-copy: it is the destination's, and lacks pages that the source has; `migrate` with `resume` brings them.
    LacksPages,
    /// In post-copy: it is the destination's, and lacks pages that nobody has any more.
    Lost,
    /// It powered off.
    PoweredOff,
    /// The process that it ran in was ended.
    DiedWithItsProcess,
}

impl Guest {
    /// In a sentence without its full stop.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::AtSource => "runs at the source",
            Self::AtDestination => "runs at the destination",
            Self::AnewAtDestination => "rebooted, runs at the destination",
            Self::PausedAtSource => "paused at the source, `cont` runs it there",
            Self::UndecidedAtSource => "paused at the source, `cont` with `force` runs it there",
            Self::StaleAtSource => "ended with the process that ran it; do not `cont` the old one in QEMU",
            Self::PausedAtDestination => "paused at the destination, `cont` runs it there",
            Self::LacksPages => {
                "at the destination, waits for pages; `migrate` with `resume` at the source completes it"
            }
            Self::Lost => "lost: at the destination, without pages that were only at the source",
            Self::PoweredOff => "powered off",
            Self::DiedWithItsProcess => "ended with the process that ran it",
        }
    }
}

/// What one side says in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
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
pub enum Answer {
    /// There was no command.
    None,
    /// It was carried out.
    Done,
    /// It was refused, with this in the reason.
    Refused(&'static str),
}

/// How one fault in one phase ends.
#[derive(Clone, Copy, Debug)]
pub enum Cell {
    /// So.
    Ends {
        /// Where the guest is.
        guest: Guest,
        /// What the source says.
        source: Says,
        /// What the destination says.
        destination: Says,
        /// What whoever gave a command is told.
        answer: Answer,
    },
    /// There is no such thing, and why.
    No(&'static str),
}

/// One fault in every phase.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The fault.
    pub fault: Fault,
    /// In the order of [`Phase::ALL`].
    pub cells: [Cell; 6],
}
