//! Commands to the destination: `u16 number, u16 length, payload` (`MIG_CMD_*`, migration/savevm.c).

use super::postcopy::{Discard, PageSizes, read_name};
use crate::codec::{Reader, put_name};
use crate::error::{Error, ErrorKind, Result};

/// The supported commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The destination may send answers from now on.
    OpenReturnPath,
    /// The destination shall answer with this number once everything before it is processed.
    Ping(u32),
    /// The guest may run before all of its memory has arrived. Old sources leave out the sizes if post-copy is for their disks'
    /// dirty bitmaps only.
    PostcopyAdvise(Option<PageSizes>),
    /// From now on the destination may request pages, and each page is sent at most once.
    PostcopyListen,
    /// The destination shall run the guest.
    PostcopyRun,
    /// The destination shall discard pages that have arrived.
    PostcopyRamDiscard(Discard),
    /// A package of this many bytes follows. Its elements are loaded only once all of it has arrived, because pages follow it
    /// directly.
    Packaged(u32),
    /// Post-copy continues over this connection: it carries the destination's answers and the pages from now on.
    PostcopyResume,
    /// The destination shall answer with its bitmap of received pages for the block of this name.
    RecvBitmap(String),
    /// The source's machine has stopped; the rest of the stream is sent while it stands still.
    SwitchoverStart,
}

const OPEN_RETURN_PATH: u16 = 1;
const PING: u16 = 2;
const POSTCOPY_ADVISE: u16 = 3;
const POSTCOPY_LISTEN: u16 = 4;
const POSTCOPY_RUN: u16 = 5;
const POSTCOPY_RAM_DISCARD: u16 = 6;
const PACKAGED: u16 = 7;
const POSTCOPY_RESUME: u16 = 9;
const RECV_BITMAP: u16 = 10;
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
    pub fn write(&self, out: &mut Vec<u8>) {
        let payload = match self {
            Self::Ping(value) | Self::Packaged(value) => value.to_be_bytes().to_vec(),
            Self::PostcopyAdvise(sizes) => sizes.map(PageSizes::payload).unwrap_or_default(),
            Self::PostcopyRamDiscard(discard) => discard.payload(),
            Self::RecvBitmap(block) => {
                let mut payload = Vec::new();
                put_name(&mut payload, block);
                payload
            }
            Self::OpenReturnPath
            | Self::PostcopyListen
            | Self::PostcopyRun
            | Self::PostcopyResume
            | Self::SwitchoverStart => Vec::new(),
        };
        out.extend_from_slice(&self.number().to_be_bytes());
        out.extend_from_slice(&u16::try_from(payload.len()).unwrap_or_default().to_be_bytes());
        out.extend_from_slice(&payload);
    }

    fn number(&self) -> u16 {
        match self {
            Self::OpenReturnPath => OPEN_RETURN_PATH,
            Self::Ping(_) => PING,
            Self::PostcopyAdvise(_) => POSTCOPY_ADVISE,
            Self::PostcopyListen => POSTCOPY_LISTEN,
            Self::PostcopyRun => POSTCOPY_RUN,
            Self::PostcopyRamDiscard(_) => POSTCOPY_RAM_DISCARD,
            Self::Packaged(_) => PACKAGED,
            Self::PostcopyResume => POSTCOPY_RESUME,
            Self::RecvBitmap(_) => RECV_BITMAP,
            Self::SwitchoverStart => SWITCHOVER_START,
        }
    }

    /// True for the commands of post-copy.
    pub fn is_postcopy(&self) -> bool {
        matches!(self.number(), POSTCOPY_ADVISE..=PACKAGED | POSTCOPY_RESUME | RECV_BITMAP)
    }

    /// Reads number, length and payload.
    ///
    /// # Errors
    /// `Malformed` for a number or length that does not exist, `Incompatible` (by name) for the command of COLO.
    pub fn read(input: &mut Reader<'_>) -> Result<Self> {
        let offset = input.offset();
        let error = |kind, message: String| Err(Error::new(kind, message).at(offset));
        let number = input.u16()?;
        let length = input.u16()?;
        let Some(&(name, fixed)) = entry(number) else {
            return error(ErrorKind::Malformed, format!("command {number} does not exist"));
        };
        if let Some(fixed) = fixed.filter(|&fixed| fixed != length) {
            return error(ErrorKind::Malformed, format!("command {name} has {fixed} bytes, got {length}"));
        }
        match (number, length) {
            (OPEN_RETURN_PATH, _) => Ok(Self::OpenReturnPath),
            (PING, _) => input.u32().map(Self::Ping),
            (POSTCOPY_ADVISE, 0) => Ok(Self::PostcopyAdvise(None)),
            (POSTCOPY_ADVISE, PageSizes::LEN) => PageSizes::read(input).map(Some).map(Self::PostcopyAdvise),
            (POSTCOPY_ADVISE, _) => {
                error(ErrorKind::Malformed, format!("command {name} has 0 or {} bytes, got {length}", PageSizes::LEN))
            }
            (POSTCOPY_LISTEN, _) => Ok(Self::PostcopyListen),
            (POSTCOPY_RUN, _) => Ok(Self::PostcopyRun),
            (POSTCOPY_RAM_DISCARD, _) => Discard::read(input, length).map(Self::PostcopyRamDiscard),
            (PACKAGED, _) => input.u32().map(Self::Packaged),
            (POSTCOPY_RESUME, _) => Ok(Self::PostcopyResume),
            (RECV_BITMAP, _) => read_name(input, length).map(Self::RecvBitmap),
            (SWITCHOVER_START, _) => Ok(Self::SwitchoverStart),
            _ => Err(unsupported(name).at(offset)),
        }
    }

    /// The error of a destination that does not support this command.
    pub fn unsupported(&self) -> Error {
        unsupported(entry(self.number()).map_or("", |(name, _)| name))
    }
}

/// The command's name and length.
fn entry(number: u16) -> Option<&'static (&'static str, Option<u16>)> {
    usize::from(number).checked_sub(1).and_then(|index| COMMANDS.get(index))
}

fn unsupported(name: &str) -> Error {
    let message = format!("command {name} is not supported: turn its capability off at the source");
    Error::new(ErrorKind::Incompatible, message)
}
