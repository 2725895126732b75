//! One client's conversation: its commands one by one, and the answer to each. A byte is looked at once, however it comes.
//!
//! Facts: QEMU's `docs/interop/qmp-spec.rst`. The server speaks first; only `qmp_capabilities` is a command until it
//! succeeded; each answer echoes the command's `id`; JSON values need no newline between them.

use std::io::{self, Read};

use serde_json::error::Category;
use serde_json::{Deserializer, Map, Value, json};

use crate::control::commands::{Band, Failure, answer};
use crate::control::descriptors::{Caller, Descriptors};
use crate::control::introspection::OUT_OF_BAND;
use crate::control::report;
use crate::vm::Handle;

/// Longest command, in bytes: far beyond any that exists, and no burden.
const COMMAND_MAX: usize = 64 * 1024;

const NEGOTIATE: &str = "qmp_capabilities";

/// The member that names a command in place of `execute`, where it is to overtake others.
const EXECUTE_OUT_OF_BAND: &str = "exec-oob";

/// One client's conversation with the machine.
#[derive(Debug)]
pub struct Session<R> {
    conversation: Conversation,
    input: Input<R>,
    /// The client sent a command that is too long.
    over: bool,
}

/// How far a client and the machine have agreed, and so what the client may ask for. A clone stays as it was.
#[derive(Clone, Debug)]
pub struct Conversation {
    caller: Caller,
    negotiated: bool,
    out_of_band: bool,
}

/// What a client said.
#[derive(Debug)]
pub struct Said(Result<Value, String>);

impl Said {
    /// True if the client wants the answer before those to what it said earlier.
    pub fn is_out_of_band(&self) -> bool {
        self.0.as_ref().is_ok_and(|command| command.get(EXECUTE_OUT_OF_BAND).is_some())
    }
}

impl<R: Read> Session<R> {
    /// A conversation that has not begun, with the client whose bytes `source` gives.
    pub fn new(handle: Handle, source: R) -> Self {
        let caller = Caller { handle, descriptors: Descriptors::default() };
        let conversation = Conversation { caller, negotiated: false, out_of_band: false };
        Self { conversation, input: Input::new(source), over: false }
    }

    /// With what the client passes in these.
    #[must_use]
    pub(super) fn with_descriptors(mut self, descriptors: Descriptors) -> Self {
        self.conversation.caller.descriptors = descriptors;
        self
    }

    /// What the server says first.
    pub fn greeting(&self) -> Vec<u8> {
        line(&json!({"QMP": {"version": report::version(), "capabilities": [OUT_OF_BAND]}}))
    }

    /// What was agreed on. It does not change any more once it [is negotiated](Conversation::is_negotiated).
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// Waits for what the client says next; `None` once it has left, or has sent a command that is too long.
    pub fn listen(&mut self) -> Option<Said> {
        let first = self.input.begin().filter(|_| !self.over)?;
        let value = Deserializer::from_reader(&mut self.input).into_iter().next()?;
        match value {
            Ok(value) => {
                // Numbers and words end where something else begins, and that was taken from the input.
                if !matches!(first, b'{' | b'[' | b'"') {
                    self.input.give_back();
                }
                Some(Said(Ok(value)))
            }
            Err(error) => match error.classify() {
                Category::Io if self.input.left == 0 => {
                    self.over = true;
                    let what = format!("the command is longer than {COMMAND_MAX} bytes; the connection is closed");
                    Some(Said(Err(what)))
                }
                Category::Io | Category::Eof => None,
                Category::Syntax | Category::Data => {
                    self.input.skip_line();
                    Some(Said(Err(format!("JSON parse error, {error}"))))
                }
            },
        }
    }

    /// The answer to what the client said. Waits for the driver where a command does.
    pub fn answer(&mut self, said: Said) -> Vec<u8> {
        self.conversation.answer(said)
    }
}

impl Conversation {
    /// Whether the client may be sent events.
    pub fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    /// Whether the client may ask [out of band](Said::is_out_of_band).
    pub fn is_out_of_band(&self) -> bool {
        self.out_of_band
    }

    /// As [`Session::answer`].
    pub fn answer(&mut self, Said(said): Said) -> Vec<u8> {
        line(&match said {
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
        // The table lets only this one capability pass.
        let out_of_band = arguments.get("enable").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        let value = answer(&self.caller, band, &name, arguments)?;
        if name == NEGOTIATE {
            (self.negotiated, self.out_of_band) = (true, out_of_band);
        }
        Ok(value)
    }

    /// Takes the name of the command, and how it is to be executed.
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

/// What comes from a client. serde_json reads it byte by byte, and never more than one byte behind a value.
#[derive(Debug)]
struct Input<R> {
    source: R,
    buffer: [u8; 4096],
    /// Bytes in the buffer that were not taken.
    from: usize,
    to: usize,
    /// The byte taken last; none at the end.
    last: Option<u8>,
    /// Bytes that the command in hand may still have.
    left: usize,
    /// The rest of the line does not count.
    skipping: bool,
}

impl<R: Read> Input<R> {
    fn new(source: R) -> Self {
        Self { source, buffer: [0; 4096], from: 0, to: 0, last: None, left: 0, skipping: false }
    }

    /// The first byte of a command, which is taken by whoever reads next; none once there are no more.
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

    /// A line in which something is wrong was answered, and has no further answer.
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

    /// The byte taken last, if there was one, is taken once more.
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

/// The server ends each message with CR LF.
pub(super) fn line(message: &Value) -> Vec<u8> {
    let mut bytes = message.to_string().into_bytes();
    bytes.extend_from_slice(b"\r\n");
    bytes
}
