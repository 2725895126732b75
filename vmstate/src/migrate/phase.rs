//! The phases of both sides, and the transitions between them.
//!
//! ```text
//! source       Setup ──► Rounds ──► SwitchOver ──► Commit ──► Completed        guest runs at the destination
//!                │          │           │            ├──────► Unacknowledged   at the destination, by the lock
//!                │          │           │            ├──────► Undecided        paused here: nobody can tell
//!                ▼          ▼           ▼            ▼
//!              Failed or Cancelled: guest runs at the source
//!
//!              in post-copy:  Commit ──► Postcopy ──► Completed
//!                               │            │▲  └─────► Interrupted       at the destination, which lacks pages
//!                               ▼            ▼└──────────────┐
//!                             PostcopyPaused ◄──► PostcopyRecover
//!                               └─────► Interrupted, Unacknowledged or Undecided: nobody connects again
//!
//! destination  Setup ──► Receiving ──► Loading ──► Ready ──► Commit ──► Completed   guest runs here
//!                │            │           │          │         ├──────► Stranded    guest is paused here
//!                └────────────┴───────────┴──────────┴─────────┴──────► Failed      guest never ran here
//!
//!              in post-copy:  Commit ──► Postcopy ──► Completed or Stranded
//!                               │            │▲  └─────► Interrupted       guest belongs here, and lacks pages
//!                               ▼            ▼└──────────────┐
//!                             PostcopyPaused ◄──► PostcopyRecover
//!                               └─────► Interrupted: nobody connects again
//! ```
//!
//! The guest is paused at the source from `SwitchOver` on. `Commit` begins when the source releases its exclusive resources; a
//! cancel is impossible after that.

/// The phase of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourcePhase {
    /// Sends the handshake and waits for the destination's first answer.
    Setup,
    /// Sends pages while the guest runs.
    Rounds,
    /// The guest is paused; sends the rest, and waits until the destination has loaded and checked all of it.
    SwitchOver,
    /// The exclusive resources are released, and the destination has the order to take over.
    Commit,
    /// The destination runs the guest, and receives the missing pages, the requested ones first.
    Postcopy,
    /// The connection to a destination that runs the guest, or may run it, has broken. Only this side has the missing pages: it
    /// waits for another connection.
    PostcopyPaused,
    /// Another connection exists; the destination reports which pages it has.
    PostcopyRecover,
    /// The destination has reported that it runs the guest. It has all of the guest's memory.
    Completed,
    /// Cancelled; the guest runs here.
    Cancelled,
    /// Failed; the guest runs here.
    Failed,
    /// The destination's final answer did not arrive, and another process holds the exclusive resources or has run a guest on
    /// them since. The guest stays paused here; it may run here if the resources are released and no guest has run on them.
    Unacknowledged,
    /// The destination's final answer did not arrive, and no exclusive resource shows who may run. The guest stays paused here
    /// until an operator has checked the destination.
    Undecided,
    /// The destination runs the guest, and was lost before it reported that it has all of its memory. Only this side has the
    /// missing pages, and its copy of the guest is stale: it stays paused.
    Interrupted,
}

/// The phase of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DestinationPhase {
    /// Waits for the source's handshake.
    Setup,
    /// Receives pages.
    Receiving,
    /// The source's guest is paused; receives the last pages and the devices.
    Loading,
    /// Everything is loaded and checked, and the source has been informed. Waits for the order to take over.
    Ready,
    /// Has that order; takes the exclusive resources.
    Commit,
    /// Runs the guest, and receives the missing pages.
    Postcopy,
    /// The connection to the source has broken while pages are missing; the guest runs until it accesses one. Waits for another
    /// connection.
    PostcopyPaused,
    /// Another connection exists; reports to the source which pages have arrived.
    PostcopyRecover,
    /// Runs the guest, which has all of its memory.
    Completed,
    /// Failed; the guest never ran here.
    Failed,
    /// Received the guest and could not let it run: another process holds the exclusive resources, or the machine does not start.
    /// The guest is loaded and paused here; it may run here once the resources can be taken and no guest has run on them.
    Stranded,
    /// Ran the guest or was about to, and lost the source before all of its memory had arrived: it cannot continue.
    Interrupted,
}

use DestinationPhase as D;
use SourcePhase as S;

const SOURCE_MOVES: [(S, S); 24] = [
    (S::Setup, S::Rounds),
    (S::Setup, S::Failed),
    (S::Setup, S::Cancelled),
    (S::Rounds, S::SwitchOver),
    (S::Rounds, S::Failed),
    (S::Rounds, S::Cancelled),
    (S::SwitchOver, S::Commit),
    (S::SwitchOver, S::Failed),
    (S::SwitchOver, S::Cancelled),
    (S::Commit, S::Completed),
    (S::Commit, S::Failed),
    (S::Commit, S::Unacknowledged),
    (S::Commit, S::Undecided),
    (S::Commit, S::Postcopy),
    (S::Commit, S::PostcopyPaused),
    (S::Postcopy, S::Completed),
    (S::Postcopy, S::Interrupted),
    (S::Postcopy, S::PostcopyPaused),
    (S::PostcopyPaused, S::PostcopyRecover),
    (S::PostcopyPaused, S::Interrupted),
    (S::PostcopyPaused, S::Unacknowledged),
    (S::PostcopyPaused, S::Undecided),
    (S::PostcopyRecover, S::PostcopyPaused),
    (S::PostcopyRecover, S::Postcopy),
];

/// A source that waits for no answer (QEMU's) makes `Commit` follow `Loading`.
const DESTINATION_MOVES: [(D, D); 23] = [
    (D::Setup, D::Receiving),
    (D::Setup, D::Failed),
    (D::Receiving, D::Loading),
    (D::Receiving, D::Failed),
    (D::Loading, D::Ready),
    (D::Loading, D::Commit),
    (D::Loading, D::Failed),
    (D::Ready, D::Commit),
    (D::Ready, D::Failed),
    (D::Commit, D::Completed),
    (D::Commit, D::Failed),
    (D::Commit, D::Stranded),
    (D::Commit, D::Postcopy),
    (D::Commit, D::PostcopyPaused),
    (D::Commit, D::Interrupted),
    (D::Postcopy, D::Completed),
    (D::Postcopy, D::Stranded),
    (D::Postcopy, D::Interrupted),
    (D::Postcopy, D::PostcopyPaused),
    (D::PostcopyPaused, D::PostcopyRecover),
    (D::PostcopyPaused, D::Interrupted),
    (D::PostcopyRecover, D::PostcopyPaused),
    (D::PostcopyRecover, D::Postcopy),
];

impl SourcePhase {
    /// True if `next` may follow.
    pub fn may_become(self, next: Self) -> bool {
        SOURCE_MOVES.contains(&(self, next))
    }

    /// True if no phase follows.
    pub fn is_final(self) -> bool {
        !SOURCE_MOVES.iter().any(|&(from, _)| from == self)
    }
}

impl DestinationPhase {
    /// True if `next` may follow.
    pub fn may_become(self, next: Self) -> bool {
        DESTINATION_MOVES.contains(&(self, next))
    }

    /// True if no phase follows.
    pub fn is_final(self) -> bool {
        !DESTINATION_MOVES.iter().any(|&(from, _)| from == self)
    }
}

/// The phase of either side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Not started.
    #[default]
    Idle,
    /// A source.
    Source(SourcePhase),
    /// A destination.
    Destination(DestinationPhase),
}

impl Phase {
    /// True if no phase follows.
    pub fn is_final(self) -> bool {
        match self {
            Self::Idle => false,
            Self::Source(phase) => phase.is_final(),
            Self::Destination(phase) => phase.is_final(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_given_away_is_never_simply_cancelled() {
        assert!(!S::Commit.may_become(S::Cancelled) && !S::Commit.may_become(S::SwitchOver));
        for phase in [S::Cancelled, S::Failed, S::SwitchOver, S::Commit] {
            for postcopy in [S::Postcopy, S::PostcopyPaused, S::PostcopyRecover] {
                assert!(!postcopy.may_become(phase), "{postcopy:?} to {phase:?}");
            }
        }
        for phase in [S::Completed, S::Cancelled, S::Failed, S::Unacknowledged, S::Undecided, S::Interrupted] {
            assert!(phase.is_final(), "{phase:?}");
        }
        for phase in [S::Setup, S::Rounds, S::SwitchOver, S::Commit, S::Postcopy] {
            assert!(!phase.is_final(), "{phase:?}");
        }
    }

    #[test]
    fn only_a_commit_leads_to_a_running_destination() {
        for phase in [D::Setup, D::Receiving, D::Loading, D::Ready, D::Failed] {
            assert!(!phase.may_become(D::Completed) && !phase.may_become(D::Postcopy), "{phase:?}");
        }
        assert!(D::Commit.may_become(D::Completed) && D::Commit.may_become(D::Postcopy));
        for phase in [D::Completed, D::Failed, D::Stranded, D::Interrupted] {
            assert!(phase.is_final(), "{phase:?}");
        }
    }
}
