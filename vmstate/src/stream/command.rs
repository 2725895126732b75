//! Commands to the destination: `u16 number, u16 length, payload` (`MIG_CMD_*`, migration/savevm.c).

use crate::codec::Reader;
use crate::error::{Error, ErrorKind, Result};

/// The commands in use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Answers may be sent from now on.
    OpenReturnPath,
    /// Answer with this number once all before it is done.
    Ping(u32),
    /// The source's machine has stopped; what follows is the last.
    SwitchoverStart,
}

const OPEN_RETURN_PATH: u16 = 1;
const PING: u16 = 2;
const SWITCHOVER_START: u16 = 11;

/// Name and payload length in bytes (`None`: variable) of the commands 1 to 11, in order.
const COMMANDS: [(&str, Option<u16>); 11] = [
    ("OPEN_RETURN_PATH", Some(0)),
    ("PING", Some(4)),
    ("POSTCOPY_ADVISE", None),
    ("POSTCOPY_LISTEN", Some(0)),
    ("POSTCOPY_RUN", Some(0)),
    ("POSTCOPY_RAM_DISCARD", None),
    ("PACKAGED", Some(4)),
    ("ENABLE_COLO", Some(0)),
    ("POSTCOPY_RESUME", Some(0)),
    ("RECV_BITMAP", None),
    ("SWITCHOVER_START", Some(0)),
];

impl Command {
    /// Appends number, length and payload.
    pub fn write(self, out: &mut Vec<u8>) {
        let (number, payload): (u16, &[u8]) = match self {
            Self::OpenReturnPath => (OPEN_RETURN_PATH, &[]),
            Self::Ping(value) => (PING, &value.to_be_bytes()),
            Self::SwitchoverStart => (SWITCHOVER_START, &[]),
        };
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&u16::try_from(payload.len()).unwrap_or_default().to_be_bytes());
        out.extend_from_slice(payload);
    }

    /// Reads number, length and payload.
    ///
    /// # Errors
    /// `Malformed` for a number or length that does not exist, `Incompatible` (by name) for the commands of
    /// post-copy and COLO.
    pub fn read(input: &mut Reader<'_>) -> Result<Self> {
        let offset = input.offset();
        let error = |kind, message: String| Err(Error::new(kind, message).at(offset));
        let number = input.u16()?;
        let length = input.u16()?;
        let entry = usize::from(number).checked_sub(1).and_then(|index| COMMANDS.get(index));
        let Some(&(name, fixed)) = entry else {
            return error(ErrorKind::Malformed, format!("command {number} does not exist"));
        };
        if let Some(fixed) = fixed.filter(|&fixed| fixed != length) {
            return error(ErrorKind::Malformed, format!("command {name} has {fixed} bytes, got {length}"));
        }
        match number {
            OPEN_RETURN_PATH => Ok(Self::OpenReturnPath),
            PING => input.u32().map(Self::Ping),
            SWITCHOVER_START => Ok(Self::SwitchoverStart),
            _ => error(
                ErrorKind::Incompatible,
                format!("command {name} is not supported: turn its capability off at the source"),
            ),
        }
    }
}
