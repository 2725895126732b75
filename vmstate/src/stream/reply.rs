//! Answers of the destination on the return path: `u16 type, u16 length, payload` (`MIG_RP_MSG_*`,
//! migration/migration.c).

use crate::codec::Reader;
use crate::error::{Error, ErrorKind, Result};

/// The answers in use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// The last word of the destination: 0 if the migration succeeded.
    Shut(u32),
    /// Answer to [`Ping`](super::Command::Ping), with its number.
    Pong(u32),
}

const SHUT: u16 = 1;
const PONG: u16 = 2;

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
    /// `Malformed` for a type or length that does not exist, `Incompatible` (by name) for the answers of post-copy.
    pub fn read(input: &mut Reader<'_>) -> Result<Self> {
        let offset = input.offset();
        let error = |kind, message: String| Err(Error::new(kind, message).at(offset));
        let number = input.u16()?;
        let length = input.u16()?;
        let Some(name) = usize::from(number).checked_sub(1).and_then(|index| REPLIES.get(index)) else {
            return error(ErrorKind::Malformed, format!("return path message {number} does not exist"));
        };
        if !matches!(number, SHUT | PONG) {
            return error(ErrorKind::Incompatible, format!("return path message {name} is not supported"));
        }
        if length != 4 {
            return error(ErrorKind::Malformed, format!("return path message {name} has 4 bytes, got {length}"));
        }
        let value = input.u32()?;
        Ok(if number == SHUT { Self::Shut(value) } else { Self::Pong(value) })
    }
}
