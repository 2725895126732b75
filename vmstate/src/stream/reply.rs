//! Answers of the destination on the return path: `u16 type, u16 length, payload` (`MIG_RP_MSG_*`,
//! migration/migration.c).

use std::time::Duration;

use super::postcopy::{PageRequest, read_name};
use crate::codec::{Reader, put_name};
use crate::error::{Error, ErrorKind, Printable, Result};

/// The answers that this library uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// The final answer of the destination: 0 if the migration succeeded.
    Shut(u32),
    /// The answer to [`Ping`](super::Command::Ping), with its number.
    Pong(u32),
}

/// The messages on the return path in post-copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Returned {
    /// An answer that may also come in pre-copy.
    Reply(Reply),
    /// Pages that the destination's guest waits for.
    Pages(PageRequest),
    /// The bitmap of received pages for the block of this name follows; [`read_received`](crate::raw::ram::read_received) reads
    /// it.
    Bitmap(String),
    /// The destination continues post-copy over this connection.
    ResumeAck,
}

const SHUT: u16 = 1;
const PONG: u16 = 2;
const RECV_BITMAP: u16 = 5;
const RESUME_ACK: u16 = 6;
/// The payload of a `RESUME_ACK` (`MIGRATION_RESUME_ACK_VALUE`, migration/migration.h).
const RESUMED: u32 = 1;
/// The type of a text that explains a SHUT of another number than 0 and follows it. A source of QEMU reads nothing after a SHUT
/// (`source_return_path_thread`, migration/migration.c); QEMU's own types are single digits.
const REASON: u16 = 0x8001;
/// The longest such text in bytes.
const LONGEST_REASON: usize = 4096;
/// The type of the destination's measured times, sent after a SHUT of 0 to a source of this library: u64s of nanoseconds.
const TIMES: u16 = 0x8002;
/// Size of one time.
const TIME: usize = size_of::<u64>();

/// Names of the types 1 to 7, in order.
const REPLIES: [&str; 7] = ["SHUT", "PONG", "REQ_PAGES_ID", "REQ_PAGES", "RECV_BITMAP", "RESUME_ACK", "SWITCHOVER_ACK"];

impl Reply {
    /// Appends type, length and payload.
    pub fn write(self, out: &mut Vec<u8>) {
        let (number, value) = match self {
            Self::Shut(value) => (SHUT, value),
            Self::Pong(value) => (PONG, value),
        };
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&4_u16.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }

    /// Reads type, length and payload.
    ///
    /// # Errors
    /// As for [`Returned::read`]; `Incompatible` for an answer of post-copy.
    pub fn read(input: &mut Reader<'_>) -> Result<Self> {
        let offset = input.offset();
        match Returned::read(input)? {
            Returned::Reply(reply) => Ok(reply),
            of_postcopy => Err(unsupported(name(of_postcopy.number()).unwrap_or_default()).at(offset)),
        }
    }
}

impl Returned {
    /// Appends type, length and payload.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut payload = Vec::new();
        match self {
            Self::Reply(reply) => return reply.write(out),
            Self::Pages(request) => return request.write(out),
            Self::Bitmap(block) => put_name(&mut payload, block),
            Self::ResumeAck => payload.extend_from_slice(&RESUMED.to_be_bytes()),
        }
        out.extend_from_slice(&self.number().to_be_bytes());
        out.extend_from_slice(&u16::try_from(payload.len()).unwrap_or_default().to_be_bytes());
        out.extend_from_slice(&payload);
    }

    fn number(&self) -> u16 {
        match self {
            Self::Reply(Reply::Shut(_)) => SHUT,
            Self::Reply(Reply::Pong(_)) => PONG,
            Self::Pages(PageRequest { block: Some(_), .. }) => PageRequest::NAMED,
            Self::Pages(PageRequest { block: None, .. }) => PageRequest::SAME_BLOCK,
            Self::Bitmap(_) => RECV_BITMAP,
            Self::ResumeAck => RESUME_ACK,
        }
    }

    /// Reads type, length and payload.
    ///
    /// # Errors
    /// `Malformed` for a type, length or number that does not exist, `Incompatible` (by name) for `SWITCHOVER_ACK`.
    pub fn read(input: &mut Reader<'_>) -> Result<Self> {
        let offset = input.offset();
        let error = |kind, message: String| Err(Error::new(kind, message).at(offset));
        let number = input.u16()?;
        let length = input.u16()?;
        if number == TLS_ALERT {
            return error(ErrorKind::Peer, "the peer refuses the stream: it speaks TLS, and this side does not".into());
        }
        let Some(name) = name(number) else {
            return error(ErrorKind::Malformed, format!("return path message {number} does not exist"));
        };
        match number {
            SHUT | PONG | RESUME_ACK if length != 4 => {
                error(ErrorKind::Malformed, format!("return path message {name} has 4 bytes, got {length}"))
            }
            SHUT => input.u32().map(Reply::Shut).map(Self::Reply),
            PONG => input.u32().map(Reply::Pong).map(Self::Reply),
            RESUME_ACK => match input.u32()? {
                RESUMED => Ok(Self::ResumeAck),
                other => error(ErrorKind::Malformed, format!("{name} of {RESUMED} expected, got {other}")),
            },
            RECV_BITMAP => read_name(input, length).map(Self::Bitmap),
            PageRequest::NAMED | PageRequest::SAME_BLOCK => PageRequest::read(input, number, length).map(Self::Pages),
            _ => Err(unsupported(name).at(offset)),
        }
    }
}

fn name(number: u16) -> Option<&'static str> {
    usize::from(number).checked_sub(1).and_then(|index| REPLIES.get(index)).copied()
}

fn unsupported(name: &str) -> Error {
    Error::new(ErrorKind::Incompatible, format!("return path message {name} is not supported"))
}

/// The first two bytes of a TLS alert (RFC 8446, section 5.1), which a TLS server sends to a peer that does not use TLS.
const TLS_ALERT: u16 = 0x1503;

/// Appends why the destination refuses the guest; it must follow [`Reply::Shut`]. A text of more than 4096 bytes is cut.
pub fn put_reason(reason: &str, out: &mut Vec<u8>) {
    let end = (0..=LONGEST_REASON.min(reason.len())).rev().find(|&at| reason.is_char_boundary(at));
    let text = reason.as_bytes().get(..end.unwrap_or_default()).unwrap_or_default();
    out.extend_from_slice(&REASON.to_be_bytes());
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or_default().to_be_bytes());
    out.extend_from_slice(text);
}

/// Reads a message that [`put_reason`] wrote. The text is the peer's, and is escaped by [`Printable`] to one line.
///
/// # Errors
/// `Malformed` for another message, for a text that is too long, and for one that is not UTF-8.
pub fn read_reason(input: &mut Reader<'_>) -> Result<String> {
    let (number, length) = (input.u16()?, usize::from(input.u16()?));
    if number != REASON || length > LONGEST_REASON {
        return Err(input.malformed("a reason of at most 4096 bytes expected"));
    }
    let text = str::from_utf8(input.take(length)?).map_err(|_| input.malformed("the reason is not UTF-8"))?;
    Ok(Printable(text).to_string())
}

/// Appends the destination's measured times; they must follow [`Reply::Shut`] of 0. If they do not fit one message, which has
/// room for 8191, nothing is appended.
pub fn put_times(times: &[Duration], out: &mut Vec<u8>) {
    let Ok(length) = u16::try_from(times.len().saturating_mul(TIME)) else { return };
    out.extend_from_slice(&TIMES.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    for time in times {
        out.extend_from_slice(&u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).to_be_bytes());
    }
}

/// Reads a message that [`put_times`] wrote.
///
/// # Errors
/// `Malformed` for another message, or one that ends within a time.
pub fn read_times(input: &mut Reader<'_>) -> Result<Vec<Duration>> {
    let (number, length) = (input.u16()?, usize::from(input.u16()?));
    if number != TIMES || !length.is_multiple_of(TIME) {
        return Err(input.malformed("times of eight bytes each expected"));
    }
    // All times have arrived before memory is allocated for them.
    let mut times = Reader::strict(input.take(length)?);
    (0..length / TIME).map(|_| times.u64().map(Duration::from_nanos)).collect()
}
