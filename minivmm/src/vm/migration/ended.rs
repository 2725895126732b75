//! The migration thread and its end, of which the driver learns even if the thread panicked.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use vmstate::channel::tls::Connection;
use vmstate::migrate::{Control, DestinationPhase, Phase, SourcePhase};
use vmstate::ownership::Ownership;

use crate::sandbox::{self, Kind};
use crate::vm::handle::Handle;
use crate::vm::request::EngineRequest;

/// How a migration thread ended.
#[derive(Debug)]
pub struct Ended {
    /// Last phase of the engine, a final one.
    pub(in crate::vm) phase: Phase,
    /// Reason of the end, if there is one.
    pub(in crate::vm) error: Option<String>,
    /// Whether the other side is a QEMU, which writes no ownership record, or is unknown.
    pub(in crate::vm) unrecorded: bool,
}

impl Ended {
    /// End of a thread that panicked in `phase`. A guest that may have been handed over is not run, and one that may have been
    /// taken over is kept.
    fn panicked(phase: Phase) -> Self {
        let phase = match phase {
            _ if phase.is_final() => phase,
            Phase::Source(SourcePhase::Commit) => Phase::Source(SourcePhase::Undecided),
            Phase::Source(SourcePhase::Postcopy | SourcePhase::PostcopyPaused | SourcePhase::PostcopyRecover) => {
                Phase::Source(SourcePhase::Interrupted)
            }
            Phase::Destination(DestinationPhase::Commit) => Phase::Destination(DestinationPhase::Stranded),
            Phase::Destination(
                DestinationPhase::Postcopy | DestinationPhase::PostcopyPaused | DestinationPhase::PostcopyRecover,
            ) => Phase::Destination(DestinationPhase::Interrupted),
            Phase::Destination(_) => Phase::Destination(DestinationPhase::Failed),
            _ => Phase::Source(SourcePhase::Failed),
        };
        Self { phase, error: Some("the migration thread panicked".into()), unrecorded: true }
    }
}

/// Runs `work` on the migration thread, and reports its end to the driver. `begun` is the first phase, and `control` gives the
/// later ones. The connection that `work` leaves open is closed once the driver has handled the end: a peer that sees it close
/// may end the machine at once, and a quit has priority.
///
/// # Errors
/// The thread cannot be spawned.
pub(super) fn spawn(
    handle: Handle,
    begun: Phase,
    control: Control,
    work: impl FnOnce() -> (Ended, Option<Connection>) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    sandbox::spawn(Kind::Migration, "migration", move || {
        let end = catch_unwind(AssertUnwindSafe(work));
        let (end, _connection) = end.unwrap_or_else(|_| {
            let end = Ended::panicked(match control.progress().phase {
                Phase::Idle => begun,
                phase => phase,
            });
            (end, None)
        });
        if end.phase == Phase::Destination(DestinationPhase::Interrupted) {
            // Threads that touch a missing page wait for ever, the driver possibly among them.
            let why = end.error.as_deref().unwrap_or_default();
            handle.fail(format!(
                "the connection to the source broke before all of the guest's memory was here; the guest is lost: {why}"
            ));
        }
        // If the driver has ended, nothing is to be done.
        let _ = handle.ask(EngineRequest::Ended(end));
    })
}

/// Who may vouch for a guest that a migration left stopped, if no record says who has run it since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vm) enum LeftStopped {
    /// The engine: no other process got the guest.
    Here,
    /// The user: another process may have run it, and the records say so.
    Anywhere,
    /// The user: another process may have run it without a record, as a QEMU does.
    Unrecorded,
}

impl LeftStopped {
    /// Determines this after the end of a migration. A destination that could not take the guest's resources has left them to
    /// others, such as its source; if there are no resources, it has taken over.
    pub(super) fn after(end: &Ended, ownership: &Ownership) -> Self {
        match end.phase {
            Phase::Source(SourcePhase::Failed | SourcePhase::Cancelled) => Self::Here,
            _ if end.unrecorded => Self::Unrecorded,
            Phase::Destination(DestinationPhase::Stranded) if !ownership.has_exclusive() => Self::Here,
            _ => Self::Anywhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_runs_no_guest_that_may_have_been_handed_over() {
        use SourcePhase as S;
        let source = |phase| Ended::panicked(Phase::Source(phase)).phase;
        assert_eq!(source(S::Rounds), Phase::Source(S::Failed));
        assert_eq!(source(S::SwitchOver), Phase::Source(S::Failed));
        assert_eq!(source(S::Commit), Phase::Source(S::Undecided));
        for phase in [S::Postcopy, S::PostcopyPaused, S::PostcopyRecover] {
            assert_eq!(source(phase), Phase::Source(S::Interrupted));
        }
        assert_eq!(source(S::Completed), Phase::Source(S::Completed));
        let destination = |phase| Ended::panicked(Phase::Destination(phase)).phase;
        assert_eq!(destination(DestinationPhase::Loading), Phase::Destination(DestinationPhase::Failed));
        assert_eq!(destination(DestinationPhase::Postcopy), Phase::Destination(DestinationPhase::Interrupted));
        // The destination may have confirmed that it takes over.
        assert_eq!(destination(DestinationPhase::Commit), Phase::Destination(DestinationPhase::Stranded));
    }
}
