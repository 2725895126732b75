//! Checks a command's name and arguments against the table, and carries the command out.

use serde_json::{Map, Value, json};

use crate::control::descriptors::Caller;
use crate::control::table::COMMANDS;
use crate::vm::{Handle, Refusal, Request};

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

/// Whether a command is executed in order, or out of band.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Band {
    In,
    Out,
}

/// Carries out the command called `name`.
pub(super) fn answer(caller: &Caller, band: Band, name: &str, arguments: Map<String, Value>) -> Result<Value, Failure> {
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        return Err(Failure::not_found(format!("The command {name} has not been found")));
    };
    if band == Band::Out && !command.out_of_band {
        return Err(Failure::generic(format!("The command {name} does not support OOB")));
    }
    if let Some((absent, why)) = command.lacks.iter().find(|(absent, _)| arguments.contains_key(*absent)) {
        return Err(Failure::generic(format!("Parameter '{absent}' is not supported: {why}")));
    }
    command.arguments.check(&arguments, "").map_err(Failure::generic)?;
    (command.carry_out)(caller, Arguments(arguments))
}

/// Sends a request to the driver; the answer is empty.
pub(super) fn ask(handle: &Handle, request: Request) -> Result<Value, Failure> {
    done(handle.ask(request))
}

/// Converts the driver's outcome to an empty answer.
pub(super) fn done(outcome: Result<(), Refusal>) -> Result<Value, Failure> {
    outcome?;
    Ok(json!({}))
}

/// Arguments of a command, already checked against the table.
pub(super) struct Arguments(Map<String, Value>);

impl Arguments {
    /// Arguments within those of another command, already checked with them.
    pub(super) fn within(members: Option<&Map<String, Value>>) -> Self {
        Self(members.cloned().unwrap_or_default())
    }

    /// Returns a string, if it is given.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// Returns a boolean, if it is given.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.0.get(name)?.as_bool()
    }

    /// Returns a number, if it is given.
    pub(super) fn integer(&self, name: &str) -> Option<i64> {
        self.0.get(name)?.as_i64()
    }

    /// Returns a list, empty if it is not given.
    pub(super) fn list(&self, name: &str) -> &[Value] {
        self.0.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Returns an object, if it is given.
    pub(super) fn object(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Returns all arguments.
    pub(super) fn into_members(self) -> Map<String, Value> {
        self.0
    }
}
