//! The message of a hand-over in place, and the faults of it: its descriptors reach the destination or not.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

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

/// Bytes relayed of a torn message: its whole length field, and a part of its text.
const TORN: usize = 9;
/// More descriptors than a message has.
const DESCRIPTORS_MAX: usize = 16;
const TEXT_MAX: usize = 4096;

/// Relays the message from source to destination; false if the connection is cut then. Both sockets are blocking.
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
        let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        let mut rest = [IoSliceMut::new(&mut into[filled..])];
        let received = recvmsg::<()>(source.as_raw_fd(), &mut rest, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(came) = message {
                descriptors.extend(came);
            }
        }
        match received.bytes {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            bytes => filled += bytes,
        }
    }
    Ok(())
}
