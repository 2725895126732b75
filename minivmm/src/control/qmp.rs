//! QMP session of one client: reads its commands one by one, and answers each. Each byte is parsed once, however few arrive at
//! a time.
//!
//! Facts: QEMU's `docs/interop/qmp-spec.rst`. The server greets first; every command except `qmp_capabilities` is refused until
//! that one succeeded; each answer echoes the command's `id`; JSON values need no newline between them.

use std::io::{self, Read};

use serde_json::error::Category;
use serde_json::{Deserializer, Map, Value, json};

use crate::control::commands::{Band, Failure, answer};
use crate::control::descriptors::{Caller, Descriptors};
use crate::control::introspection::OUT_OF_BAND;
use crate::control::report;
use crate::vm::Handle;

/// Longest command, in bytes: longer than any that exists, and short enough to buffer.
const COMMAND_MAX: usize = 64 * 1024;

const NEGOTIATE: &str = "qmp_capabilities";

/// Member that names a command instead of `execute`, for execution out of band.
const EXECUTE_OUT_OF_BAND: &str = "exec-oob";

/// QMP session of one client.
#[derive(Debug)]
pub struct Session<R> {
    state: SessionState,
    input: Input<R>,
    /// The client sent a command that is too long.
    over: bool,
}

/// What client and machine have negotiated, which decides what the client may send. A clone does not see later changes.
#[derive(Clone, Debug)]
pub struct SessionState {
    caller: Caller,
    negotiated: bool,
    out_of_band: bool,
}

/// A command of a client, or the error in its text.
#[derive(Debug)]
pub struct ParsedCommand(Result<Value, String>);

impl ParsedCommand {
    /// Whether the client asked for execution out of band.
    pub fn is_out_of_band(&self) -> bool {
        self.0.as_ref().is_ok_and(|command| command.get(EXECUTE_OUT_OF_BAND).is_some())
    }
}

impl<R: Read> Session<R> {
    /// Begins a session with the client whose bytes `source` reads.
    pub fn new(handle: Handle, source: R) -> Self {
        let caller = Caller { handle, descriptors: Descriptors::default() };
        let state = SessionState { caller, negotiated: false, out_of_band: false };
        Self { state, input: Input::new(source), over: false }
    }

    /// Adds the descriptors that the client passes.
    #[must_use]
    pub(super) fn with_descriptors(mut self, descriptors: Descriptors) -> Self {
        self.state.caller.descriptors = descriptors;
        self
    }

    /// Returns the server's greeting.
    pub fn greeting(&self) -> Vec<u8> {
        line(&json!({"QMP": {"version": report::version(), "capabilities": [OUT_OF_BAND]}}))
    }

    /// Returns the negotiated state, which does not change any more once it [is negotiated](SessionState::is_negotiated).
    pub fn state(&self) -> &SessionState {
        &self.state
    }

    /// Waits for the client's next command; `None` once the client has left, or has sent a command that is too long.
    pub fn next_command(&mut self) -> Option<ParsedCommand> {
        let first = self.input.begin().filter(|_| !self.over)?;
        let value = Deserializer::from_reader(&mut self.input).into_iter().next()?;
        match value {
            Ok(value) => {
                // A number or word ends at the byte after it, which the parser has consumed.
                if !matches!(first, b'{' | b'[' | b'"') {
                    self.input.give_back();
                }
                Some(ParsedCommand(Ok(value)))
            }
            Err(error) => match error.classify() {
                Category::Io if self.input.left == 0 => {
                    self.over = true;
                    let what = format!("the command is longer than {COMMAND_MAX} bytes; the connection is closed");
                    Some(ParsedCommand(Err(what)))
                }
                Category::Io | Category::Eof => None,
                Category::Syntax | Category::Data => {
                    self.input.skip_line();
                    Some(ParsedCommand(Err(format!("JSON parse error, {error}"))))
                }
            },
        }
    }

    /// Answers a command; waits for the driver if the command does.
    pub fn answer(&mut self, command: ParsedCommand) -> Vec<u8> {
        self.state.answer(command)
    }
}

impl SessionState {
    /// Whether the client may be sent events.
    pub fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    /// Whether the client may ask [out of band](ParsedCommand::is_out_of_band).
    pub fn is_out_of_band(&self) -> bool {
        self.out_of_band
    }

    /// Like [`Session::answer`].
    pub fn answer(&mut self, ParsedCommand(command): ParsedCommand) -> Vec<u8> {
        line(&match command {
            Ok(command) => self.execute(command),
            Err(what) => failure(None, Failure::generic(what)),
        })
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
        let (name, band) = self.name(&mut command)?;
        let arguments = match command.shift_remove("arguments") {
            None => Map::new(),
            Some(Value::Object(arguments)) => arguments,
            Some(_) => return Err(Failure::generic("QMP input member 'arguments' must be an object")),
        };
        if self.negotiated && name == NEGOTIATE {
            return Err(Failure::not_found("Capabilities negotiation is already complete, command ignored"));
        }
        if !self.negotiated && name != NEGOTIATE {
            return Err(Failure::not_found("Expecting capabilities negotiation with 'qmp_capabilities'"));
        }
        // The table allows this one capability only.
        let out_of_band = arguments.get("enable").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        let value = answer(&self.caller, band, &name, arguments)?;
        if name == NEGOTIATE {
            (self.negotiated, self.out_of_band) = (true, out_of_band);
        }
        Ok(value)
    }

    /// Takes out the name of the command, and its band.
    fn name(&self, command: &mut Map<String, Value>) -> Result<(String, Band), Failure> {
        let in_turn = command.shift_remove("execute");
        let out_of_band = if self.out_of_band { command.shift_remove(EXECUTE_OUT_OF_BAND) } else { None };
        if let Some(member) = command.keys().find(|member| *member != "arguments") {
            return Err(Failure::generic(format!("QMP input member '{member}' is unexpected")));
        }
        match (in_turn, out_of_band) {
            (Some(Value::String(name)), None) => Ok((name, Band::In)),
            (None, Some(Value::String(name))) => Ok((name, Band::Out)),
            (Some(_), Some(_)) => Err(Failure::generic("QMP input member 'execute' clashes with 'exec-oob'")),
            (Some(_), None) => Err(Failure::generic("QMP input member 'execute' must be a string")),
            (None, Some(_)) => Err(Failure::generic("QMP input member 'exec-oob' must be a string")),
            (None, None) => Err(Failure::generic("QMP input lacks member 'execute'")),
        }
    }
}

/// Input from a client. serde_json reads it byte by byte, and at most one byte beyond a value.
#[derive(Debug)]
struct Input<R> {
    source: R,
    buffer: [u8; 4096],
    /// Index of the first byte in the buffer that was not taken.
    from: usize,
    to: usize,
    /// Byte that was taken last; `None` at the end of the input.
    last: Option<u8>,
    /// Bytes that the current command may still have.
    left: usize,
    /// The rest of the line is ignored.
    skipping: bool,
}

impl<R: Read> Input<R> {
    fn new(source: R) -> Self {
        Self { source, buffer: [0; 4096], from: 0, to: 0, last: None, left: 0, skipping: false }
    }

    /// Returns the first byte of a command without taking it; `None` at the end of the input.
    fn begin(&mut self) -> Option<u8> {
        loop {
            let byte = self.take().ok()??;
            if self.skipping {
                self.skipping = byte != b'\n';
            // JSON's white space (RFC 8259, section 2), which is not all of ASCII's.
            } else if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                self.give_back();
                self.left = COMMAND_MAX;
                return Some(byte);
            }
        }
    }

    /// Ignores the rest of a line with a mistake, which was answered already.
    fn skip_line(&mut self) {
        self.skipping = self.last != Some(b'\n');
    }

    fn take(&mut self) -> io::Result<Option<u8>> {
        while self.from == self.to {
            match self.source.read(&mut self.buffer) {
                Ok(0) => {
                    self.last = None;
                    return Ok(None);
                }
                Ok(count) => (self.from, self.to) = (0, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.last = Some(self.buffer[self.from]);
        self.from += 1;
        Ok(self.last)
    }

    /// Puts the byte that was taken last back into the input.
    fn give_back(&mut self) {
        if self.last.take().is_some() {
            self.from -= 1;
        }
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(place) = bytes.first_mut() else { return Ok(0) };
        self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::FileTooLarge)?;
        let Some(byte) = self.take()? else { return Ok(0) };
        *place = byte;
        Ok(1)
    }
}

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

/// Prints a message as the server sends it, ended by CR LF.
pub(super) fn line(message: &Value) -> Vec<u8> {
    let mut bytes = message.to_string().into_bytes();
    bytes.extend_from_slice(b"\r\n");
    bytes
}
