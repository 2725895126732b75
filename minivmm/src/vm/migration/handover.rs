//! Hand-over of a guest to another process of this host: the first [`message`] passes the descriptors of its memory and its
//! taps, and then everything else follows in a migration over the same socket, in which no page of that memory is sent.
//!
//! Descriptors are named `ram` and `tap N`, where N counts the network cards from 0.

mod message;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vmstate::channel::{Listener, SocketChannel};

use crate::config::{Config, Network};
use crate::devices::virtio::net::Attachment;
use crate::error::{Error, Result};
use crate::memory::Ram;
use crate::passed;

const RAM: &str = "ram";
const TAP: &str = "tap ";

/// Interval at which a waiting process checks for a guest.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a connected process may take for its first message.
const MESSAGE: Duration = Duration::from_secs(10);

/// Descriptors that a source hands over.
#[derive(Debug)]
pub(super) struct Offer {
    ram: Ram,
    taps: Vec<(usize, OwnedFd)>,
}

impl Offer {
    /// Offers the descriptors of this RAM, and of the taps among `networks`.
    ///
    /// # Errors
    /// The reason, as a sentence for the user: the RAM is not made to be handed over; the process has no descriptor left.
    pub(super) fn new<'a>(
        ram: &Ram,
        networks: impl IntoIterator<Item = &'a Attachment>,
    ) -> std::result::Result<Self, String> {
        if ram.descriptor().is_none() {
            let why = "guest RAM is this process's own: a machine whose guest is to be handed over has to be started with \
                       --share-memory on; to another process of this host, migrate it to unix:PATH";
            return Err(why.into());
        }
        let taps = networks.into_iter().enumerate().filter_map(|(index, network)| Some((index, network.descriptor()?)));
        let taps = taps.map(|(index, tap)| Ok((index, tap.try_clone_to_owned()?))).collect::<io::Result<_>>();
        Ok(Self { ram: ram.clone(), taps: taps.map_err(|error| error.to_string())? })
    }

    /// Connects to the process that waits at `path`, and passes the descriptors.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn make(&self, path: &Path) -> io::Result<SocketChannel> {
        let socket = UnixStream::connect(path)?;
        let ram = self.ram.descriptor().map(|ram| (RAM.to_owned(), ram));
        let taps = self.taps.iter().map(|(index, tap)| (format!("{TAP}{index}"), tap.as_fd()));
        message::send(&socket, &ram.into_iter().chain(taps).collect::<Vec<_>>())?;
        socket.try_into()
    }
}

/// Memory of a guest that was handed over, and the connection to its source.
#[derive(Debug)]
pub(in crate::vm) struct HandedOver {
    pub(in crate::vm) ram: Ram,
    pub(in crate::vm) socket: SocketChannel,
}

/// Waits at `path`, without a limit, until a process hands its guest over. In `config`, passed descriptors replace the host's
/// files and devices of the same name, which are in use.
///
/// # Errors
/// [`Error::Flag`] if the machine cannot listen there, or if the message is no hand-over; [`Error::Memory`].
pub(in crate::vm) fn await_guest(path: &Path, config: &mut Config) -> Result<HandedOver> {
    let refused = |what: String| Error::Flag { flag: "--incoming", what: format!("local:{}: {what}", path.display()) };
    let system = |error: io::Error| refused(error.to_string());
    let listener = Listener::unix(path).map_err(system)?;
    let socket = loop {
        match listener.accept(CHECK_INTERVAL) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            socket => break socket.map_err(system)?,
        }
    };
    let descriptors = message::receive(&socket, MESSAGE).map_err(|error| refused(error.to_string()))?;
    let mut ram = None;
    for (what, descriptor) in descriptors {
        let tap = what.strip_prefix(TAP).and_then(|index| config.nets.get_mut(index.parse::<usize>().ok()?));
        match tap {
            _ if what == RAM => ram = Some(descriptor),
            // Otherwise the machine has other cards, which the preflight reports.
            Some(net) if matches!(net.network, Network::Tap(_)) => {
                let reference = format!("handed over as {what}");
                net.network = Network::Tap(format!("fd:{reference}"));
                passed::adopt(&reference, descriptor);
            }
            _ => {}
        }
    }
    let ram =
        ram.ok_or_else(|| refused("the descriptor of ram did not arrive: the message does not name it".into()))?;
    Ok(HandedOver { ram: Ram::passed(config.memory, ram)?, socket })
}
