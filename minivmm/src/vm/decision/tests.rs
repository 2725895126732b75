//! The whole table, written again by hand: a letter for each request in each situation.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use vmstate::migrate::{Phase, SourcePhase};

use super::*;
use crate::config::Address;
use crate::devices::virtio::net::Announcing;
use crate::vm::backup::{BackupTerms, Target};
use crate::vm::dirty_rate::Sampling;
use crate::vm::migration::Ended;
use crate::vm::request::{ParameterChange, Rehearsing, Terms};

/// Columns: run state and migration under way.
const SITUATIONS: [(RunState, UnderWay); 18] = [
    (RunState::Prelaunch, UnderWay::Nothing),
    (RunState::Running, UnderWay::Nothing),
    (RunState::Running, UnderWay::Outgoing),
    (RunState::Running, UnderWay::Incoming),
    (RunState::Running, UnderWay::IncomingPostcopy),
    (RunState::Running, UnderWay::IncomingPostcopyPaused),
    (RunState::Paused, UnderWay::Nothing),
    (RunState::Paused, UnderWay::Outgoing),
    (RunState::Paused, UnderWay::Incoming),
    (RunState::Paused, UnderWay::IncomingPostcopy),
    (RunState::Paused, UnderWay::IncomingPostcopyPaused),
    (RunState::InMigrate, UnderWay::Incoming),
    (RunState::InMigrate, UnderWay::Nothing),
    (RunState::FinishMigrate, UnderWay::Outgoing),
    (RunState::PostMigrate, UnderWay::Nothing),
    (RunState::Shutdown, UnderWay::Nothing),
    (RunState::InternalError, UnderWay::Nothing),
    (RunState::InternalError, UnderWay::Outgoing),
];

fn letter(decision: &Decision) -> char {
    match decision {
        Decision::Accept => 'a',
        Decision::Refuse(_) => 'r',
        Decision::Defer => 'd',
        Decision::CancelOrRefuse => 'o',
    }
}

fn row(request: impl Into<AnyRequest>) -> String {
    let request = request.into();
    SITUATIONS.iter().map(|&(state, under_way)| letter(&decide(&request, state, under_way))).collect()
}

#[test]
fn every_request_in_every_situation() {
    let backup = BackupTerms { id: "j".into(), disk: 0, target: Target::New("/x".into()), speed: 0 };
    let parameters = Request::MigrateSetParameters(ParameterChange::default());
    // One column each: prelaunch; running alone, with an outgoing, with an incoming migration, with one in post-copy, with
    // one in post-copy whose connection is broken; the same for
    // paused; inmigrate with an incoming migration and alone; finish-migrate, postmigrate, shutdown; internal-error alone and with
    // an outgoing migration.
    let users = [
        (Request::Stop, "raaaaaaaaaaaarrraa"),
        (Request::Cont, "aaaaaaaaaaaaararrr"),
        (Request::ContUnproved, "aaaaaaaaaaaaararrr"),
        (Request::Quit, "aaaaaaaaaaaaaaaaaa"),
        (Request::PowerDown, "raaaaaaaaaarrrrrrr"),
        (Request::Reset, "raaaaraaaarrrrrrrr"),
        (Request::Migrate(Address::Unix("/x".into()), Terms::default()), "rardrrardrrrrrrrrr"),
        (Request::Backup(backup), "rardaaardaarrrrrrr"),
        (Request::Announce(Announcing::ONCE), "raaaaaaaaaarrrrrrr"),
        (Request::MeasureDirtyRate(Sampling::now(Duration::ZERO, 0)), "aaaaaaaaaaaaaaaaaa"),
        (Request::MigrateIncoming { at: Address::Unix("/x".into()), exit_on_error: true }, "rrrrrrrrrrrrarrrrr"),
        (Request::MigrateContinue, "rrarrrrarrrrrarrra"),
        (Request::MigrateStartPostcopy, "rrarrrrarrrrrarrra"),
        (Request::MigrateCancel, "aaoaaaaoaaarroaaao"),
        (parameters, "aaaaaaaaaaaaaaaaaa"),
    ];
    for (request, expected) in users {
        assert_eq!(row(request.clone()), expected, "{request:?}");
    }
    let rehearsing = Rehearsing { stopped: channel().0, over: channel().1 };
    let ended = Ended { phase: Phase::Source(SourcePhase::Failed), error: None, unrecorded: false };
    let engine = [
        (EngineRequest::Rehearse(rehearsing), "rrarrrrarrrrrrrrrr"),
        (EngineRequest::Hold, "rrarrrrarrrrrrrrrr"),
        (EngineRequest::Pause(Duration::ZERO), "rrarrrrarrrrrarrrr"),
        (EngineRequest::AdoptProcessor, "rrrrrrrrrrraarrrrr"),
        (EngineRequest::Arriving(Arc::default()), "rrrrrrrrrrraarrrrr"),
        (EngineRequest::Loaded { may_be_copy: false }, "rrrrrrrrrrraarrrrr"),
        (EngineRequest::Resume, "rrrrrrrrrrraaarrrr"),
        (EngineRequest::Ended(ended), "aaaaaaaaaaaaaaaaaa"),
    ];
    for (request, expected) in engine {
        let name = format!("{request:?}");
        assert_eq!(row(request), expected, "{name}");
    }
}

#[test]
fn the_guest_is_heeded_where_its_vcpus_may_run_or_have_just_run() {
    let heeded: Vec<&str> =
        SITUATIONS.iter().filter(|(state, _)| handles_guest_events(*state)).map(|(state, _)| state.as_str()).collect();
    assert_eq!(
        heeded,
        ["running", "running", "running", "running", "running", "paused", "paused", "paused", "paused", "paused"]
    );
}

/// Bytes typed after the serial port's section was saved, or before it is loaded, would be lost.
#[test]
fn typed_bytes_are_taken_only_where_the_port_keeps_them() {
    let takes: Vec<&str> =
        SITUATIONS.iter().filter(|(state, _)| takes_input(*state)).map(|(state, _)| state.as_str()).collect();
    assert_eq!(
        takes,
        [
            "prelaunch",
            "running",
            "running",
            "running",
            "running",
            "running",
            "paused",
            "paused",
            "paused",
            "paused",
            "paused"
        ]
    );
}

#[test]
fn each_refusal_has_a_reason_and_a_remedy() {
    let refusal = |request: Request, state, under_way| match decide(&request.into(), state, under_way) {
        Decision::Refuse(sentence) => sentence,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        refusal(Request::Cont, RunState::FinishMigrate, UnderWay::Outgoing),
        "the machine is in state finish-migrate and cannot go on; the guest is being handed over: ask again when the \
         migration has ended"
    );
    assert_eq!(
        refusal(Request::PowerDown, RunState::PostMigrate, UnderWay::Nothing),
        "the machine is in state postmigrate and cannot take the power button; the guest was handed over: ask at the \
         destination, or take it back with cont first"
    );
    assert_eq!(
        refusal(Request::Migrate(Address::Unix("/x".into()), Terms::default()), RunState::Running, UnderWay::Outgoing),
        "a migration is under way already; wait for its end or cancel it first"
    );
}
