//! Published status of a migration: QMP's name for the engine's phase, and for a wait before the switch-over.

use vmstate::migrate::{DestinationPhase as D, Phase, SourcePhase as S};

/// Status of a migration, with the names of QMP's `MigrationStatus`. QEMU lacks `unacknowledged` and `undecided`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MigrationStatus {
    /// No migration was begun.
    #[default]
    None,
    /// Connecting, or waiting for a source.
    Setup,
    /// Sending rounds.
    Active,
    /// The guest is stopped, and a client has to continue the switch-over.
    PreSwitchover,
    /// Switching over.
    Device,
    /// The guest runs at the destination, and pages of it are still at the source.
    PostcopyActive,
    /// Post-copy whose connection is broken: the migration waits for another one.
    PostcopyPaused,
    /// Post-copy over another connection, on which both sides agree on the missing pages.
    PostcopyRecover,
    /// Completed.
    Completed,
    /// Failed; the guest is where it was. At a destination that had taken over, the guest is there, and stopped. In post-copy,
    /// after the guest ran at the destination, the guest is lost.
    Failed,
    /// Being cancelled.
    Cancelling,
    /// Cancelled; the guest is where it was.
    Cancelled,
    /// The destination did not confirm that it runs the guest, but another process holds the guest's disks or has run it.
    Unacknowledged,
    /// The destination did not confirm that it runs the guest, and nothing can prove whether it does.
    Undecided,
}

impl MigrationStatus {
    /// All statuses.
    pub const ALL: [Self; 14] = [
        Self::None,
        Self::Setup,
        Self::Active,
        Self::PreSwitchover,
        Self::Device,
        Self::PostcopyActive,
        Self::PostcopyPaused,
        Self::PostcopyRecover,
        Self::Completed,
        Self::Failed,
        Self::Cancelling,
        Self::Cancelled,
        Self::Unacknowledged,
        Self::Undecided,
    ];

    /// Status of a migration in `phase`; `cancelled`: a cancel was granted.
    pub fn of(phase: Phase, cancelled: bool) -> Self {
        match phase {
            Phase::Source(S::Setup | S::Rounds | S::SwitchOver | S::Commit) if cancelled => Self::Cancelling,
            Phase::Idle => Self::None,
            Phase::Source(S::Setup) | Phase::Destination(D::Setup) => Self::Setup,
            Phase::Source(S::Rounds) | Phase::Destination(D::Receiving) => Self::Active,
            Phase::Source(S::SwitchOver | S::Commit) | Phase::Destination(D::Loading | D::Ready | D::Commit) => {
                Self::Device
            }
            Phase::Source(S::Postcopy) | Phase::Destination(D::Postcopy) => Self::PostcopyActive,
            Phase::Source(S::PostcopyPaused) | Phase::Destination(D::PostcopyPaused) => Self::PostcopyPaused,
            Phase::Source(S::PostcopyRecover) | Phase::Destination(D::PostcopyRecover) => Self::PostcopyRecover,
            Phase::Source(S::Completed) | Phase::Destination(D::Completed) => Self::Completed,
            Phase::Source(S::Failed | S::Interrupted) => Self::Failed,
            Phase::Destination(D::Failed | D::Stranded | D::Interrupted) => Self::Failed,
            Phase::Source(S::Cancelled) => Self::Cancelled,
            Phase::Source(S::Unacknowledged) => Self::Unacknowledged,
            Phase::Source(S::Undecided) => Self::Undecided,
            // A final phase of a newer engine.
            phase if phase.is_final() => Self::Failed,
            _ => Self::Active,
        }
    }

    /// Whether the guest runs at the destination while some of its memory is still at the source.
    pub fn is_postcopy(self) -> bool {
        matches!(self, Self::PostcopyActive | Self::PostcopyPaused | Self::PostcopyRecover)
    }

    /// QMP's name of the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "active",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::PostcopyActive => "postcopy-active",
            Self::PostcopyPaused => "postcopy-paused",
            Self::PostcopyRecover => "postcopy-recover",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Unacknowledged => "unacknowledged",
            Self::Undecided => "undecided",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_has_a_status_and_a_cancel_is_shown_until_the_end() {
        let words = [
            (S::Setup, "setup", "cancelling"),
            (S::Rounds, "active", "cancelling"),
            (S::SwitchOver, "device", "cancelling"),
            (S::Commit, "device", "cancelling"),
            (S::Postcopy, "postcopy-active", "postcopy-active"),
            (S::PostcopyPaused, "postcopy-paused", "postcopy-paused"),
            (S::PostcopyRecover, "postcopy-recover", "postcopy-recover"),
            (S::Interrupted, "failed", "failed"),
            (S::Completed, "completed", "completed"),
            (S::Cancelled, "cancelled", "cancelled"),
            (S::Failed, "failed", "failed"),
            (S::Unacknowledged, "unacknowledged", "unacknowledged"),
            (S::Undecided, "undecided", "undecided"),
        ];
        for (phase, plain, cancelled) in words {
            assert_eq!(MigrationStatus::of(Phase::Source(phase), false).as_str(), plain);
            assert_eq!(MigrationStatus::of(Phase::Source(phase), true).as_str(), cancelled);
        }
        assert_eq!(MigrationStatus::of(Phase::Destination(D::Setup), false).as_str(), "setup");
        assert_eq!(MigrationStatus::of(Phase::Destination(D::Failed), false).as_str(), "failed");
        assert_eq!(MigrationStatus::of(Phase::Destination(D::Stranded), false).as_str(), "failed");
        assert_eq!(MigrationStatus::of(Phase::Idle, false), MigrationStatus::default());
    }
}
