//! One client's conversation, without I/O: bytes in, bytes out.
//!
//! Facts: QEMU's `docs/interop/qmp-spec.rst`. The server speaks first; only `qmp_capabilities` is a command until it
//! succeeded; each answer echoes the command's `id`; JSON values need no newline between them.

use serde_json::{Deserializer, Map, Value, json};

use crate::control::answer::{Failure, answer};
use crate::control::report;
use crate::vm::Handle;

/// Longest command, in bytes: far beyond any that exists, and no burden.
const COMMAND_MAX: usize = 64 * 1024;

/// One client's conversation with the machine.
#[derive(Debug)]
pub struct Session {
    handle: Handle,
    input: Vec<u8>,
    /// The line that the input begins with was wrong, and was answered.
    skipping: bool,
    negotiated: bool,
}

impl Session {
    /// A conversation that has not begun.
    pub fn new(handle: Handle) -> Self {
        Self { handle, input: Vec::new(), skipping: false, negotiated: false }
    }

    /// What the server says first.
    pub fn greeting(&self) -> Vec<u8> {
        line(&json!({"QMP": {"version": report::version(), "capabilities": []}}))
    }

    /// Whether the client may be sent events.
    pub fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    /// Takes bytes from the client and passes each answer to `send`, in order. Waits for the driver where a command does.
    ///
    /// # Errors
    /// The client sent a command that is too long: end the conversation after what was sent.
    pub fn receive(&mut self, bytes: &[u8], mut send: impl FnMut(&Self, Vec<u8>)) -> Result<(), CommandTooLong> {
        self.input.extend_from_slice(bytes);
        while let Some(command) = self.next() {
            let reply = match command {
                Ok(command) => self.execute(command),
                Err(error) => failure(None, Failure::generic(format!("JSON parse error, {error}"))),
            };
            send(self, line(&reply));
        }
        if self.input.len() > COMMAND_MAX {
            let desc = format!("the command is longer than {COMMAND_MAX} bytes; the connection is closed");
            send(self, line(&failure(None, Failure::generic(desc))));
            return Err(CommandTooLong);
        }
        Ok(())
    }

    /// The next value of the input, or what is wrong with it; `None` until more comes. How the input was cut on its way makes
    /// no difference.
    fn next(&mut self) -> Option<serde_json::Result<Value>> {
        if self.skipping {
            let newline = self.input.iter().position(|&byte| byte == b'\n');
            self.input.drain(..newline.map_or(self.input.len(), |newline| newline + 1));
            newline?;
            self.skipping = false;
        }
        // JSON's white space (RFC 8259, section 2), which is not all of ASCII's.
        let blank = self.input.iter().take_while(|&&byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count();
        self.input.drain(..blank);
        // A number or a word may go on: it ends where something else begins.
        let settled = self.input.iter().rposition(|&byte| !goes_on(byte)).map_or(0, |last| last + 1);
        let mut values = Deserializer::from_slice(&self.input[..settled]).into_iter();
        match values.next()? {
            Ok(value) => {
                let end = values.byte_offset();
                self.input.drain(..end);
                Some(Ok(value))
            }
            Err(error) if error.is_eof() => None,
            // Where the damage ends is unknown: the next line is the next chance.
            Err(error) => {
                self.skipping = true;
                Some(Err(error))
            }
        }
    }

    fn execute(&mut self, command: Value) -> Value {
        let Value::Object(mut command) = command else {
            return failure(None, Failure::generic("QMP input must be a JSON object"));
        };
        let id = command.shift_remove("id");
        match self.checked(command) {
            Ok(value) => success(id, value),
            Err(error) => failure(id, error),
        }
    }

    fn checked(&mut self, mut command: Map<String, Value>) -> Result<Value, Failure> {
        let name = command.shift_remove("execute");
        let arguments = command.shift_remove("arguments");
        if let Some(member) = command.keys().next() {
            return Err(Failure::generic(format!("QMP input member '{member}' is unexpected")));
        }
        let name = match name {
            Some(Value::String(name)) => name,
            Some(_) => return Err(Failure::generic("QMP input member 'execute' must be a string")),
            None => return Err(Failure::generic("QMP input lacks member 'execute'")),
        };
        let arguments = match arguments {
            None => Map::new(),
            Some(Value::Object(arguments)) => arguments,
            Some(_) => return Err(Failure::generic("QMP input member 'arguments' must be an object")),
        };
        if self.negotiated && name == "qmp_capabilities" {
            return Err(Failure::not_found("Capabilities negotiation is already complete, command ignored"));
        }
        if !self.negotiated && name != "qmp_capabilities" {
            return Err(Failure::not_found("Expecting capabilities negotiation with 'qmp_capabilities'"));
        }
        let value = answer(&self.handle, &name, arguments)?;
        self.negotiated = true;
        Ok(value)
    }
}

/// True for the bytes of numbers and words.
fn goes_on(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

/// The client sent more than a command can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a command is longer than {COMMAND_MAX} bytes")]
pub struct CommandTooLong;

fn success(id: Option<Value>, value: Value) -> Value {
    with_id(json!({"return": value}), id)
}

fn failure(id: Option<Value>, failure: Failure) -> Value {
    with_id(json!({"error": {"class": failure.class, "desc": failure.desc}}), id)
}

fn with_id(mut reply: Value, id: Option<Value>) -> Value {
    if let Some(id) = id {
        reply["id"] = id;
    }
    reply
}

/// The server ends each message with CR LF.
pub(super) fn line(message: &Value) -> Vec<u8> {
    let mut bytes = message.to_string().into_bytes();
    bytes.extend_from_slice(b"\r\n");
    bytes
}
