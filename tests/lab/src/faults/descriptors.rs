//! The message with the descriptors of a guest whose memory is not sent, and its faults: the descriptors reach the destination
//! or not.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// How the relay treats the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Message {
    /// It arrives.
    #[default]
    Arrives,
    /// It arrives without its descriptors.
    Bare,
    /// Its first bytes arrive, with its descriptors, and then the connection is cut.
    Torn,
}

/// Where the message is passed.
#[derive(Clone, Copy, Debug)]
pub enum Passing {
    /// At the start of the main channel.
    OnMain(Message),
    /// On a channel before it, as in QEMU's mode `cpr-transfer`.
    OnItsOwn(Message),
}

/// The socket for the descriptors beside that of the main channel.
pub fn cpr_socket(main: &Path) -> PathBuf {
    main.with_extension("cpr")
}

/// Bytes relayed of a torn message: its whole length field or magic and version, and a part of the rest.
const TORN: usize = 9;
/// More descriptors than a message has.
const DESCRIPTORS_MAX: usize = 16;
const TEXT_MAX: usize = 4096;

/// Relays the message from source to destination, which begins with its length; false if the connection is cut then. Both
/// sockets are blocking.
pub(super) fn pass(source: &UnixStream, destination: &UnixStream, message: Message) -> io::Result<bool> {
    let mut bytes = vec![0; size_of::<u32>()];
    let mut descriptors = Vec::new();
    fill(source, &mut bytes, &mut descriptors)?;
    let length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    if length > TEXT_MAX {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    let mut text = vec![0; length];
    fill(source, &mut text, &mut descriptors)?;
    bytes.extend(text);
    forward(destination, bytes, descriptors, message)
}

/// Relays the channel `cpr` between source and destination until the destination closes it, as it does when it waits for the
/// migration: the source's message ends with its direction of the channel.
pub(super) fn pass_channel((source, destination): &(UnixStream, UnixStream), message: Message) -> io::Result<()> {
    let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
    let mut part = [0; TEXT_MAX];
    while let came @ 1.. = receive(source, &mut part, &mut descriptors)? {
        bytes.extend(&part[..came]);
    }
    if forward(destination, bytes, descriptors, message)? {
        destination.shutdown(Shutdown::Write)?;
        // A destination that ends may reset the connection.
        let _ = (&*destination).read(&mut part);
    }
    Ok(())
}

/// Sends the message to the destination; false if the connection is cut then.
fn forward(
    destination: &UnixStream,
    mut bytes: Vec<u8>,
    descriptors: Vec<RawFd>,
    message: Message,
) -> io::Result<bool> {
    if message == Message::Torn {
        bytes.truncate(TORN);
    }
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let with = if message == Message::Bare { &[][..] } else { &rights };
    let sent = sendmsg::<()>(destination.as_raw_fd(), &[IoSlice::new(&bytes)], with, MsgFlags::empty(), None);
    for descriptor in descriptors {
        nix::unistd::close(descriptor)?;
    }
    sent?;
    Ok(message != Message::Torn)
}

fn fill(source: &UnixStream, into: &mut [u8], descriptors: &mut Vec<RawFd>) -> io::Result<()> {
    let mut filled = 0;
    while filled < into.len() {
        match receive(source, &mut into[filled..], descriptors)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            bytes => filled += bytes,
        }
    }
    Ok(())
}

/// Reads bytes, and the descriptors that come with them.
fn receive(source: &UnixStream, into: &mut [u8], descriptors: &mut Vec<RawFd>) -> io::Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let mut into = [IoSliceMut::new(into)];
    let received = recvmsg::<()>(source.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    Ok(received.bytes)
}
