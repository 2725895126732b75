//! Network attachment of a machine's card.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::Duration;

use super::backend::{Backend, DataPlane, Offloads};
use super::{InTransit, Stream, StreamError, Tap, TapError, VhostError};
use crate::config::{Net, Network};
use crate::memory::Ram;

/// Why a network of the host cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum AttachError {
    /// The tap failed.
    Tap(#[from] TapError),
    /// vhost-net, which was to move the tap's frames, failed.
    Vhost(#[from] VhostError),
    /// The stream socket failed.
    Stream(#[from] StreamError),
}

/// An open network of the host.
#[derive(Debug)]
pub enum Attachment {
    /// A tap.
    Tap(Tap),
    /// A stream socket.
    Stream(Stream),
}

impl Attachment {
    /// Opens the network that `net` names, for a guest with this memory. A stream's connection may have been `handed_over` with the
    /// guest.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn open(net: &Net, ram: &Ram, handed_over: Option<OwnedFd>) -> Result<Self, AttachError> {
        Ok(match &net.network {
            Network::Tap(name) => {
                let tap = Tap::open(name)?;
                let tap = if net.uso { tap } else { tap.without_uso() };
                Self::Tap(if net.vhost { tap.with_vhost(ram)? } else { tap })
            }
            Network::Stream(path) => {
                let stream = match handed_over {
                    Some(socket) => Stream::continuing(path, socket)?,
                    None => Stream::open(path)?,
                };
                Self::Stream(if net.uso { stream } else { stream.without_uso() })
            }
        })
    }

    /// Duplicates the descriptor with which another process can continue; `None` while a stream is not connected.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn descriptor(&self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Tap(tap) => tap.as_fd().try_clone_to_owned().map(Some),
            Self::Stream(stream) => stream.descriptor(),
        }
    }

    /// Duplicates the attachment for the card of a machine that was reset.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tap(tap) => tap.try_clone().map(Self::Tap),
            Self::Stream(stream) => Ok(Self::Stream(stream.clone())),
        }
    }

    fn backend(&self) -> &dyn Backend {
        match self {
            Self::Tap(tap) => tap,
            Self::Stream(stream) => stream,
        }
    }
}

impl Backend for Attachment {
    fn fd(&self) -> RawFd {
        self.backend().fd()
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        self.backend().receive(frame)
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.backend().send(frame)
    }

    fn wait(&self) -> Option<Duration> {
        self.backend().wait()
    }

    fn is_up(&self) -> bool {
        self.backend().is_up()
    }

    fn offloads(&self) -> Offloads {
        self.backend().offloads()
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.backend().set_offloads(offloads)
    }

    fn in_transit(&self) -> InTransit {
        self.backend().in_transit()
    }

    fn take_over(&self, from: InTransit) {
        self.backend().take_over(from);
    }

    fn data_plane(&self) -> Option<&dyn DataPlane> {
        self.backend().data_plane()
    }
}
