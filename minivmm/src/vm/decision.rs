//! What is done with a request: it is accepted, refused or deferred by the run state and by the migration that is under way.
//! [`decide`] is the whole of that knowledge.

use crate::vm::request::{AnyRequest, EngineRequest, Request};
use crate::vm::state::RunState;

/// The migration that is under way: its thread has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnderWay {
    Nothing,
    Outgoing,
    /// Also for a moment after the guest has arrived, and in post-copy until all of its memory has.
    Incoming,
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Carry it out now.
    Accept,
    /// Do nothing, and say why.
    Refuse(String),
    /// Decide when the migration has ended. Whoever asked waits as long.
    Defer,
    /// Cancel the migration, then as [`Defer`](Self::Defer); refuse if the guest is being handed over already.
    CancelOrRefuse,
}

use Decision::{Accept, CancelOrRefuse, Defer};

/// Decides about `request` in run state `state`.
pub(super) fn decide(request: &AnyRequest, state: RunState, under_way: UnderWay) -> Decision {
    match request {
        AnyRequest::User(request) => of_user(request, state, under_way),
        AnyRequest::Engine(request) => of_engine(request, state, under_way),
    }
}

/// True if what the guest did to its machine is carried out. Where it is not, no vCPU runs; a switch-over carries out what
/// the guest did just before, and what was done where a vCPU failed has no effect any more.
pub(super) fn heeds_the_guest(state: RunState) -> bool {
    matches!(state, RunState::Running | RunState::Paused)
}

/// True if the serial port takes typed bytes. Where it does not, the state that they would change has been saved for
/// another machine, or will be replaced by the one that arrives.
pub(super) fn takes_input(state: RunState) -> bool {
    matches!(state, RunState::Prelaunch | RunState::Running | RunState::Paused)
}

fn of_user(request: &Request, state: RunState, under_way: UnderWay) -> Decision {
    use RunState::{FinishMigrate, InMigrate, InternalError, Paused, PostMigrate, Prelaunch, Running, Shutdown};
    let outgoing = under_way == UnderWay::Outgoing;
    match request {
        Request::Quit | Request::MigrateSetParameters(_) => Accept,
        Request::Stop => match state {
            Running | Paused | InMigrate | InternalError => Accept,
            // What the guest does at its destination is on the way already, or somebody else's to say.
            FinishMigrate | PostMigrate | Prelaunch | Shutdown => refuse("stop", state),
        },
        Request::Cont | Request::ContUnproved => match state {
            Prelaunch | Running | Paused | InMigrate | PostMigrate => Accept,
            FinishMigrate | Shutdown | InternalError => refuse("go on", state),
        },
        Request::PowerDown => match state {
            // Its event is part of the device's state, and moves with the guest.
            Running | Paused => Accept,
            _ => refuse("take the power button", state),
        },
        Request::Reset => match state {
            // A migration under way goes on with the machine that the reset makes.
            Running | Paused => Accept,
            _ => refuse("reset", state),
        },
        Request::Announce(_) => match state {
            Running | Paused => Accept,
            // The guest, and its addresses, may be elsewhere.
            _ => refuse("say where the guest is", state),
        },
        Request::Migrate(..) if outgoing => {
            Decision::Refuse("a migration is under way already; wait for its end or cancel it first".into())
        }
        Request::Migrate(..) => match state {
            Running | Paused if under_way == UnderWay::Incoming => Defer,
            Running | Paused => Accept,
            _ => refuse("migrate", state),
        },
        Request::DumpSchema(_) | Request::MeasureDirtyRate(_) => Accept,
        // QEMU's sentences (`qmp_migrate_incoming`, migration/migration.c).
        Request::MigrateIncoming { .. } => match (state, under_way) {
            (InMigrate, UnderWay::Nothing) => Accept,
            (InMigrate, _) => Decision::Refuse("The incoming migration has already been started".into()),
            _ => Decision::Refuse("'-incoming' was not specified on the command line".into()),
        },
        Request::MigrateContinue if outgoing => Accept,
        Request::MigrateContinue => Decision::Refuse("no migration from here is under way".into()),
        // QEMU's sentence (`qmp_migrate_start_postcopy`, migration/migration.c).
        Request::MigrateStartPostcopy if outgoing => Accept,
        Request::MigrateStartPostcopy => Decision::Refuse("Start postcopy after migration has been started".into()),
        // So is this (`migrate_prepare`).
        Request::MigrateResume(_) if outgoing => Accept,
        Request::MigrateResume(_) => Decision::Refuse("Cannot resume if there is no paused migration".into()),
        Request::MigrateCancel if outgoing => CancelOrRefuse,
        Request::MigrateCancel if state == InMigrate => {
            Decision::Refuse("this machine is a destination: cancel at the source, or quit here".into())
        }
        // As QEMU: nothing to cancel is no error.
        Request::MigrateCancel => Accept,
    }
}

fn of_engine(request: &EngineRequest, state: RunState, under_way: UnderWay) -> Decision {
    match (request, state) {
        (EngineRequest::Ended(_), _) => Accept,
        (
            EngineRequest::Hold | EngineRequest::Pause(_) | EngineRequest::Rehearse(_),
            RunState::Running | RunState::Paused,
        ) if under_way == UnderWay::Outgoing => Accept,
        // It stands since the hold.
        (EngineRequest::Pause(_), RunState::FinishMigrate) if under_way == UnderWay::Outgoing => Accept,
        (EngineRequest::Hold | EngineRequest::Pause(_) | EngineRequest::Rehearse(_), _) => {
            refuse("be handed over", state)
        }
        (
            EngineRequest::Introduced | EngineRequest::Arriving(_) | EngineRequest::Loaded { .. },
            RunState::InMigrate,
        ) => Accept,
        (EngineRequest::Introduced | EngineRequest::Arriving(_) | EngineRequest::Loaded { .. }, _) => {
            refuse("take in a guest", state)
        }
        (EngineRequest::Resume, RunState::FinishMigrate | RunState::InMigrate) => Accept,
        (EngineRequest::Resume, _) => refuse("go on after a migration", state),
    }
}

/// A machine in `state` cannot do `what`.
fn refuse(what: &str, state: RunState) -> Decision {
    let remedy = match state {
        RunState::Prelaunch => "; ask again once it runs",
        RunState::InMigrate => "; no guest has arrived: ask at the source, or here once the guest runs",
        RunState::FinishMigrate => "; the guest is being handed over: ask again when the migration has ended",
        RunState::PostMigrate => "; the guest was handed over: ask at the destination, or take it back with cont first",
        RunState::InternalError => "; a vCPU failed: all that is left is quit",
        RunState::Running | RunState::Paused | RunState::Shutdown => "",
    };
    Decision::Refuse(format!("the machine is in state {} and cannot {what}{remedy}", state.as_str()))
}

#[cfg(test)]
mod tests;
