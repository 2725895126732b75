//! Hand-over of a guest to another process of this host: the first [`message`] passes the descriptors of its memory, networks and
//! console, and then everything else follows in a migration over the same socket, in which no page of that memory is sent.
//!
//! Descriptors are named `ram`, `tap N` and `stream N`, where N counts the network cards from 0, `console …` for a console
//! (`console/mod.rs`), and `metrics` for the socket at which metrics are served. Those that the new process has no use for are closed there.

mod cpr;
mod message;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use vmstate::channel::{Listener, SocketChannel};

use crate::config::{Address, Config, ListenAt, Network};
use crate::devices::virtio::net::Attachment;
use crate::error::{Error, Result};
use crate::memory::{RAM_BLOCK, Ram, SharedCopy};
use crate::migration::firmware::{BIOS, is_firmware};
use crate::passed;
use crate::vm::backends::Backends;

const RAM: &str = "ram";
const TAP: &str = "tap ";

/// Name of the connection of the card with this index.
pub(in crate::vm) fn stream(index: usize) -> String {
    format!("stream {index}")
}

/// Interval at which a waiting process checks for a guest.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a connection may take to be made.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// How long a connected process may take for its first message.
const MESSAGE: Duration = Duration::from_secs(10);

/// Descriptors that a source hands over.
#[derive(Debug)]
pub(super) struct Offer {
    ram: Ram,
    /// Copy of the guest's memory that a QEMU has in a block of its own.
    segment: Option<OwnedFd>,
    others: Vec<(String, OwnedFd)>,
    /// Descriptors of the process, for which a QEMU has no use.
    of_process: Vec<(&'static str, OwnedFd)>,
}

impl Offer {
    /// Offers the descriptors of this RAM and of taps, and with `continues` those of streams, of the console and of the process.
    ///
    /// # Errors
    /// The reason, as a sentence for the user: the RAM is not made to be handed over; the process has no descriptor left.
    pub(super) fn new(
        ram: &Ram,
        segment: Option<&SharedCopy>,
        backends: &Backends,
        continues: bool,
    ) -> std::result::Result<Self, String> {
        if ram.descriptor().is_none() {
            let why = "guest RAM is this process's own: a machine whose guest is to be handed over has to be started with \
                       --share-memory on; to another process of this host, migrate it to unix:PATH";
            return Err(why.into());
        }
        let others = descriptors(backends, continues).map_err(|error| error.to_string())?;
        let segment = segment.map(|segment| segment.descriptor().try_clone_to_owned()).transpose();
        let segment = segment.map_err(|error| error.to_string())?;
        let of_process = backends.of_process.iter().filter(|_| continues);
        let of_process = of_process.map(|(name, descriptor)| Ok((*name, descriptor.try_clone()?)));
        let of_process = of_process.collect::<io::Result<_>>().map_err(|error| error.to_string())?;
        Ok(Self { ram: ram.clone(), segment, others, of_process })
    }

    /// Connects to the process that waits at `path`, and passes the descriptors.
    ///
    /// # Errors
    /// The system's; the process does not accept in time; `go_on` returns false.
    pub(super) fn make(&self, path: &Path, go_on: &dyn Fn() -> bool) -> io::Result<SocketChannel> {
        let socket = SocketChannel::connect_unix(path, CONNECT, go_on)?;
        let ram = self.ram.descriptor().map(|ram| (RAM, ram));
        let others = self.others.iter().map(|(name, descriptor)| (name.as_str(), descriptor.as_fd()));
        let of_process = self.of_process.iter().map(|(name, descriptor)| (*name, descriptor.as_fd()));
        message::send(&socket, &ram.into_iter().chain(others).chain(of_process).collect::<Vec<_>>())?;
        Ok(socket)
    }

    /// Connects to the process that waits at `path` for the descriptors alone, as in QEMU's mode `cpr-transfer`; returns once it
    /// waits for the migration.
    ///
    /// # Errors
    /// The system's; the process takes too long; `go_on` returns false.
    pub(super) fn transfer(&self, path: &Path, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        let socket = SocketChannel::connect_unix(path, CONNECT, go_on)?;
        let ram = self.ram.descriptor().map(|ram| (RAM_BLOCK, ram));
        let segment = self.segment.as_ref().map(|segment| (BIOS, segment.as_fd()));
        let others = self.others.iter().map(|(name, descriptor)| (name.as_str(), descriptor.as_fd()));
        cpr::send(&socket, ram.into_iter().chain(segment).chain(others))?;
        cpr::await_close(&socket, MESSAGE, go_on)
    }
}

fn descriptors(backends: &Backends, continues: bool) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut descriptors = Vec::new();
    for (index, (network, _)) in backends.nets.iter().enumerate() {
        let name = match network {
            Attachment::Tap(_) => format!("{TAP}{index}"),
            Attachment::Stream(_) if continues => stream(index),
            Attachment::Stream(_) => continue,
        };
        descriptors.extend(network.descriptor()?.map(|descriptor| (name, descriptor)));
    }
    for (name, descriptor) in backends.console.descriptors().filter(|_| continues) {
        descriptors.push((name.to_owned(), descriptor.try_clone_to_owned()?));
    }
    Ok(descriptors)
}

/// Memory of a guest that was handed over, and the connection to its source.
#[derive(Debug)]
pub struct HandedOver {
    pub(in crate::vm) ram: Ram,
    pub(in crate::vm) socket: SocketChannel,
    /// Descriptors of streams, of the console and of the process, by name.
    pub descriptors: BTreeMap<String, OwnedFd>,
    /// Blocks of a QEMU's firmware, by name, if the guest comes as in QEMU's mode `cpr-transfer`.
    pub(in crate::vm) firmware: Option<BTreeMap<String, File>>,
}

impl HandedOver {
    /// If `config` says so, waits without a limit until a process hands its guest over. In `config`, passed descriptors replace
    /// the taps of the same name, which are in use.
    ///
    /// # Errors
    /// [`Error::Flag`] if the machine cannot listen there, or if the message is no hand-over; [`Error::Memory`].
    pub fn awaited(config: &mut Config) -> Result<Option<Self>> {
        match &config.incoming {
            Some(ListenAt::Address(Address::Local(path))) => await_guest(&path.clone(), config).map(Some),
            Some(ListenAt::Transfer { main, cpr }) => await_transfer(&main.clone(), &cpr.clone(), config).map(Some),
            _ => Ok(None),
        }
    }

    /// Sorts the descriptors that arrived, of which `ram` is the memory; `refused` makes an error of a sentence for the user.
    fn new(
        config: &mut Config,
        ram: &str,
        descriptors: Vec<(String, OwnedFd)>,
        socket: SocketChannel,
        refused: impl Fn(String) -> Error,
    ) -> Result<Self> {
        let mut descriptors: BTreeMap<String, OwnedFd> = descriptors.into_iter().collect();
        for (index, net) in config.nets.iter_mut().enumerate() {
            let name = format!("{TAP}{index}");
            // Otherwise the machine has other cards, which the preflight reports.
            if let (Network::Tap(_), Some(tap)) = (&net.network, descriptors.remove(&name)) {
                let reference = format!("handed over as {name}");
                net.network = Network::Tap(format!("fd:{reference}"));
                passed::adopt(&reference, tap);
            }
        }
        let missing = || refused(format!("the descriptor of {ram} did not arrive: the message does not name it"));
        let ram = descriptors.remove(ram).ok_or_else(missing)?;
        Ok(Self { ram: Ram::passed(config.memory, ram)?, socket, descriptors, firmware: None })
    }
}

/// Waits for the first connection of `listener`, without a limit or at most until `limit`.
fn accept(listener: &Listener, limit: Option<Instant>) -> io::Result<SocketChannel> {
    loop {
        let is_over = limit.is_some_and(|limit| Instant::now() >= limit);
        match listener.accept(CHECK_INTERVAL) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && !is_over => {}
            socket => return socket,
        }
    }
}

/// Waits at `cpr` for the descriptors, and then at `main` for the migration, as in QEMU's mode `cpr-transfer`.
fn await_transfer(main: &Address, cpr: &Path, config: &mut Config) -> Result<HandedOver> {
    let refused =
        |what: String| Error::Flag { flag: "--incoming", what: format!("cpr unix:{}: {what}", cpr.display()) };
    let system = |error: io::Error| refused(error.to_string());
    let passing = accept(&Listener::unix(cpr).map_err(system)?, None).map_err(system)?;
    let descriptors = cpr::receive(&passing, MESSAGE).map_err(|error| refused(error.to_string()))?;
    let at = |error: io::Error| Error::Flag { flag: "--incoming", what: format!("{main}: {error}") };
    let listener = match main {
        Address::Tcp(host_and_port) => Listener::tcp(host_and_port.as_str()),
        Address::Unix(path) => Listener::unix(path),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    let listener = listener.map_err(at)?;
    // The source connects once it sees the end of this connection.
    drop(passing);
    let socket = accept(&listener, Some(Instant::now() + MESSAGE)).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => {
            refused(format!("the source has passed its memory, but has not connected at {main} within {MESSAGE:?}"))
        }
        _ => at(error),
    })?;
    let (firmware, descriptors) = descriptors.into_iter().partition::<Vec<_>, _>(|(name, _)| is_firmware(name));
    let firmware = firmware.into_iter().map(|(name, descriptor)| (name, descriptor.into())).collect();
    let handed_over = HandedOver::new(config, RAM_BLOCK, descriptors, socket, refused)?;
    Ok(HandedOver { firmware: Some(firmware), ..handed_over })
}

fn await_guest(path: &Path, config: &mut Config) -> Result<HandedOver> {
    let refused = |what: String| Error::Flag { flag: "--incoming", what: format!("local:{}: {what}", path.display()) };
    let system = |error: io::Error| refused(error.to_string());
    let socket = accept(&Listener::unix(path).map_err(system)?, None).map_err(system)?;
    let descriptors = message::receive(&socket, MESSAGE).map_err(|error| refused(error.to_string()))?;
    HandedOver::new(config, RAM, descriptors, socket, refused)
}
