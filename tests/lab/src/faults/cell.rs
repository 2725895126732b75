//! The terms of the fault matrix: phases, faults, and the outcomes for the guest and for both sides.

use super::marks::Mark;

/// The phase of the migration in which the fault occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "`meaning` describes each")]
pub enum Phase {
    Setup,
    Rounds,
    SwitchOver,
    Ready,
    Eof,
    Shut,
}

impl Phase {
    /// All phases, in the order of a migration.
    pub const ALL: [Self; 6] = [Self::Setup, Self::Rounds, Self::SwitchOver, Self::Ready, Self::Eof, Self::Shut];

    /// The mark that the relay holds back until the fault has occurred.
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

    /// A short name, for tables.
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

    /// A description in words, without a full stop.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Setup => "the source has connected, and its first bytes are in transit",
            Self::Rounds => "the first round is sent, the guest runs at the source",
            Self::SwitchOver => "the guest is paused at the source",
            Self::Ready => "the destination has loaded everything, and its report to the source is in transit",
            Self::Eof => "the source has released the disk image and sent EOF, which is in transit",
            Self::Shut => "the destination has taken over and sent `SHUT 0`, which is in transit",
        }
    }
}

/// A fault, or an action of a user or the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "`meaning` describes each")]
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
    CopyExists,
    NoRoomForCopy,
    NoRoomForFile,
    ImageTruncated,
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
    /// A description in words, without a full stop.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::SourceKilled => "source killed",
            Self::DestinationKilled => "destination killed",
            Self::WireCut => "connection cut; data in transit is lost",
            Self::WireStalls => "connection stalls until the source has given up",
            Self::WireTrickles => "connection passes 512 bytes every 100 ms",
            Self::Damaged => "a message arrives damaged",
            Self::MainCut => "main channel cut; its data in transit is lost",
            Self::PagesCut => "one page channel cut, after the data sent on it",
            Self::PagesStall => "one page channel stalls for ever",
            Self::PagesLate => "one page channel connects late",
            Self::PagesStray => "a channel of another migration replaces a page channel",
            Self::Strays => "other processes connect to the destination",
            Self::DescriptorsLost => "the first message arrives without its descriptors",
            Self::DescriptorsTorn => "the first message is torn",
            Self::LockTaken => "a third party takes the lock, and keeps it until both sides have given up",
            Self::LockTakenBriefly => "a third party takes the lock, and releases it before the destination gives up",
            Self::ImageCopied => "the destination has its own copy of the image",
            Self::CopyExists => "the image that the destination has for the copy of the disk existed before",
            Self::NoRoomForCopy => "another program fills the file system of the destination's image",
            Self::NoRoomForFile => "another program fills the file system of FILE",
            Self::ImageTruncated => "another program truncates the source's image",
            Self::EofLate => "EOF arrives after the source has taken the guest back",
            Self::EofLateAfterQuit => "EOF arrives after the source has taken the guest back, run it on, and quit",
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

/// The guest's state at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// The guest runs at the source only.
    AtSource,
    /// The guest runs at the destination only.
    AtDestination,
    /// The guest has been rebooted, and runs at the source only.
    AnewAtSource,
    /// The guest has been rebooted, and runs at the destination only.
    AnewAtDestination,
    /// The guest is paused at the source and never ran at the destination; `cont` at the source resumes it.
    PausedAtSource,
    /// The guest is paused at the source, which cannot know whether the destination runs it; `cont` with `force`
    /// resumes it.
    UndecidedAtSource,
    /// The guest's process was ended, and nothing prevents its source, a QEMU, from resuming the guest's older state.
    StaleAtSource,
    /// The guest is paused at the destination; `cont` there resumes it.
    PausedAtDestination,
    /// In post-copy: the guest belongs to the destination, and lacks pages of the source; `migrate` with `resume` sends
    /// them.
    LacksPages,
    /// In post-copy: the guest belongs to the destination, and lacks pages that no longer exist.
    Lost,
    /// The guest powered off.
    PoweredOff,
    /// The guest's process was ended.
    DiedWithItsProcess,
}

impl Guest {
    /// A description in words, without a full stop.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::AtSource => "runs at the source",
            Self::AtDestination => "runs at the destination",
            Self::AnewAtSource => "rebooted, runs at the source",
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

/// The state of one side at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideState {
    /// The test killed it.
    Killed,
    /// The process ended with this exit code, and its standard error contains this text.
    Ended(i32, &'static str),
    /// Run state, status of the migration, and a part of the migration's error. A failure always has an error, but its
    /// text may be the system's about a broken connection.
    Answers(&'static str, &'static str, &'static str),
    /// In place of the destination, the file of a snapshot.
    File(Saved),
}

/// The file of a snapshot at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// The file and its images are complete, and a guest that is started from it runs.
    Whole,
    /// As [`Whole`](Self::Whole), with a guest that is paused.
    WholePaused,
    /// Neither the file nor one of its images exists, also not with a temporary name.
    Absent,
    /// The file does not exist; files with temporary names, or complete images, do.
    Remains,
}

impl Saved {
    /// A description in words, without a full stop.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Whole => "complete",
            Self::WholePaused => "complete, its guest is paused",
            Self::Absent => "absent",
            Self::Remains => "absent; other files stay",
        }
    }
}

/// The answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There was no command.
    None,
    /// The command was carried out.
    Done,
    /// The command was refused, with this text in the reason.
    Refused(&'static str),
}

/// The outcome of one fault in one phase.
#[derive(Clone, Copy, Debug)]
pub enum Cell {
    /// The case exists, with this outcome.
    Ends {
        /// The guest's state.
        guest: Guest,
        /// The source's state.
        source: SideState,
        /// The destination's state.
        destination: SideState,
        /// The answer to the command.
        answer: Answer,
    },
    /// The case does not exist, for this reason.
    No(&'static str),
}

/// The outcomes of one fault in all phases.
#[derive(Clone, Copy, Debug)]
pub struct Row<const PHASES: usize = 6> {
    /// The fault.
    pub fault: Fault,
    /// In the order of the phases, which are those of [`Phase::ALL`] where no others are named.
    pub cells: [Cell; PHASES],
}
