//! Decides about requests: the run state and the migration under way decide whether a request is accepted, refused or deferred.
//! [`decide`] is the whole table.

use crate::vm::request::{AnyRequest, EngineRequest, Request};
use crate::vm::state::RunState;

/// Migration under way, whose thread has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnderWay {
    Nothing,
    Outgoing,
    /// Until shortly after the guest has arrived.
    Incoming,
    /// The guest runs here, and some of its memory is still at the source.
    IncomingPostcopy,
    /// As [`IncomingPostcopy`](Self::IncomingPostcopy), without a connection to the source: whoever touches missing memory waits
    /// for a recovery.
    IncomingPostcopyPaused,
}

impl UnderWay {
    /// Whether the guest runs here without some of its memory.
    fn is_postcopy(self) -> bool {
        matches!(self, Self::IncomingPostcopy | Self::IncomingPostcopyPaused)
    }
}

/// Decision about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The request is carried out now.
    Accept,
    /// The request is refused, for this reason.
    Refuse(String),
    /// The request is decided again when the migration has ended; its sender waits until then.
    Defer,
    /// The migration is cancelled, and the request deferred; it is refused if the guest is being handed over already.
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

/// Whether the guest's actions on its machine (reset, power-off) are carried out. Where they are not, no vCPU runs; a
/// switch-over carries out earlier actions, and after a failed vCPU they have no effect.
pub(super) fn handles_guest_events(state: RunState) -> bool {
    matches!(state, RunState::Running | RunState::Paused)
}

/// Whether the serial port takes typed bytes. Where it does not, its state has been saved for another machine, or will be
/// replaced by an arriving one.
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
            // The guest may run at its destination, where it has to be stopped.
            FinishMigrate | PostMigrate | Prelaunch | Shutdown => refuse("stop", state),
        },
        Request::Cont | Request::ContUnproved => match state {
            Prelaunch | Running | Paused | InMigrate | PostMigrate => Accept,
            FinishMigrate | Shutdown | InternalError => refuse("go on", state),
        },
        Request::PowerDown => match state {
            // The event is part of the device's state, and migrates with the guest.
            Running | Paused => Accept,
            _ => refuse("take the power button", state),
        },
        Request::Reset => match state {
            // The driver loads the kernel, and would answer nobody until the recovery.
            Running | Paused if under_way == UnderWay::IncomingPostcopyPaused => Decision::Refuse(
                "some of the guest's memory is still at its source (post-copy), and the connection is broken: ask again when the migration has been recovered (migrate-recover)".into(),
            ),
            // A migration under way continues with the machine after the reset.
            Running | Paused => Accept,
            _ => refuse("reset", state),
        },
        Request::Announce(_) => match state {
            Running | Paused => Accept,
            // The guest with its addresses may run elsewhere.
            _ => refuse("say where the guest is", state),
        },
        Request::Migrate(..) if outgoing => {
            Decision::Refuse("a migration is under way already; wait for its end or cancel it first".into())
        }
        Request::Migrate(..) => match state {
            Running | Paused if under_way == UnderWay::Incoming => Defer,
            // Post-copy takes as long as the rest of memory needs, and without an end if the connection breaks.
            Running | Paused if under_way.is_postcopy() => Decision::Refuse(
                "some of the guest's memory is still at its source (post-copy): ask again when that migration has completed".into(),
            ),
            Running | Paused => Accept,
            _ => refuse("migrate", state),
        },
        Request::Backup(_) if outgoing => Decision::Refuse(
            "a migration is under way, and a backup does not go with the guest: ask at the destination once the guest runs there".into(),
        ),
        Request::Backup(_) => match state {
            Running | Paused if under_way == UnderWay::Incoming => Defer,
            Running | Paused => Accept,
            _ => refuse("back up a disk", state),
        },
        Request::DumpSchema(_) | Request::MeasureDirtyRate(_) => Accept,
        // QEMU's messages (`qmp_migrate_incoming`, migration/migration.c).
        Request::MigrateIncoming { .. } => match (state, under_way) {
            (InMigrate, UnderWay::Nothing) => Accept,
            (InMigrate, _) => Decision::Refuse("The incoming migration has already been started".into()),
            _ => Decision::Refuse("'-incoming' was not specified on the command line".into()),
        },
        Request::MigrateContinue if outgoing => Accept,
        Request::MigrateContinue => Decision::Refuse("no migration from here is under way".into()),
        // QEMU's message (`qmp_migrate_start_postcopy`, migration/migration.c).
        Request::MigrateStartPostcopy if outgoing => Accept,
        Request::MigrateStartPostcopy => Decision::Refuse("Start postcopy after migration has been started".into()),
        // QEMU's message (`migrate_prepare`).
        Request::MigrateResume(_) if outgoing => Accept,
        Request::MigrateResume(_) => Decision::Refuse("Cannot resume if there is no paused migration".into()),
        Request::MigrateCancel if outgoing => CancelOrRefuse,
        Request::MigrateCancel if state == InMigrate => {
            Decision::Refuse("this machine is a destination: cancel at the source, or quit here".into())
        }
        // As in QEMU, it is no error if there is nothing to cancel.
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
        // The guest is stopped since the hold.
        (EngineRequest::Pause(_), RunState::FinishMigrate) if under_way == UnderWay::Outgoing => Accept,
        (EngineRequest::Hold | EngineRequest::Pause(_) | EngineRequest::Rehearse(_), _) => {
            refuse("be handed over", state)
        }
        (
            EngineRequest::AdoptProcessor | EngineRequest::Arriving(_) | EngineRequest::Loaded { .. },
            RunState::InMigrate,
        ) => Accept,
        (EngineRequest::AdoptProcessor | EngineRequest::Arriving(_) | EngineRequest::Loaded { .. }, _) => {
            refuse("take in a guest", state)
        }
        (EngineRequest::Resume, RunState::FinishMigrate | RunState::InMigrate) => Accept,
        (EngineRequest::Resume, _) => refuse("go on after a migration", state),
    }
}

/// Refuses `what` for a machine in `state`, and says what to do.
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
