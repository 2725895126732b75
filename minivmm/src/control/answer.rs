//! What each QMP command does: arguments checked, driver asked or published state read.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::config::Address;
use crate::control::report;
use crate::vm::{Handle, ParameterChange, Refusal, Request};

/// An error of QMP: its class and a sentence.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) class: &'static str,
    pub(super) desc: String,
}

impl Failure {
    pub(super) fn generic(desc: impl Into<String>) -> Self {
        Self { class: "GenericError", desc: desc.into() }
    }

    pub(super) fn not_found(desc: impl Into<String>) -> Self {
        Self { class: "CommandNotFound", desc: desc.into() }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::generic(refusal.0)
    }
}

/// Least `max-bandwidth`, in bytes a second: one page record, which is a word of 8 bytes, a block's name of at most 255 with
/// its length, and the page.
const BANDWIDTH_MIN: u64 = 8 + 256 + 4096;

type CarryOut = fn(&Handle, &mut Arguments) -> Result<Value, Failure>;

/// Every command, in the order of `query-commands`: its name, the arguments it takes, what it does.
const COMMANDS: &[(&str, &[&str], CarryOut)] = &[
    ("qmp_capabilities", &["enable"], negotiate),
    ("query-commands", &[], |_, _| Ok(COMMANDS.iter().map(|(name, ..)| json!({"name": name})).collect())),
    ("query-version", &[], |_, _| Ok(report::version())),
    ("query-status", &[], |handle, _| Ok(report::status(handle.run_state()))),
    ("stop", &[], |handle, _| ask(handle, Request::Stop)),
    ("cont", &["force"], cont),
    ("system_reset", &[], |handle, _| ask(handle, Request::Reset)),
    ("system_powerdown", &[], |handle, _| ask(handle, Request::PowerDown)),
    ("quit", &[], quit),
    ("dump-schema", &["file"], dump_schema),
    ("migrate", &["uri", "target-schema"], migrate),
    ("migrate_cancel", &[], |handle, _| ask(handle, Request::MigrateCancel)),
    ("query-migrate", &[], |handle, _| Ok(report::migration(&handle.migration()))),
    ("migrate-set-parameters", &["downtime-limit", "max-bandwidth", "pause-budget"], set_parameters),
    ("query-migrate-parameters", &[], |handle, _| Ok(report::parameters(handle.parameters()))),
];

/// Carries out the command called `name`.
pub(super) fn answer(handle: &Handle, name: &str, arguments: Map<String, Value>) -> Result<Value, Failure> {
    let Some((_, known, carry_out)) = COMMANDS.iter().find(|(command, ..)| *command == name) else {
        return Err(Failure::not_found(format!("The command {name} has not been found")));
    };
    if let Some(unknown) = arguments.keys().find(|argument| !known.contains(&argument.as_str())) {
        return Err(Failure::generic(format!("Parameter '{unknown}' is unexpected")));
    }
    carry_out(handle, &mut Arguments(arguments))
}

fn ask(handle: &Handle, request: Request) -> Result<Value, Failure> {
    handle.ask(request)?;
    Ok(json!({}))
}

/// The greeting offers no capability, so there is none to enable.
fn negotiate(_: &Handle, arguments: &mut Arguments) -> Result<Value, Failure> {
    match arguments.0.shift_remove("enable") {
        None => Ok(json!({})),
        Some(Value::Array(list)) if list.is_empty() => Ok(json!({})),
        Some(Value::Array(list)) => Err(Failure::generic(format!("Capability {} is not available", list[0]))),
        Some(_) => Err(Failure::generic("Invalid parameter type for 'enable', expected: array")),
    }
}

fn quit(handle: &Handle, _: &mut Arguments) -> Result<Value, Failure> {
    handle.announce_quit();
    ask(handle, Request::Quit)
}

fn cont(handle: &Handle, arguments: &mut Arguments) -> Result<Value, Failure> {
    match arguments.0.shift_remove("force") {
        None | Some(Value::Bool(false)) => ask(handle, Request::Cont),
        Some(Value::Bool(true)) => ask(handle, Request::ContUnproved),
        Some(_) => Err(Failure::generic("Invalid parameter type for 'force', expected: boolean")),
    }
}

fn migrate(handle: &Handle, arguments: &mut Arguments) -> Result<Value, Failure> {
    let uri = arguments.text("uri")?.ok_or_else(|| Failure::generic("Parameter 'uri' is missing"))?;
    let address: Address = uri.parse().map_err(Failure::generic)?;
    ask(
        handle,
        match arguments.text("target-schema")? {
            None => Request::Migrate(address),
            Some(file) => Request::MigrateToRelease(address, file.into()),
        },
    )
}

fn dump_schema(handle: &Handle, arguments: &mut Arguments) -> Result<Value, Failure> {
    let file = arguments.text("file")?.ok_or_else(|| Failure::generic("Parameter 'file' is missing"))?;
    ask(handle, Request::DumpSchema(file.into()))
}

fn set_parameters(handle: &Handle, arguments: &mut Arguments) -> Result<Value, Failure> {
    let milliseconds = |limit: Option<u64>| limit.map(Duration::from_millis);
    let change = ParameterChange {
        downtime_limit: milliseconds(arguments.unsigned("downtime-limit", report::PAUSE_MAX_MS)?),
        max_bandwidth: arguments.unsigned("max-bandwidth", u64::MAX)?,
        pause_budget: milliseconds(arguments.unsigned("pause-budget", report::PAUSE_MAX_MS)?),
    };
    if let Some(bandwidth) = change.max_bandwidth.filter(|bandwidth| (1..BANDWIDTH_MIN).contains(bandwidth)) {
        return Err(Failure::generic(format!(
            "Parameter 'max-bandwidth' of {bandwidth} bytes a second would never send a page; give {BANDWIDTH_MIN} or \
             more, or 0 for no limit"
        )));
    }
    ask(handle, Request::MigrateSetParameters(change))
}

/// Arguments of one command.
struct Arguments(Map<String, Value>);

impl Arguments {
    /// A string, where it is given.
    fn text(&mut self, name: &str) -> Result<Option<String>, Failure> {
        match self.0.shift_remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Failure::generic(format!("Invalid parameter type for '{name}', expected: string"))),
        }
    }

    /// An integer of 0 to `max`, where it is given.
    fn unsigned(&mut self, name: &str, max: u64) -> Result<Option<u64>, Failure> {
        match self.0.shift_remove(name) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) if number <= max => Ok(Some(number)),
                _ => Err(Failure::generic(format!("Parameter '{name}' expects an integer in the range of 0 to {max}"))),
            },
        }
    }
}
