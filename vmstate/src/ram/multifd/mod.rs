//! Pages on channels of their own, in QEMU's format (`multifd`, migration/multifd.h): the packets, and the state that the threads
//! of one side share. The threads themselves are in [`crate::migrate::multifd`].
//!
//! The main channel marks the points where an old and a new copy of a page could cross: a record MULTIFD_FLUSH there, and a
//! packet with flag SYNC on each channel. No channel is read beyond its SYNC before all channels have reached theirs.

pub(crate) mod batch;
mod numbers;
pub(crate) mod packet;
pub(crate) mod pairing;
mod receiving;
mod sending;

pub(crate) use packet::Opening;
use pairing::Pairing;
pub use receiving::Receivers;
pub use sending::Senders;
pub(crate) use sending::Task;

use crate::error::{Error, ErrorKind, Result};
use crate::ram::PageCount;

const NEVER_FLUSHES: &str =
    "on channels without a MULTIFD_FLUSH, as from a QEMU before 8.1, turn capability multifd off at the source";

/// The page channels of one migration, if it has any.
#[derive(Clone, Debug, Default)]
pub(crate) enum PageChannels {
    #[default]
    None,
    Senders(Senders),
    Receivers(Receivers),
}

impl PageChannels {
    /// Pages that were sent or received on the channels.
    pub(crate) fn pages(&self) -> PageCount {
        match self {
            Self::None => PageCount::default(),
            Self::Senders(senders) => senders.sent(),
            Self::Receivers(receivers) => receivers.received(),
        }
    }

    /// Bytes that were sent or received on the channels.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Senders(senders) => senders.bytes(),
            Self::Receivers(receivers) => receivers.bytes(),
        }
    }

    /// Pages that were given to the channels and are not sent yet.
    pub(crate) fn unsent(&self) -> u64 {
        match self {
            Self::None | Self::Receivers(_) => 0,
            Self::Senders(senders) => senders.unsent(),
        }
    }

    /// Returns an error if a channel has failed.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Senders(senders) => senders.check(),
            Self::Receivers(receivers) => receivers.check(),
        }
    }

    /// Called when a source has sent memory without a page with contents.
    ///
    /// # Errors
    /// `Incompatible` if its pages seem to be on channels for which no flush was sent.
    pub(crate) fn check_flushed(&self) -> Result<()> {
        match self {
            Self::Receivers(receivers) if receivers.is_flush_awaited() => Err(Error::new(
                ErrorKind::Incompatible,
                format!("the source sent no page with data; if its pages come {NEVER_FLUSHES}"),
            )),
            _ => Ok(()),
        }
    }

    /// Explains the silence of a source. The channels of a source that never flushes are not read, so that source stops.
    pub(crate) fn why_silent(&self) -> String {
        match self {
            Self::Receivers(receivers) if receivers.is_flush_awaited() => {
                format!("the peer is silent; if its pages come {NEVER_FLUSHES}")
            }
            _ => "the peer is silent".into(),
        }
    }

    /// Ends the channels' threads: no more pages follow.
    pub(crate) fn close(&self) {
        match self {
            Self::None => {}
            Self::Senders(senders) => senders.close(),
            Self::Receivers(receivers) => receivers.close(),
        }
    }
}

impl From<Option<&Senders>> for PageChannels {
    fn from(senders: Option<&Senders>) -> Self {
        senders.map_or(Self::None, |senders| Self::Senders(senders.clone()))
    }
}

impl From<Option<&Receivers>> for PageChannels {
    fn from(receivers: Option<&Receivers>) -> Self {
        receivers.map_or(Self::None, |receivers| Self::Receivers(receivers.clone()))
    }
}

/// How the channels' migration has ended, if it has.
#[derive(Debug, Default)]
struct Ending {
    is_over: bool,
    /// Why a channel failed, until the error was returned once.
    failure: Option<Error>,
}

impl Ending {
    /// Records the failure of a channel. Failures after the end of the migration are consequences of it and ignored.
    fn fail(&mut self, error: Error) {
        if !self.is_over {
            tracing::debug!("a page channel failed: {error}");
            (self.is_over, self.failure) = (true, Some(error));
        }
    }

    /// Returns the error of the first channel that failed, once.
    fn check(&mut self) -> Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

/// The compression of the pages of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not compressed.
    #[default]
    None,
    /// One zstd stream for each channel, flushed at the end of each packet. Needs the feature `zstd`.
    Zstd {
        /// QEMU's `multifd-zstd-level`: 1 is the fastest, 20 the strongest.
        level: u8,
    },
}
