//! The migration thread and its end: what the driver is told, even if the thread panicked.

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
    /// The engine's last phase: a final one.
    pub(in crate::vm) phase: Phase,
    /// Why, unless there is nothing to say.
    pub(in crate::vm) error: Option<String>,
    /// The other side is a QEMU, which writes no ownership record, or it is not known.
    pub(in crate::vm) unrecorded: bool,
}

impl Ended {
    /// The thread panicked in `phase`. Nobody can be asked any more: a guest that may have been handed over is not run, and
    /// one that may have been taken over is kept.
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

/// Runs `work` on the migration thread, and tells the driver how it ended. `begun` is the phase in which it begins, and
/// `control` what shows the later ones. The connection that `work` leaves open is closed once the driver has taken the end
/// in: who sees it close may end the machine at once, and a quit comes before all else.
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
            // Whoever touches a page that is missing waits for ever, the driver maybe among them.
            let why = end.error.as_deref().unwrap_or_default();
            handle.fail(format!(
                "the connection to the source broke before all of the guest's memory was here; the guest is lost: {why}"
            ));
        }
        // A driver that has ended needs no telling.
        let _ = handle.ask(EngineRequest::Ended(end));
    })
}

/// Whose word counts for a guest that a migration has left standing, where no record tells who has run it since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vm) enum LeftStanding {
    /// The engine's: nobody else was given the guest.
    Here,
    /// The user's: another process may have run it, and the records tell.
    Anywhere,
    /// The user's: another process may have run it without a record of that, as a QEMU does.
    Unrecorded,
}

impl LeftStanding {
    /// After a migration that ended in `phase`. A destination that could not take the guest's resources has left them to
    /// others, its source among them; where there are none, it has taken over.
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
        // It may have told the source that it has taken over.
        assert_eq!(destination(DestinationPhase::Commit), Phase::Destination(DestinationPhase::Stranded));
    }
}
