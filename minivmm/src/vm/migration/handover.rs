//! A guest goes to another process of this host: its memory and its taps as descriptors (SCM_RIGHTS, unix(7)), and then everything
//! else in a migration over the same socket, in which no page of that memory is sent.
//!
//! The first message is a length in four bytes, big-endian, which has the descriptors with it, and so many bytes of text: a line that
//! says who speaks, and one for each descriptor, `ram` or `tap N`, where N counts the network cards from 0.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use vmstate::channel::{Listener, SocketChannel};

use crate::config::{Config, Network};
use crate::devices::virtio::net::Attachment;
use crate::error::{Error, Result};
use crate::memory::Ram;
use crate::passed;

const GREETING: &str = "minivmm hand-over 1";
const RAM: &str = "ram";
const TAP: &str = "tap ";

/// The RAM, and a tap for each virtio-mmio window.
const DESCRIPTORS_MAX: usize = 9;
/// Longest text.
const TEXT_MAX: usize = 1024;

/// How often whoever waits for a guest looks for it.
const LOOK: Duration = Duration::from_secs(1);
/// How long a process that has connected may take for its first message.
const MESSAGE: Duration = Duration::from_secs(10);

/// What a source hands over.
#[derive(Debug)]
pub(super) struct Offer {
    ram: Ram,
    taps: Vec<(usize, OwnedFd)>,
}

impl Offer {
    /// Of this RAM, and of the taps among `networks`.
    ///
    /// # Errors
    /// A sentence for the user: the RAM is not made to be handed over; the process has no descriptor left.
    pub(super) fn new<'a>(
        ram: &Ram,
        networks: impl IntoIterator<Item = &'a Attachment>,
    ) -> std::result::Result<Self, String> {
        if ram.descriptor().is_none() {
            let why = "guest RAM is this process's own: a machine whose guest is to be handed over has to be started with \
                       --share-memory on";
            return Err(why.into());
        }
        let taps = networks.into_iter().enumerate().filter_map(|(index, network)| Some((index, network.descriptor()?)));
        let taps = taps.map(|(index, tap)| Ok((index, tap.try_clone_to_owned()?))).collect::<io::Result<_>>();
        Ok(Self { ram: ram.clone(), taps: taps.map_err(|error| error.to_string())? })
    }

    /// Connects to whoever waits at `path`, and hands it over.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn make(&self, path: &Path) -> io::Result<SocketChannel> {
        let socket = UnixStream::connect(path)?;
        let mut descriptors: Vec<BorrowedFd<'_>> = self.ram.descriptor().into_iter().collect();
        let mut text = format!("{GREETING}\n{RAM}\n");
        for (index, tap) in &self.taps {
            text += &format!("{TAP}{index}\n");
            descriptors.push(tap.as_fd());
        }
        let message = [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("more descriptors than one message has"));
        }
        // Short enough to go at once.
        sendmsg(&socket, &[IoSlice::new(&message)], &mut ancillary, SendFlags::empty())?;
        socket.try_into()
    }
}

/// A guest's memory that was handed over, and where the guest comes from.
#[derive(Debug)]
pub(in crate::vm) struct HandedOver {
    pub(in crate::vm) ram: Ram,
    pub(in crate::vm) socket: SocketChannel,
}

/// Waits at `path`, however long it takes, until a process hands its guest over. In `config`, what came with it takes the place of what
/// the host has under that name, and is in use there.
///
/// # Errors
/// [`Error::Flag`] if nobody can be waited for there, or what comes is no such guest; [`Error::Memory`].
pub(in crate::vm) fn await_guest(path: &Path, config: &mut Config) -> Result<HandedOver> {
    let refused = |what: String| Error::Flag { flag: "--incoming", what: format!("local:{}: {what}", path.display()) };
    let system = |error: io::Error| {
        refused(match error.kind() {
            io::ErrorKind::UnexpectedEof => "whoever connected has handed nothing over: migrate local:PATH does".into(),
            _ => error.to_string(),
        })
    };
    let listener = Listener::unix(path).map_err(system)?;
    let socket = loop {
        match listener.accept(LOOK) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            socket => break socket.map_err(system)?,
        }
    };
    let (text, descriptors) = receive(&socket).map_err(system)?;
    let mut lines = text.lines();
    if lines.next() != Some(GREETING) {
        return Err(system(io::ErrorKind::UnexpectedEof.into()));
    }
    let mut ram = None;
    for (what, descriptor) in lines.zip(descriptors) {
        let tap = what.strip_prefix(TAP).and_then(|index| config.nets.get_mut(index.parse::<usize>().ok()?));
        match tap {
            _ if what == RAM => ram = Some(descriptor),
            // Else this machine's cards are others, which the migration says.
            Some(net) if matches!(net.network, Network::Tap(_)) => {
                let reference = format!("handed over as {what}");
                net.network = Network::Tap(format!("fd:{reference}"));
                passed::adopt(&reference, descriptor);
            }
            _ => {}
        }
    }
    let ram = ram.ok_or_else(|| refused("no guest RAM came".into()))?;
    Ok(HandedOver { ram: Ram::passed(config.memory, ram)?, socket })
}

/// The first message: its text and its descriptors.
fn receive(socket: &SocketChannel) -> io::Result<(String, Vec<OwnedFd>)> {
    let until = Instant::now() + MESSAGE;
    let mut descriptors = Vec::new();
    let mut length = [0; 4];
    fill(socket, &mut length, &mut descriptors, until)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > TEXT_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what came is no hand-over"));
    }
    let mut text = vec![0; length];
    fill(socket, &mut text, &mut descriptors, until)?;
    let text =
        String::from_utf8(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "what came is no text"))?;
    Ok((text, descriptors))
}

/// Fills `into`, and keeps the descriptors that come with it.
fn fill(socket: &SocketChannel, into: &mut [u8], descriptors: &mut Vec<OwnedFd>, until: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < into.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let rest = &mut [IoSliceMut::new(&mut into[filled..])];
        match recvmsg(socket, rest, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) if received.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(received) => filled += received.bytes,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let mut waited = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                poll(&mut waited, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
            }
            Err(errno) => return Err(errno.into()),
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                descriptors.extend(came);
            }
        }
    }
    Ok(())
}
