//! Commands and events about migrations.

use std::time::Duration;

use serde_json::{Map, Value, json};
use vmstate::migrate::{Downtime, PARAMETERS, Parameter, ParameterUnit, ParameterValue, Takeover};

use crate::config::Tls;
use crate::control::commands::{Arguments, Failure, ask, done};
use crate::control::descriptors::Caller;
use crate::control::kind::{Kind, Member, needed, optional};
use crate::control::table::{Command, Event};
use crate::control::{absent, announce, bitmap_mapping, channels, report};
use crate::vm::{DiskCopies, MigrationStatus, ParameterChange, Request, Terms};

/// QEMU's parameter with which the next migrations hand the guest's memory over (MigMode, qapi/migration.json), and its values.
const MODE: &str = "mode";
const NORMAL: &str = "normal";
const REBOOT: &str = "cpr-reboot";
const TRANSFER: &str = "cpr-transfer";

/// States of a QEMU's migration that minivmm's never have.
const STATUS_OF_OTHERS: [&str; 3] = ["postcopy-recover-setup", "colo", "wait-unplug"];

/// Rows of the command table.
pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::new(
            "migrate",
            "answered when the migration has begun. `uri`, or `channels` as QEMU has them since 8.2, is the destination's address, and in mode `cpr-transfer` \
             [a second channel](#qemus-mode-cpr-transfer) passes the guest's memory; `target-schema` names a \
             file: the schema of the older release that the destination has; with `keep-running` the guest runs on here once all of it is in a \
             [file](#migration-to-a-file), with `to-qemu` the file has only sections that QEMU reads; with `copy-disk` the content of the writable disks, or of those in a list of names, [is \
             sent, too](live-migration.md#disks-that-come-along), or with `keep-running` copied beside the file; `parameters` is an object of [parameters](migration-policy.md#parameters), \
             switches among them, which change only if the migration begins; `detach` changes nothing; `resume` \
             reconnects a migration in [post-copy](live-migration.md#post-copy) whose connection broke, and is answered before the connection is made",
            migrate,
        )
        .takes(channels::arguments().into_iter().chain([
            optional("detach", Kind::Switch),
            optional("resume", Kind::Switch),
            optional("target-schema", Kind::Text),
            optional("keep-running", Kind::Switch),
            optional("to-qemu", Kind::Switch),
            optional("copy-disk", Kind::SwitchOrTexts("BoolOrStrList")),
            optional("parameters", Kind::object(PARAMETERS.iter().map(of_the_engine).chain(of_tls(Kind::TextOrNull)))),
        ])),
        Command::new(
            "migrate-incoming",
            "waits for a source at `uri`, or at the address of `channels`; for a machine that was started with `--incoming defer`. With \
             `exit-on-error` off, a migration that fails leaves the machine as it was started, and the command can be given again",
            migrate_incoming,
        )
        .takes(channels::arguments().into_iter().chain([optional("exit-on-error", Kind::Switch)])),
        Command::new("migrate_cancel", "answered when the migration has ended", |handle, _| {
            ask(handle, Request::MigrateCancel)
        }),
        Command::new(
            "migrate-continue",
            "continues a migration that waits before its switch-over ([capability](#capabilities) `pause-before-switchover`); `state` is \
             `pre-switchover`",
            migrate_continue,
        )
        .takes([needed("state", status())]),
        Command::new(
            "migrate-start-postcopy",
            "switches a migration that began with the [capability](#capabilities) `postcopy-ram` to post-copy now: the rest of the guest's \
             memory is sent while the guest runs at the destination",
            |handle, _| ask(handle, Request::MigrateStartPostcopy),
        ),
        Command::new(
            "migrate-pause",
            "breaks the connection of a migration in post-copy, at either side, so that the migration can be resumed over another one",
            |caller, _| done(caller.pause_postcopy()),
        )
        .out_of_band(),
        Command::new(
            "migrate-recover",
            "at a destination whose connection broke in post-copy: its source may also connect at `uri`; it can always connect at its first address",
            |caller, arguments| {
                let mut at = channels::address(&arguments)?;
                caller.descriptors.put_into(&mut at)?;
                done(caller.recover_postcopy(at))
            },
        )
        .takes([needed("uri", Kind::Text)])
        .out_of_band(),
        Command::new("query-migrate", "the migration, [see below](#query-migrate)", |handle, _| {
            Ok(report::migration(&handle.migration()))
        })
        .gives(figures()),
        Command::new(
            "query-migrate-rounds",
            "the rounds that are over, the last 4096 of them, of a source; QEMU lacks it",
            |handle, _| Ok(report::rounds(&handle.rounds())),
        )
        .gives(Kind::list(rounds())),
        Command::new(
            "query-migrate-sections",
            "the sections that were sent in the pause, in their order, once the migration is over: bytes, and the time to save each at a source, \
             the time to load each at a destination, and at a source whose destination reported it; QEMU lacks it",
            |handle, _| Ok(report::sections(&handle.sections())),
        )
        .gives(Kind::list(section())),
        Command::new(
            "query-migrate-heat",
            "how many pages of each part of guest memory a source has sent, as of the last round's end: at most 1024 parts of \
             `cell-bytes` each, the last one may be shorter; QEMU lacks it",
            |handle, _| Ok(report::heat(&handle.heat())),
        )
        .gives(Kind::object([needed("cell-bytes", Kind::Integer), needed("pages", Kind::list(Kind::Integer))])),
        Command::new(
            "migrate-set-parameters",
            "any of the [parameters](migration-policy.md#parameters), also while a migration runs; all or none. `block-bitmap-mapping` has [the names \
             under which dirty bitmaps migrate](live-migration.md#dirty-bitmaps)",
            set_parameters,
        )
        .takes(parameters(Kind::TextOrNull))
        .lacks(absent::PARAMETERS_ABSENT),
        Command::new("query-migrate-parameters", "all parameters with their current values", |handle, _| {
            let mut shown = report::parameters(&handle.parameters(), &handle.tls());
            announce::show(handle.announcing(), &mut shown);
            bitmap_mapping::show(handle.bitmap_mapping().as_ref(), &mut shown);
            shown[MODE] = if handle.transfers() { TRANSFER } else { NORMAL }.into();
            Ok(shown)
        })
        .gives(Kind::object(parameters(Kind::Text))),
        Command::new(
            "migrate-set-capabilities",
            "[capabilities](#capabilities), also while a migration runs; all or none",
            set_capabilities,
        )
        .takes([needed("capabilities", Kind::list(capability()))]),
        Command::new("query-migrate-capabilities", "all capabilities with their current values", |handle, _| {
            Ok(absent::capabilities(&handle.parameters(), |name| match name {
                absent::PAUSE => handle.pauses_before_switchover(),
                absent::BITMAPS => handle.sends_dirty_bitmaps(),
                _ => handle.measures_block_time(),
            }))
        })
        .gives(Kind::list(capability())),
        Command::new(
            "dump-schema",
            "writes the schema of all sections that this machine sends to the new file `file`; a newer minivmm takes it as \
             `target-schema`",
            |handle, arguments| ask(handle, Request::DumpSchema(arguments.text("file").unwrap_or_default().into())),
        )
        .takes([needed("file", Kind::Text)]),
    ]
}

/// Rows of the event table.
pub(super) fn events() -> Vec<Event> {
    vec![
        Event::new(
            "MIGRATION",
            "the status of the migration changed. QEMU sends this and the next one only with the capability `events`",
            [needed("status", status())],
        ),
        Event::new("MIGRATION_PASS", "a source begins the round with this number", [needed("pass", Kind::Integer)]),
    ]
}

fn status() -> Kind {
    Kind::word(MigrationStatus::ALL.map(MigrationStatus::as_str).into_iter().chain(STATUS_OF_OTHERS))
}

fn capability() -> Kind {
    Kind::object([needed("capability", Kind::word(absent::capability_names())), needed("state", Kind::Switch)])
}

/// Parameters of `migrate-set-parameters`: those of the engine except flags, which are capabilities; those of TLS; those of
/// the announcement; the names of dirty bitmaps; and the mode.
fn parameters(tls: Kind) -> Vec<Member> {
    let engines = PARAMETERS.iter().filter(|parameter| parameter.unit != ParameterUnit::Flag).map(of_the_engine);
    let mode = optional(MODE, Kind::word([NORMAL, REBOOT, TRANSFER]));
    engines.chain(of_tls(tls)).chain(announce::parameters()).chain([bitmap_mapping::parameter(), mode]).collect()
}

/// Parameters of TLS. As with QEMU, null sets the empty text, and answers have a string.
fn of_tls(kind: Kind) -> impl Iterator<Item = Member> {
    Tls::PARAMETERS.iter().map(move |(name, _)| optional(name, kind.clone()))
}

fn of_the_engine(parameter: &Parameter) -> Member {
    let kind = match parameter.unit {
        ParameterUnit::Flag | ParameterUnit::Switch => Kind::Switch,
        ParameterUnit::Word(words) => Kind::word(words.iter().copied()),
        _ => Kind::Size,
    };
    optional(parameter.name, kind)
}

/// Answer of `query-migrate`: the manual says which members it has at which time.
fn figures() -> Kind {
    let integers = |names: &[&'static str]| names.iter().map(|name| needed(name, Kind::Integer)).collect::<Vec<_>>();
    let ram = integers(&[
        "transferred",
        "remaining",
        "total",
        "duplicate",
        "normal",
        "normal-bytes",
        "dirty-pages-rate",
        "dirty-sync-count",
        "pages-per-second",
        "page-size",
    ]);
    let xbzrle = integers(&["cache-size", "bytes", "pages", "cache-miss", "overflow"]);
    let rates = ["cache-miss-rate", "encoding-rate"].map(|rate| needed(rate, Kind::Number));
    let slowdown = integers(&["throttled", "rehearsed", "highest-throttle"]);
    let parts = report::parts(Downtime::default()).map(|(part, _)| needed(part, Kind::Integer));
    let takeover = report::takeover_parts(Takeover::default()).map(|(part, _)| needed(part, Kind::Integer));
    Kind::object([
        optional("status", status()),
        optional("total-time", Kind::Integer),
        optional("setup-time", Kind::Integer),
        optional("expected-downtime", Kind::Integer),
        optional("expected-total-time", Kind::Integer),
        optional("downtime", Kind::Integer),
        optional("downtime-parts", Kind::object(parts)),
        optional("takeover-parts", Kind::object(takeover)),
        optional("cpu-throttle-percentage", Kind::Integer),
        optional("guest-slowdown", Kind::object(slowdown.into_iter().chain([needed("percent", Kind::Number)]))),
        optional("ram", Kind::object(ram.into_iter().chain([needed("mbps", Kind::Number)]))),
        optional("disk", Kind::object(integers(&["transferred", "remaining", "total"]))),
        optional("page-waits", Kind::object(integers(&["count", "median-us", "p99-us", "longest-us"]))),
        optional("postcopy-blocktime", Kind::Integer),
        optional("postcopy-vcpu-blocktime", Kind::list(Kind::Integer)),
        optional("xbzrle-cache", Kind::object(xbzrle.into_iter().chain(rates))),
        optional("error-desc", Kind::Text),
    ])
}

/// A round in the answer of `query-migrate-rounds`.
fn rounds() -> Kind {
    let members = ["duration-us", "bytes", "normal", "zero", "dirtied-bytes"];
    Kind::object(members.map(|name| needed(name, Kind::Integer)))
}

/// A section in the answer of `query-migrate-sections`.
fn section() -> Kind {
    let integers = ["instance", "bytes"].map(|name| needed(name, Kind::Integer));
    let times = ["save-ns", "load-ns"].map(|name| optional(name, Kind::Integer));
    Kind::object([needed("section", Kind::Text)].into_iter().chain(integers).chain(times))
}

fn migrate(caller: &Caller, arguments: Arguments) -> Result<Value, Failure> {
    let (mut address, cpr) = channels::addresses(&arguments)?;
    match (caller.transfers(), &cpr) {
        // QEMU's message (`qmp_migrate`, migration/migration.c).
        (true, None) => return Err(Failure::generic("missing 'cpr' migration channel")),
        // QEMU would ignore the channel, at which the destination waits.
        (false, Some(_)) => {
            let why = "a cpr channel is for the mode cpr-transfer: set the parameter mode before";
            return Err(Failure::generic(why));
        }
        _ => {}
    }
    if arguments.switch("resume") == Some(true) {
        caller.descriptors.put_into(&mut address)?;
        return ask(caller, Request::MigrateResume(address));
    }
    let release = arguments.text("target-schema").map(Into::into);
    let [keeps_running, to_qemu] = ["keep-running", "to-qemu"].map(|name| arguments.switch(name) == Some(true));
    let copies = match (arguments.switch("copy-disk"), arguments.list("copy-disk")) {
        (Some(true), _) => DiskCopies::All,
        (_, []) => DiskCopies::None,
        (_, names) => DiskCopies::Named(names.iter().filter_map(Value::as_str).map(Into::into).collect()),
    };
    let parameters = match arguments.into_members().shift_remove("parameters") {
        Some(Value::Object(given)) => change(given)?,
        _ => ParameterChange::default(),
    };
    caller.descriptors.put_into(&mut address)?;
    ask(caller, Request::Migrate(address, Terms { release, cpr, keeps_running, to_qemu, copies, parameters }))
}

fn migrate_incoming(caller: &Caller, arguments: Arguments) -> Result<Value, Failure> {
    let exit_on_error = arguments.switch("exit-on-error") != Some(false);
    let mut at = channels::address(&arguments)?;
    caller.descriptors.put_into(&mut at)?;
    ask(caller, Request::MigrateIncoming { at, exit_on_error })
}

fn migrate_continue(caller: &Caller, arguments: Arguments) -> Result<Value, Failure> {
    let now = caller.migration().status().as_str();
    match arguments.text("state") == Some(now) {
        true => ask(caller, Request::MigrateContinue),
        false => Err(Failure::generic(format!("Migration not in expected state: {now}"))),
    }
}

fn set_parameters(caller: &Caller, arguments: Arguments) -> Result<Value, Failure> {
    let mut members = arguments.into_members();
    let announcing = announce::take(caller.announcing(), &mut members)?;
    let mapping = bitmap_mapping::take(&mut members)?;
    let mode = members.shift_remove(MODE);
    if mode.as_ref().is_some_and(|mode| mode == REBOOT) {
        let why = "Parameter 'mode' does not accept 'cpr-reboot': a guest in a file (migrate to file:PATH) resumes with the memory of the file";
        return Err(Failure::generic(why));
    }
    let done = ask(caller, Request::MigrateSetParameters(change(members)?))?;
    caller.set_announcing(announcing);
    if let Some(mapping) = mapping {
        caller.set_bitmap_mapping(mapping);
    }
    if let Some(mode) = mode {
        caller.set_transfers(mode == TRANSFER);
    }
    Ok(done)
}

/// Reads the parameters that are `given` by name.
fn change(given: Map<String, Value>) -> Result<ParameterChange, Failure> {
    let mut change = ParameterChange::default();
    for (name, given) in given {
        if let Some(name) = Tls::named(&name) {
            let text = given.as_str().unwrap_or_default().to_owned();
            change = change.with(name, ParameterValue::Word(text.into()));
            continue;
        }
        let unexpected = || Failure::generic(format!("Parameter '{name}' is unexpected"));
        let parameter = Parameter::named(&name).ok_or_else(unexpected)?;
        let value = match (parameter.unit, &given) {
            (ParameterUnit::Flag | ParameterUnit::Switch, &Value::Bool(on)) => Some(on.into()),
            (ParameterUnit::Milliseconds(_), given) => given.as_u64().map(|time| Duration::from_millis(time).into()),
            (_, Value::String(word)) => Some(ParameterValue::Word(word.clone().into())),
            (_, given) => given.as_u64().map(ParameterValue::Number),
        };
        // A negative number is refused; QEMU would take it for a very large one.
        let refused = || Failure::generic(format!("Parameter '{name}' expects {}", parameter.expects()));
        change = change.with(parameter.name, value.ok_or_else(refused)?);
    }
    Ok(change)
}

fn set_capabilities(caller: &Caller, arguments: Arguments) -> Result<Value, Failure> {
    let (mut pauses, mut measures) = (caller.pauses_before_switchover(), caller.measures_block_time());
    let mut sends_bitmaps = caller.sends_dirty_bitmaps();
    let mut change = ParameterChange::default();
    for one in arguments.list("capabilities") {
        let (name, on) = (one["capability"].as_str().unwrap_or_default(), one["state"] == json!(true));
        match name {
            absent::PAUSE => pauses = on,
            absent::BITMAPS => sends_bitmaps = on,
            absent::BLOCK_TIME => {
                if let (true, Some(why)) = (on, caller.inventory().no_block_time) {
                    return Err(Failure::generic(format!("Capability '{name}' is not supported: {why}")));
                }
                measures = on;
            }
            _ => {}
        }
        if let Some(flag) = absent::switch(name, on).map_err(Failure::generic)? {
            change = change.with(flag.name, on);
        }
    }
    let done = ask(caller, Request::MigrateSetParameters(change))?;
    caller.set_pauses_before_switchover(pauses);
    caller.set_measures_block_time(measures);
    caller.set_sends_dirty_bitmaps(sends_bitmaps);
    Ok(done)
}
