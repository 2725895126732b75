//! What each QMP command does: arguments checked, driver asked or published state read.

use std::time::Duration;

use serde_json::{Map, Value, json};
use vmstate::migrate::{Parameter, ParameterUnit, ParameterValue};

use crate::config::Address;
use crate::control::report;
use crate::vm::{Handle, ParameterChange, Refusal, Request, Terms};

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
    ("migrate", &["uri", "target-schema", "parameters"], migrate),
    ("migrate_cancel", &[], |handle, _| ask(handle, Request::MigrateCancel)),
    ("query-migrate", &[], |handle, _| Ok(report::migration(&handle.migration()))),
    ("migrate-set-parameters", ANY_PARAMETER, set_parameters),
    ("query-migrate-parameters", &[], |handle, _| Ok(report::parameters(&handle.parameters()))),
    ("migrate-set-capabilities", &["capabilities"], set_capabilities),
    ("query-migrate-capabilities", &[], |handle, _| Ok(report::capabilities(&handle.parameters()))),
];

/// In place of the arguments of a command: it takes those of [`PARAMETERS`], and looks at them itself.
const ANY_PARAMETER: &[&str] = &["…"];

/// Carries out the command called `name`.
pub(super) fn answer(handle: &Handle, name: &str, arguments: Map<String, Value>) -> Result<Value, Failure> {
    let Some((_, known, carry_out)) = COMMANDS.iter().find(|(command, ..)| *command == name) else {
        return Err(Failure::not_found(format!("The command {name} has not been found")));
    };
    if *known != ANY_PARAMETER
        && let Some(unknown) = arguments.keys().find(|argument| !known.contains(&argument.as_str()))
    {
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
    let release = arguments.text("target-schema")?.map(Into::into);
    let parameters = match arguments.0.shift_remove("parameters") {
        None => ParameterChange::default(),
        Some(Value::Object(given)) => change(given, |_| true)?,
        Some(_) => return Err(Failure::generic("Invalid parameter type for 'parameters', expected: object")),
    };
    ask(handle, Request::Migrate(address, Terms { release, parameters }))
}

fn dump_schema(handle: &Handle, arguments: &mut Arguments) -> Result<Value, Failure> {
    let file = arguments.text("file")?.ok_or_else(|| Failure::generic("Parameter 'file' is missing"))?;
    ask(handle, Request::DumpSchema(file.into()))
}

fn set_parameters(handle: &Handle, arguments: &mut Arguments) -> Result<Value, Failure> {
    let change = change(std::mem::take(&mut arguments.0), |parameter| parameter.unit != ParameterUnit::Flag)?;
    ask(handle, Request::MigrateSetParameters(change))
}

/// The parameters that are `given` by name, each of which has to be one of the `accepted`.
fn change(given: Map<String, Value>, accepted: fn(&Parameter) -> bool) -> Result<ParameterChange, Failure> {
    let mut change = ParameterChange::default();
    for (name, given) in given {
        let parameter = Parameter::named(&name).filter(|parameter| accepted(parameter));
        let parameter = parameter.ok_or_else(|| Failure::generic(format!("Parameter '{name}' is unexpected")))?;
        let value = match (parameter.unit, &given) {
            (ParameterUnit::Milliseconds(_), Value::Number(_)) => {
                given.as_u64().map(|time| Duration::from_millis(time).into())
            }
            (_, Value::Number(_)) => given.as_u64().map(ParameterValue::Number),
            (_, Value::String(word)) => Some(ParameterValue::Word(word.clone().into())),
            (ParameterUnit::Flag, &Value::Bool(on)) => Some(on.into()),
            _ => None,
        };
        let value =
            value.ok_or_else(|| Failure::generic(format!("Parameter '{name}' expects {}", parameter.expects())))?;
        change = change.with(parameter.name, value);
    }
    Ok(change)
}

fn set_capabilities(handle: &Handle, arguments: &mut Arguments) -> Result<Value, Failure> {
    let wrong = || {
        Failure::generic(
            "Invalid parameter type for 'capabilities', expected: array of {\"capability\": NAME, \"state\": true or false}",
        )
    };
    let Some(Value::Array(list)) = arguments.0.shift_remove("capabilities") else { return Err(wrong()) };
    let mut change = ParameterChange::default();
    for one in list {
        let (Some(name), Some(state)) = (one["capability"].as_str(), one["state"].as_bool()) else {
            return Err(wrong());
        };
        let capability = Parameter::named(name).filter(|parameter| parameter.unit == ParameterUnit::Flag);
        let refusal = || Failure::generic(format!("Parameter 'capability' does not accept value '{name}'"));
        change = change.with(capability.ok_or_else(refusal)?.name, state);
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
}
