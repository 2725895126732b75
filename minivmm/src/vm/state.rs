//! Run state of the machine, with QMP's names, and the allowed transitions.
//!
//! ```text
//! Prelaunch ──► Running ◄──────────► Paused        Running or Paused ──► Shutdown, InternalError
//!               │     ▲              ▲    │
//!               ▼     │              │    ▼
//!              FinishMigrate ────► FinishMigrate ──► PostMigrate ──► Running: taken back
//!
//! InMigrate ──► Running or Paused: arrived; Paused also if the guest could not go on there
//! ```

use vmstate::migrate::{DestinationPhase, Phase, SourcePhase};

/// Run states, named as QMP's `RunState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Built, not started.
    Prelaunch,
    /// vCPUs run.
    Running,
    /// Stopped by a request.
    Paused,
    /// Waiting for a migration, or receiving one.
    InMigrate,
    /// Stopped for the switch-over of an outgoing migration.
    FinishMigrate,
    /// Handed over to the destination, or possibly: the guest may run here only after a proof that it does not run there.
    PostMigrate,
    /// The guest powered off.
    Shutdown,
    /// A vCPU failed.
    InternalError,
}

use RunState::{FinishMigrate, InMigrate, InternalError, Paused, PostMigrate, Prelaunch, Running, Shutdown};

const MOVES: [(RunState, RunState); 15] = [
    (Prelaunch, Running),
    (Running, Paused),
    (Paused, Running),
    (Running, FinishMigrate),
    (Paused, FinishMigrate),
    (FinishMigrate, Running),
    (FinishMigrate, Paused),
    (FinishMigrate, PostMigrate),
    (PostMigrate, Running),
    (InMigrate, Running),
    (InMigrate, Paused),
    // A vCPU's last event may arrive when the machine has been stopped already.
    (Running, Shutdown),
    (Paused, Shutdown),
    (Running, InternalError),
    (Paused, InternalError),
];

impl RunState {
    /// All run states.
    pub const ALL: [Self; 8] =
        [Prelaunch, Running, Paused, InMigrate, FinishMigrate, PostMigrate, Shutdown, InternalError];

    /// QMP's name of the state.
    pub fn as_str(self) -> &'static str {
        match self {
            Prelaunch => "prelaunch",
            Running => "running",
            Paused => "paused",
            InMigrate => "inmigrate",
            FinishMigrate => "finish-migrate",
            PostMigrate => "postmigrate",
            Shutdown => "shutdown",
            InternalError => "internal-error",
        }
    }

    /// True if `next` may follow.
    pub fn may_become(self, next: Self) -> bool {
        MOVES.contains(&(self, next))
    }

    /// What follows when a migration ends in `phase`. A guest that the engine has resumed is not in
    /// [`FinishMigrate`](Self::FinishMigrate) or [`InMigrate`](Self::InMigrate) any more, and stays as it is.
    pub(super) fn after_migration(self, phase: Phase) -> Self {
        match (self, phase) {
            (
                FinishMigrate,
                Phase::Source(
                    SourcePhase::Completed
                    | SourcePhase::Unacknowledged
                    | SourcePhase::Undecided
                    | SourcePhase::Interrupted,
                ),
            ) => PostMigrate,
            (FinishMigrate, _) => Paused,
            (InMigrate, Phase::Destination(DestinationPhase::Stranded)) => Paused,
            (state, _) => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The states in which vCPUs may run are left and entered only as drawn above; nothing follows the two last ones.
    #[test]
    fn each_state_has_the_followers_that_are_drawn() {
        let followers = |state: RunState| -> Vec<&str> {
            RunState::ALL.into_iter().filter(|&next| state.may_become(next)).map(RunState::as_str).collect()
        };
        let drawn: [(RunState, &[&str]); 8] = [
            (Prelaunch, &["running"]),
            (Running, &["paused", "finish-migrate", "shutdown", "internal-error"]),
            (Paused, &["running", "finish-migrate", "shutdown", "internal-error"]),
            (InMigrate, &["running", "paused"]),
            (FinishMigrate, &["running", "paused", "postmigrate"]),
            (PostMigrate, &["running"]),
            (Shutdown, &[]),
            (InternalError, &[]),
        ];
        for (state, expected) in drawn {
            assert_eq!(followers(state), expected, "after {state:?}");
        }
    }

    #[test]
    fn the_end_of_a_migration_is_a_legal_move_and_never_starts_a_guest() {
        use DestinationPhase as D;
        use SourcePhase as S;
        let ends = [S::Completed, S::Cancelled, S::Failed, S::Unacknowledged, S::Undecided].map(Phase::Source);
        let ends = ends.into_iter().chain([D::Completed, D::Failed, D::Stranded].map(Phase::Destination));
        for (phase, state) in ends.flat_map(|phase| RunState::ALL.map(|state| (phase, state))) {
            let next = state.after_migration(phase);
            assert!(next == state || state.may_become(next), "{state:?}, {phase:?}: {next:?}");
            assert!(next == state || next != Running, "{state:?}, {phase:?}");
        }
        assert_eq!(FinishMigrate.after_migration(Phase::Source(S::Completed)), PostMigrate);
        assert_eq!(FinishMigrate.after_migration(Phase::Source(S::Undecided)), PostMigrate);
        assert_eq!(FinishMigrate.after_migration(Phase::Source(S::Interrupted)), PostMigrate);
        assert_eq!(FinishMigrate.after_migration(Phase::Source(S::Failed)), Paused);
        assert_eq!(Running.after_migration(Phase::Source(S::Failed)), Running);
        assert_eq!(InMigrate.after_migration(Phase::Destination(D::Failed)), InMigrate);
        assert_eq!(InMigrate.after_migration(Phase::Destination(D::Stranded)), Paused);
    }
}
